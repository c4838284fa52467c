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

    .venv/bin/python benchmarks/two_cameras.py ARM
    .venv/bin/python benchmarks/loading.py ARM --lerobot .venv-lerobot/bin/python --resize 240 320 \\
        --batches 3 --rounds 3 --output benchmarks/loading-two-cameras.json

A robot's frames are resized by both, and cropped to nine tenths of that, as the preset `arm` does: LeRobot resizes
those of every batch in its encoder, we resize once, while they are decoded.
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

BATCH, LAST = 64, 7  # windows; frames at an episode's end where no window begins
CROP, CROP_RATIO = (84, 84), 0.9  # pixels; share of a resized image
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
from torchvision.transforms import CenterCrop, Compose, RandomCrop, Resize

job = json.load(open(sys.argv[1]))
order = np.load(job["order"])
root, crop, images = job["root"], job["crop"], job["images"]
smaller = [Resize(job["resize"])] if job["resize"] else []

def prepare(batch, preprocessor, cut):
    for image in images:
        batch[image] = batch[image].to(dtype=torch.float32) / 255.0
    batch = preprocessor(batch)
    for image in images:
        batch[image] = cut(batch[image].flatten(0, 1))
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
                             n_action_steps=8, crop_shape=tuple(crop), resize_shape=job["resize"], device=job["device"])
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
    _, batch = run(job["setting"], Compose([*smaller, CenterCrop(crop)]), 1, 0)
    np.savez(job["values"], **{name: batch[name].contiguous().cpu().numpy() for name in job["deltas"]})
