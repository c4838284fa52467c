"""Shuffled batches, ready for the model, against LeRobot in one run: our frame store and LeRobot's loader, in turn.

    make lerobot  # once: LeRobot's environment
    .venv/bin/visuomotor convert PUSHT.zarr.zip SET  # LeRobot v3.0, AV1
    .venv/bin/python benchmarks/loading.py SET --lerobot .venv-lerobot/bin/python

Both read the same set, in the same shuffled order: 64 windows of 2 frames and 16 actions a batch, in float32, images
cropped to 84x84 at random, all features normalised. LeRobot does it as its own training script: a DataLoader over
frames as bytes, its preprocessor, the crop of its encoder. Its setting is the best of a sweep over workers, decoders
and threads, each in a process of its own; torchcodec gets the FFmpeg that came with PyAV, since few systems have one.
Time begins when the first batches have passed; decoding into the frame store, once for all runs, is told apart. A batch
of both, cropped at the centre, is compared.

    .venv/bin/python benchmarks/loading.py SET --lerobot .venv-lerobot/bin/python --device cuda

On a GPU a batch is ready when it lies there, cropped and normalised. LeRobot's preprocessor copies it there, and ours
gathers it there; both programs wait for the GPU before and after the time that is measured.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visuomotor.config import DiffusionConfig
from visuomotor.data.dataset import Dataset, load_dataset
from visuomotor.data.loading import prefetch, send
from visuomotor.data.order import WindowOrder
from visuomotor.data.resident import Resident
from visuomotor.evaluation.evaluate import versions
from visuomotor.files import write_json
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.policy.vision import draw_offsets

BATCH, CROP, LAST = 64, (84, 84), 7  # windows; pixels; frames at an episode's end where no window begins
SWEEP = {"num_workers": (0, 1, 2, 4), "video_backend": ("pyav", "torchcodec"), "threads": (1, 2)}
TOLERANCE = 1e-5

LEROBOT = """
import json, sys, time
import numpy as np, torch
from importlib.metadata import version
from lerobot.configs.types import FeatureType
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.processor_diffusion import make_diffusion_pre_post_processors
from lerobot.utils.feature_utils import dataset_to_policy_features
from torchvision.transforms import CenterCrop, RandomCrop

job = json.load(open(sys.argv[1]))
order = np.load(job["order"])
root, crop, image = job["root"], job["crop"], job["image"]

def prepare(batch, preprocessor, cut):
    batch[image] = batch[image].to(dtype=torch.float32) / 255.0
    batch = preprocessor(batch)
    batch["observation.images"] = cut(batch[image].flatten(0, 1))
    return batch

def wait():
    if job["device"] == "cuda":
        torch.cuda.synchronize()

def run(setting, cut, batches, warm):
    torch.set_num_threads(setting["threads"])
    dataset = LeRobotDataset("a/b", root=root, delta_timestamps=job["deltas"], return_uint8=True,
                             video_backend=setting["video_backend"])
    features = dataset_to_policy_features(dataset.meta.features)
    outputs = {k: f for k, f in features.items() if f.type is FeatureType.ACTION}
    inputs = {k: f for k, f in features.items() if k in job["deltas"] and k not in outputs}
    config = DiffusionConfig(input_features=inputs, output_features=outputs, n_obs_steps=2, horizon=16,
                             n_action_steps=8, crop_shape=tuple(crop), device=job["device"])
    preprocessor, _ = make_diffusion_pre_post_processors(config, dataset.meta.stats)
    workers = setting["num_workers"]
    loader = torch.utils.data.DataLoader(dataset, batch_size=job["batch"], sampler=order.tolist(), num_workers=workers,
                                         prefetch_factor=4 if workers else None, persistent_workers=workers > 0)
    found, last = iter(loader), None
    for _ in range(warm):
        last = prepare(next(found), preprocessor, cut)
    wait()
    begun = time.perf_counter()
    for _ in range(batches):
        last = prepare(next(found), preprocessor, cut)
    wait()
    return time.perf_counter() - begun, last

if "values" in job:
    _, batch = run(job["setting"], CenterCrop(crop), 1, 0)
    np.savez(job["values"], image=batch["observation.images"].contiguous().cpu().numpy(),
             state=batch["observation.state"].cpu().numpy(), action=batch["action"].cpu().numpy())
else:
    seconds, _ = run(job["setting"], RandomCrop(crop), job["batches"], job["warm"])
    versions = {name: version(name) for name in ("lerobot", "torch", "torchcodec", "av")}
    print(json.dumps({"versions": versions, "samples_per_second": job["batches"] * job["batch"] / seconds}))
