"""A training step with its data, against LeRobot in one run: `visuomotor train` and `lerobot-train`, in turn.

    make benchmarks DATA=PUSHT  # makes LeRobot's environment, and runs this and the others
    .venv/bin/python benchmarks/training.py PUSHT --lerobot .venv-lerobot/bin/python

PUSHT is a LeRobot v3.0 folder of Push-T with AV1 video (`visuomotor convert pusht.zarr.zip PUSHT`). Both programs
train the same networks in float32 on the same windows, 64 a step, with as many threads, and without an average of the
weights, which LeRobot has not. The time of a step is what each program logs itself, with its data, without start-up and
the first steps. Memory is the highest sum of a program's anonymous pages over its processes: pages of mapped files do
not count.

    .venv/bin/python benchmarks/training.py PUSHT --lerobot .venv-lerobot/bin/python --device cuda --workers 8
    ... --ours --cuda-graph --mixed-precision bf16  # the same with options that LeRobot has no equal of

    ... --cases "U-Net 128-256-512" --output benchmarks/training-options.json \\
        --ours --batch-size 16 --noise-draws 4 --consecutive-windows 4

Options that change the work: a window that is noised twice counts as two, so that the time is that of 64 again.

On a GPU there are more steps between two lines, before each of which our host waits for it (LeRobot's does at every
step); and memory is what torch has held there at most (`max_memory_allocated`).
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

CASES = {"published recipe, 263M": (512, 1024, 2048), "U-Net 128-256-512": (128, 256, 512)}
BATCH = 64
STEPS, WINDOW = {"cpu": 6, "cuda": 600}, {"cpu": 2, "cuda": 100}  # in all, and between lines; the first is left out
RUN = """
import atexit, os, runpy, sys
def tell():
    torch = sys.modules.get("torch")
    print("most bytes on the GPU:", torch.cuda.max_memory_allocated() if torch and torch.cuda.is_available() else 0)