else:
    seconds, _ = run(job["setting"], Compose([*smaller, RandomCrop(crop)]), job["batches"], job["warm"])
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
        """Samples a second; 0 if LeRobot fails at this setting.

        Its workers hold four batches each ready: what is timed is twice as many, or more.
        """
        done = self._run(setting, batches=max(8 * setting["num_workers"], self.job["batches"]))
        if done.returncode:
            print(f"LeRobot, {setting}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            return 0
        told = json.loads(done.stdout.splitlines()[-1])
        self.versions = told["versions"]
        return told["samples_per_second"]

    def values(self, setting: dict[str, Any]) -> dict[str, np.ndarray]:
        """The first batch, cropped at the centre."""
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
        dataset: As the policy sees it, resized.
        steps: As for `Dataset.batch`.
        options: `device` is where batches are to lie (on `cuda` the data lie there too, unless frames stay encoded).
    """

    def __init__(self, dataset: Dataset, steps: dict[str, list[int]], options: argparse.Namespace):
        inputs = {name: dataset.features[name] for name in steps if name != "action"}
        outputs = {"action": dataset.features["action"]}
        # The U-Net is not used: a small one.
        config = DiffusionConfig(input_features=inputs, output_features=outputs, down_dims=(64, 64), **options.seen)
        self.dataset, self.steps, self.device = dataset, steps, options.device
        self.policy = DiffusionPolicy(config, {name: dataset.statistics[name] for name in steps}).to(self.device)
        decoded = all(isinstance(dataset.frames[image], np.ndarray) for image in config.image_features)
        self.kept = Resident(dataset, steps, self.device) if self.device == "cuda" and decoded else dataset

    def prepare(self, batch: dict[str, torch.Tensor], generator: torch.Generator | None) -> dict[str, torch.Tensor]:
        """Cropped, at random where there is a generator, and normalised."""
        config, offsets = self.policy.config, {}
        if generator is not None:
            for image, feature in config.image_features.items():
                drawn = draw_offsets((feature.shape[1], feature.shape[2]), len(batch["action"]), config, generator)
                if drawn is not None:
                    offsets[image] = send(drawn, self.device)
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
    parser.add_argument("source", help="a LeRobot v3.0 folder")
    parser.add_argument("--lerobot", required=True, help="the Python of LeRobot's environment")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where a batch is to lie")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=12, help="of LeRobot, in each round and setting; ours take 20 x")
    parser.add_argument("--threads", type=int, default=1, help="torch's here; a batch is hardly worth sharing")
    parser.add_argument("--resize", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of every frame, by both")
    parser.add_argument("--output", type=Path, help="loading.json beside this file, on a GPU loading-cuda.json")
    options = parser.parse_args()
    options.seen = {"crop_shape": CROP}
    if options.resize:
        options.resize = tuple(options.resize)
        options.seen = {"resize_shape": options.resize, "crop_ratio": CROP_RATIO}
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        os.environ["VISUOMOTOR_CACHE"] = name  # so that the store is built
        results = _measure(options, Path(name))
    name = "loading.json" if options.device == "cpu" else f"loading-{options.device}.json"
    write_json(options.output or Path(__file__).with_name(name), results)


def _measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    dataset = load_dataset(options.source, resize=options.resize)
    observed = [*dataset.camera_keys, "observation.state"]
    steps = {name: [-1, 0] for name in observed} | {"action": list(range(-1, 15))}
    order = WindowOrder(dataset.anchors(LAST), BATCH, seed=0)
    np.save(folder / "order.npy", np.concatenate([order.batch(step) for step in range(1000)]))
    deltas = {name: [step / dataset.fps for step in offsets] for name, offsets in steps.items()}
    crop = DiffusionConfig(**options.seen).crop
    job: dict[str, Any] = {"root": str(Path(options.source).resolve()), "order": str(folder / "order.npy")}
    job |= {"images": dataset.camera_keys, "deltas": deltas, "resize": options.resize, "crop": crop}
    job |= {"batch": BATCH, "batches": options.batches, "warm": 4, "device": options.device}
    lerobot = LeRobot(options.lerobot, job, folder)

    sweep = _sweep(lerobot)
    best = max(sweep, key=lambda setting: setting["samples_per_second"])
    encoded = _encoded(steps, options)
    begun = time.perf_counter()
    stored = [dataset.frames[image] for image in dataset.camera_keys]
    built = len(stored) * len(dataset) / (time.perf_counter() - begun)
    print(f"\nbuilding the store: {built:.0f} frames/s")
    ours = Ours(dataset, steps, options)
    difference = _compare(lerobot.values(best), ours, order)

    count = 20 * options.batches
    rows: dict[str, Callable[[int], float]] = {
        "LeRobot, best setting": lambda number: lerobot.rate(best),
        "Visuomotor": lambda number: ours.rate(order, number * count, count),
        "Visuomotor, without prefetch": lambda number: ours.rate(order, number * count, count, ahead=False),
        "Visuomotor, frames kept encoded": lambda number: encoded.rate(order, number * count, 2 * options.batches),
    }
    for frames in stored:
        np.asarray(frames).max()  # mapped into memory, as after the first epoch
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
        "cameras": {name: dataset.features[name].shape for name in dataset.camera_keys},
        "resize": options.resize,
        "crop": crop,
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


def _encoded(steps: dict[str, list[int]], options: argparse.Namespace) -> Ours:
    """Our loader with frames that stay encoded, in spite of the room there is."""
    os.environ["VISUOMOTOR_CACHE_LIMIT"] = "0"
    dataset = load_dataset(options.source, resize=options.resize)
    for image in dataset.camera_keys:
        dataset.frames[image]
    del os.environ["VISUOMOTOR_CACHE_LIMIT"]
    return Ours(dataset, steps, options)


def _compare(theirs: dict[str, np.ndarray], ours: Ours, order: WindowOrder) -> dict[str, float]:
    """The largest differences of the first batch: of normalised numbers, and of images in grey levels of 255."""
    batch, cameras = ours.prepare(ours.kept.batch(order.batch(0), ours.steps), None), ours.dataset.camera_keys
    difference = {}
    for name in ours.steps:
        value = batch[name].flatten(0, 1) if name in cameras else batch[name]
        assert value.dtype == torch.float32
        assert value.shape == theirs[name].shape, (name, value.shape, theirs[name].shape)
        scale = 255 * torch.as_tensor(ours.dataset.statistics[name]["std"]).numpy() if name in cameras else 1
        difference[name] = float((np.abs(value.cpu().numpy() - theirs[name]) * scale).max())
    told = ", ".join(f"{name} {value:.1e}" for name, value in difference.items())
    print(f"largest difference of a batch (images: grey levels of 255): {told}")
    for name, value in difference.items():
        assert value <= (1.001 if name in cameras else TOLERANCE), f"{name} differs by {value}"
    return difference


if __name__ == "__main__":
    main()