"""


class LeRobot:
    """LeRobot's loader, run by the Python of its own environment.

    Args:
        python: That Python.
        job: What every run is told.
        folder: For files of the runs.
    """

    def __init__(self, python: str, job: dict[str, Any], folder: Path):
        self.python, self.job, self.folder = python, job, folder
        self.versions: dict[str, str] = {}
        self.environment = os.environ | {"HF_HUB_OFFLINE": "1", "LD_LIBRARY_PATH": str(_own_ffmpeg(python, folder))}

    def rate(self, setting: dict[str, Any]) -> float:
        """Samples a second; 0 if LeRobot fails at this setting."""
        done = self._run(setting)
        if done.returncode:
            print(f"LeRobot, {setting}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            return 0
        told = json.loads(done.stdout.splitlines()[-1])
        self.versions = told["versions"]
        return told["samples_per_second"]

    def values(self, setting: dict[str, Any]) -> dict[str, np.ndarray]:
        """The first batch, cropped at the centre: `image`, `state` and `action`."""
        path = self.folder / "values.npz"
        self._run(setting | {"num_workers": 0}, values=str(path)).check_returncode()
        return dict(np.load(path))

    def _run(self, setting: dict[str, Any], **job: Any) -> subprocess.CompletedProcess[str]:
        path = self.folder / "job.json"
        write_json(path, self.job | job | {"setting": setting})
        command = [self.python, "-c", LEROBOT, str(path)]
        return subprocess.run(command, capture_output=True, text=True, env=self.environment)


def _own_ffmpeg(python: str, folder: Path) -> Path:
    """A folder of links to the FFmpeg inside PyAV's wheel, by the names under which torchcodec looks for it."""
    script = "import av, os; print(os.path.dirname(av.__file__))"
    package = Path(subprocess.run([python, "-c", script], check=True, capture_output=True, text=True).stdout.strip())
    links = folder / "ffmpeg"
    links.mkdir()
    for library in (package.parent / "av.libs").glob("*.so*"):
        stem, _, number = library.name.partition(".so")
        (links / library.name).symlink_to(library)
        if stem.startswith(("libav", "libsw")):
            (links / f"{stem.rpartition('-')[0]}.so.{number.split('.')[1]}").symlink_to(library)
    return links


class Ours:
    """Visuomotor's loader: `Dataset.batch` and what the policy does before its network.

    Args:
        dataset: Push-T, or another set of one camera.
        image: The camera.
        steps: As for `Dataset.batch`.
        device: Where batches are to lie. On `cuda` the data lie there too, unless frames stay encoded.
    """

    def __init__(self, dataset: Dataset, image: str, steps: dict[str, list[int]], device: str):
        inputs = {name: dataset.features[name] for name in steps if name != "action"}
        outputs = {"action": dataset.features["action"]}
        # The U-Net is not used: a small one.
        config = DiffusionConfig(input_features=inputs, output_features=outputs, crop_shape=CROP, down_dims=(64, 64))
        self.dataset, self.image, self.steps, self.device = dataset, image, steps, device
        self.policy = DiffusionPolicy(config, {name: dataset.statistics[name] for name in steps}).to(device)
        there = device == "cuda" and isinstance(dataset.frames[image], np.ndarray)
        self.kept = Resident(dataset, steps, device) if there else dataset

    def prepare(self, batch: dict[str, torch.Tensor], generator: torch.Generator | None) -> dict[str, torch.Tensor]:
        """Cropped, at random where there is a generator, and normalised."""
        size, offsets = self.policy.config.image_features[self.image].shape[1:], {}
        if generator is not None:
            drawn = draw_offsets((size[0], size[1]), len(batch["action"]), self.policy.config, generator)
            assert drawn is not None
            offsets = {self.image: send(drawn, self.device)}
        prepared = self.policy._prepare(batch, offsets)
        return prepared | {"action": self.policy.normalizer("action", batch["action"].to(self.device))}

    def rate(self, order: WindowOrder, first: int, count: int, ahead: bool = True) -> float:
        """Samples a second over the batches of some steps."""

        def gather(step: int) -> dict[str, torch.Tensor]:
            return send(self.kept.batch(order.batch(step), self.steps), self.device)

        def wait() -> None:
            if self.device == "cuda":
                torch.cuda.synchronize()

        steps: Iterable[int] = range(first, first + count)
        found = prefetch(gather, steps) if ahead else map(gather, steps)
        wait()
        begun = time.perf_counter()
        for step, batch in zip(steps, found, strict=True):
            self.prepare(batch, torch.Generator().manual_seed(step))
        wait()
        return count * order.batch_size / (time.perf_counter() - begun)