atexit.register(tell)
sys.argv = sys.argv[1:]
(runpy.run_path if os.sep in sys.argv[0] else runpy.run_module)(sys.argv[0], run_name="__main__")
"""


def main() -> None:
    """Prints a table of medians and ratios, and writes JSON beside this file."""
    from visuomotor.evaluation.evaluate import versions

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--lerobot", required=True, help="the Python of LeRobot's environment")
    parser.add_argument("--python", default=".venv/bin/python", help="the Python of ours")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--workers", type=int, default=0, help="of LeRobot's loader; its best in benchmarks/loading.py")
    parser.add_argument("--device", choices=list(STEPS), default="cpu")
    parser.add_argument(
        "--ours", nargs=argparse.REMAINDER, default=[], help="last: further flags of `visuomotor train`"
    )
    parser.add_argument("--steps", type=int, help="6, on a GPU 600")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--output", type=Path, help="training.json beside this file, on a GPU training-cuda.json")
    options = parser.parse_args()
    options.steps = options.steps or STEPS[options.device]
    name = "training.json" if options.device == "cpu" else f"training-{options.device}.json"
    options.output = options.output or Path(__file__).with_name(name)
    freeze = subprocess.run([options.lerobot, "-m", "pip", "freeze"], check=True, capture_output=True, text=True).stdout
    theirs = dict(line.split("==", 1) for line in freeze.splitlines() if re.match(r"(lerobot|torch|numpy)==", line))
    results = {"batch": BATCH, "threads": options.threads, "workers": options.workers, "cases": {}}
    results |= {"versions": versions(), "lerobot versions": theirs, "device": options.device, "ours": options.ours}
    print(f"{'':24}{'LeRobot':>22}{'Visuomotor':>22}{'ratio':>8}")
    for name in options.cases:
        dims = CASES[name]
        runs: dict[str, list[dict[str, float]]] = {"LeRobot": [], "Visuomotor": []}
        for _ in range(options.rounds):
            runs["LeRobot"].append(lerobot(options, dims))
            runs["Visuomotor"].append(ours(options, dims))
        results["cases"][name] = runs
        (slow, much), (fast, little) = (
            (statistics.median(run["seconds"] for run in of), statistics.median(run["gigabytes"] for run in of))
            for of in runs.values()
        )
        print(f"{name:24}{slow:10.2f} s, {much:5.1f} GB{fast:10.2f} s, {little:5.1f} GB{slow / fast:8.2f}", flush=True)
        options.output.write_text(json.dumps(results, indent=2) + "\n")


def lerobot(options: argparse.Namespace, dims: tuple[int, ...]) -> dict[str, float]:
    """Seconds of a step, of which for data, and gigabytes of `lerobot-train`."""
    policy = {
        "type": "diffusion",
        "horizon": 16,
        "n_action_steps": 8,
        "resize_shape": "null",
        "crop_shape": "[84,84]",
        "crop_is_random": "true",
        "use_group_norm": "true",
        "pretrained_backbone_weights": "null",
        "down_dims": str(list(dims)),
        "push_to_hub": "false",
        "device": options.device,
    }
    with tempfile.TemporaryDirectory() as folder:
        command = [options.lerobot, "-c", RUN, str(Path(options.lerobot).with_name("lerobot-train"))]
        command += [f"--output_dir={folder}/run"]
        command += [f"--policy.{name}={value}" for name, value in policy.items()]
        command += ["--dataset.repo_id=a/pusht", f"--dataset.root={options.data}", "--dataset.video_backend=pyav"]
        command += [f"--batch_size={BATCH}", f"--num_workers={options.workers}", f"--steps={options.steps}"]
        command += [
            f"--log_freq={WINDOW[options.device]}",
            "--save_checkpoint=false",
            "--wandb.enable=false",
            "--env_eval_freq=0",
        ]
        printed, gigabytes = watch(command, options)
    lines = re.findall(r"updt_s:([\d.]+) data_s:([\d.]+)", printed)[1:]
    if not lines:
        raise SystemExit(f"lerobot-train logged no times:\n{printed[-3000:]}")
    data = statistics.median(float(data) for _, data in lines)
    seconds = statistics.median(float(update) + float(data) for update, data in lines)
    return {"seconds": seconds, "data": data, "gigabytes": gigabytes}


def ours(options: argparse.Namespace, dims: tuple[int, ...]) -> dict[str, float]:
    """Seconds of 64 noised windows, and gigabytes of `visuomotor train`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [options.python, "-c", RUN, "visuomotor", "train", "pusht-image", "--data", options.data]
        command += ["--output", f"{folder}/run", "--steps", str(options.steps), "--device", options.device]
        command += ["--log-every", str(WINDOW[options.device])]
        command += ["--batch-size", str(BATCH), "--threads", str(options.threads), "--ema-max-decay", "0"]
        command += ["--down-dims", *map(str, dims), *options.ours]
        printed, gigabytes = watch(command, options)
        metrics = Path(folder, "run/metrics.jsonl")
        if not metrics.is_file():
            raise SystemExit(f"visuomotor train wrote no metrics:\n{printed[-3000:]}")
        lines = [json.loads(line) for line in metrics.read_text().splitlines()][1:]
        draws = json.loads(Path(folder, "run/config.json").read_text())["recipe"]["training"]["noise_draws"]
    seconds = statistics.median(BATCH / line["samples_per_second"] / draws for line in lines)
    return {"seconds": seconds, "gigabytes": gigabytes}


def watch(command: list[str], options: argparse.Namespace) -> tuple[str, float]:
    """What a command printed, and the most memory in GB: anonymous of it and its children, or on the GPU."""
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    highest = 0
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT, text=True, env=environment)
        while process.poll() is None:
            highest = max(highest, sum(anonymous(number) for number in family(process.pid)))
            time.sleep(0.1)
        printed.seek(0)
        told = printed.read()
    if options.device == "cuda":
        highest = int((re.findall(r"most bytes on the GPU: (\d+)", told) or [0])[-1])
    return told, highest / 1e9


def family(root: int) -> list[int]:
    """A process and those that it started, directly or not."""
    found = [root]
    for number in found:
        for task in Path(f"/proc/{number}/task").glob("*/children"):
            try:
                found += map(int, task.read_text().split())
            except OSError:  # it ended just now
                continue
    return found


def anonymous(number: int) -> int:
    """Bytes of a process that are no pages of files."""
    try:
        status = Path(f"/proc/{number}/status").read_text()
    except OSError:
        return 0
    return sum(1024 * int(size) for size in re.findall(r"(?:RssAnon|RssShmem):\s+(\d+) kB", status))


if __name__ == "__main__":
    main()
