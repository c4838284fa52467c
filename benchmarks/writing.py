"""Writing a data set, against LeRobot in one run: `visuomotor convert` and LeRobot's own writer, in turn.

    make lerobot  # once: LeRobot's environment
    .venv/bin/python benchmarks/writing.py PUSHT.zarr.zip --lerobot .venv-lerobot/bin/python

Both write the same episodes of the original Push-T replay buffer as LeRobot v3.0, as AV1 video and as PNG. LeRobot gets
decoded frames in memory, and its time begins when the data set is created; ours begins with the conversion, reading and
decoding included. LeRobot has the fastest of its settings here: streaming encoding, and four image writers.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

LEROBOT = """
import sys, time, numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
source, target, mode = sys.argv[1:]
data = dict(np.load(source))
shape = data["images"].shape[1:]
features = {name: {"dtype": "float32", "shape": (2,), "names": None} for name in ("observation.state", "action")}
names = ["height", "width", "channel"]
features["observation.image"] = {"dtype": "video" if mode == "av1" else "image", "shape": shape, "names": names}
begun = time.perf_counter()
options = {"streaming_encoding": True} if mode == "av1" else {"image_writer_threads": 4}
dataset = LeRobotDataset.create("a/b", 10, features, root=target, use_videos=mode == "av1", **options)
start = 0
for end in data["ends"]:
    for row in range(start, end):
        frame = {"observation.state": data["state"][row], "action": data["action"][row]}
        dataset.add_frame(frame | {"observation.image": data["images"][row], "task": "Push."})
    dataset.save_episode()
    start = end
dataset.finalize()
print(time.perf_counter() - begun)
"""


def main() -> None:
    """Prints a table of medians and the ratio, and writes JSON beside this file."""
    from visuomotor.data.conversion import convert
    from visuomotor.data.dataset import load_dataset
    from visuomotor.evaluation.evaluate import versions

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--lerobot", required=True, help="the Python of LeRobot's environment")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    episodes = list(range(options.episodes))
    dataset = load_dataset(options.source, episodes=episodes)
    results = {"frames": len(dataset), "rounds": options.rounds, "versions": versions(), "seconds": {}}
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "given.npz"
        columns = {"state": dataset.arrays["observation.state"], "action": dataset.arrays["action"]}
        np.savez(given, images=np.array(dataset.frames["observation.image"]), ends=dataset.episode_ends, **columns)
        for mode in ("av1", "png"):
            times: dict[str, list[float]] = {"LeRobot": [], "Visuomotor": []}
            for number in range(options.rounds):
                command = [options.lerobot, "-c", LEROBOT, given, f"{folder}/lerobot-{mode}-{number}", mode]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                times["LeRobot"].append(float(done.stdout.split()[-1]))
                begun = time.perf_counter()
                video = "av1" if mode == "av1" else None
                convert(options.source, f"{folder}/ours-{mode}-{number}", episodes, video=video)
                times["Visuomotor"].append(time.perf_counter() - begun)
            results["seconds"][mode] = times
            theirs, ours = (statistics.median(times[name]) for name in times)
            rates = f"LeRobot {len(dataset) / theirs:5.0f}, Visuomotor {len(dataset) / ours:5.0f} frames/s"
            print(f"{mode}: {rates}, ratio {theirs / ours:.2f}", flush=True)
    Path(__file__).with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