def main() -> None:
    """Prints tables of the sweep, of medians and of ratios, and writes JSON beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a LeRobot v3.0 folder of one camera")
    parser.add_argument("--lerobot", required=True, help="the Python of LeRobot's environment")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where a batch is to lie")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=12, help="of LeRobot, in each round and setting; ours take 20 x")
    parser.add_argument("--threads", type=int, default=1, help="torch's here; a batch is hardly worth sharing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        os.environ["VISUOMOTOR_CACHE"] = name  # so that the store is built
        results = _measure(options, Path(name))
    name = "loading.json" if options.device == "cpu" else f"loading-{options.device}.json"
    write_json(Path(__file__).with_name(name), results)


def _measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    dataset = load_dataset(options.source)
    (image,) = dataset.camera_keys
    steps = {image: [-1, 0], "observation.state": [-1, 0], "action": list(range(-1, 15))}
    order = WindowOrder(dataset.anchors(LAST), BATCH, seed=0)
    np.save(folder / "order.npy", np.concatenate([order.batch(step) for step in range(1000)]))
    deltas = {name: [step / dataset.fps for step in offsets] for name, offsets in steps.items()}
    job: dict[str, Any] = {"root": str(Path(options.source).resolve()), "order": str(folder / "order.npy")}
    job |= {"image": image, "deltas": deltas, "crop": CROP, "batch": BATCH, "batches": options.batches, "warm": 4}
    job["device"] = options.device
    lerobot = LeRobot(options.lerobot, job, folder)

    sweep = _sweep(lerobot)
    best = max(sweep, key=lambda setting: setting["samples_per_second"])
    encoded = _encoded(options.source, folder, image, steps, options.device)
    begun = time.perf_counter()
    dataset.frames[image]
    built = len(dataset) / (time.perf_counter() - begun)
    print(f"\nbuilding the store: {built:.0f} frames/s")
    ours = Ours(dataset, image, steps, options.device)
    difference = _compare(lerobot.values(best), ours, order)

    count = 20 * options.batches
    rows: dict[str, Callable[[int], float]] = {
        "LeRobot, best setting": lambda number: lerobot.rate(best),
        "Visuomotor": lambda number: ours.rate(order, number * count, count),
        "Visuomotor, without prefetch": lambda number: ours.rate(order, number * count, count, ahead=False),
        "Visuomotor, frames kept encoded": lambda number: encoded.rate(order, number * count, 2 * options.batches),
    }
    np.asarray(dataset.frames[image]).max()  # mapped into memory, as after the first epoch
    rates: dict[str, list[float]] = {name: [] for name in rows}
    for number in range(options.rounds):
        for name, measure in rows.items():
            rates[name].append(measure(number))
    return {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "gpu_gigabytes": torch.cuda.max_memory_allocated() / 1e9 if options.device == "cuda" else 0,
        "threads": options.threads,
        "cores": os.cpu_count(),
        "frames": len(dataset),
        "versions": versions(),
        "lerobot": lerobot.versions,
        "best_setting": best,
        "sweep": sweep,
        "store_frames_per_second": built,
        "largest_difference": difference,
        "samples_per_second": rates,
        "ratios": _ratios(rates),
    }


def _ratios(rates: dict[str, list[float]]) -> dict[str, float]:
    """Medians over LeRobot's, printed."""
    medians = {name: statistics.median(found) for name, found in rates.items()}
    base = medians[next(iter(medians))]
    print(f"\n{'samples/s, medians':34}{'':8}   ratio")
    for name, median in medians.items():
        print(f"{name:34}{median:8.0f}{median / base:8.1f}")
    return {name: median / base for name, median in medians.items()}


def _sweep(lerobot: LeRobot) -> list[dict[str, Any]]:
    """Every setting of LeRobot's loader, printed."""
    print("LeRobot: samples/s by number of workers")
    print(f"{'decoder':14}{'threads':>8}" + "".join(f"{workers:8}" for workers in SWEEP["num_workers"]))
    sweep = []
    for backend in SWEEP["video_backend"]:
        for threads in SWEEP["threads"]:
            print(f"{backend:14}{threads:8}", end="", flush=True)
            for workers in SWEEP["num_workers"]:
                setting = {"video_backend": backend, "threads": threads, "num_workers": workers}
                rate = lerobot.rate(setting)
                print(f"{rate:8.0f}", end="", flush=True)
                sweep.append(setting | {"samples_per_second": rate})
            print()
    return sweep


def _encoded(source: str, folder: Path, image: str, steps: dict[str, list[int]], device: str) -> Ours:
    """Our loader with frames that stay encoded, in spite of the room there is."""
    os.environ["VISUOMOTOR_CACHE_LIMIT"] = "0"
    dataset = load_dataset(source)
    dataset.frames[image]
    del os.environ["VISUOMOTOR_CACHE_LIMIT"]
    return Ours(dataset, image, steps, device)


def _compare(theirs: dict[str, np.ndarray], ours: Ours, order: WindowOrder) -> dict[str, float]:
    """The largest differences of the first batch: of normalised numbers, and of images in grey levels of 255."""
    batch = ours.prepare(ours.kept.batch(order.batch(0), ours.steps), None)
    found = {"state": batch["observation.state"], "action": batch["action"], "image": batch[ours.image].flatten(0, 1)}
    scale = 255 * torch.as_tensor(ours.dataset.statistics[ours.image]["std"]).numpy()
    difference = {}
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert value.shape == theirs[name].shape, (name, value.shape, theirs[name].shape)
        apart = np.abs(value.cpu().numpy() - theirs[name])
        difference[name] = float((apart * scale if name == "image" else apart).max())
    told = ", ".join(f"{name} {value:.1e}" for name, value in difference.items())
    print(f"largest difference of a batch (image: grey levels of 255): {told}")
    assert difference["image"] <= 1.001, "decoders differ by more than one grey level"
    assert max(difference["state"], difference["action"]) <= TOLERANCE
    return difference


if __name__ == "__main__":
    main()
