"""Acts with the exported policy in the folder of this file: numpy and one engine, no Visuomotor.

    python act.py  # plans once from nothing, and says how long a plan takes

    from act import Policy

    policy = Policy("this/folder")
    policy.reset()  # when an episode begins
    while robot.is_running():
        robot.move_to(policy.select_action(robot.observe()))  # arrays by name without batch axis -> (Da,)

The folder holds `export.json` (names, shapes, normalisation, the sampler as numbers), `hashes.json` and four graphs:

    encoder    images of each camera (rows, C, H, W), float32 in [0, 1] -> (rows, numbers); where there are cameras
    condition  what was observed, normalised, (rows, G) -> its share of what every layer is told (rows, F)
    steps      denoising steps (rows,) -> their share (rows, F); it depends on nothing else, and is computed once
    denoiser   noisy actions (rows, Tp, Da) and the sum of both shares (rows, F) -> the network's prediction
"""

import hashlib
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]
Graph = Callable[..., np.ndarray]


def open_onnx(file: Path, rows: int | None, threads: int) -> Graph:
    """A graph in ONNX Runtime; threads 0 leave the choice to the engine, as below."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if rows is not None:
        options.add_free_dimension_override_by_name("rows", rows)
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return lambda *arrays: np.asarray(session.run(None, dict(zip(names, arrays, strict=True)))[0])


def open_openvino(file: Path, rows: int | None, threads: int) -> Graph:
    """A graph in OpenVINO."""
    import openvino

    core = openvino.Core()
    model = core.read_model(file)
    if rows is not None:
        model.reshape({given: [rows, *list(given.partial_shape)[1:]] for given in model.inputs})
    # Some processors would compute in bfloat16 unasked, which is wrong in the second digit.
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda *arrays: request.infer(arrays, share_inputs=True)[0]


def open_torch(file: Path, rows: int | None, threads: int) -> Graph:
    """A graph in torch, whose threads are the whole process's. The file is a program: take none from strangers."""
    import zipfile

    import torch

    with zipfile.ZipFile(file) as archive:
        told = [archive.read(name) for name in archive.namelist() if name.endswith("_config.json")]
        samples = [one for one in archive.infolist() if "/sample_inputs/" in one.filename and one.file_size]
    if samples or any(b'"use_pickle": true' in one for one in told):
        raise ValueError(f"{file}: expected nothing pickled, got pickles; export the policy again")
    if threads:
        torch.set_num_threads(threads)
    module = torch.export.load(file).module()

    def run(*arrays: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(*map(torch.from_numpy, arrays)).numpy()

    return run


ENGINES = {"onnx": (open_onnx, ".onnx"), "openvino": (open_openvino, ".xml"), "torch": (open_torch, ".pt2")}


FIXED = ("condition", "denoiser")
"""Graphs that are compiled once more for one row, which is faster. OpenVINO 2026.4 fails to compile the others so."""


class Graphs:
    """The graphs of a folder, opened when they are first used."""

    def __init__(self, folder: Path, engine: str, threads: int = 0):
        self._folder, self._threads = folder, threads
        self._fixed = () if engine == "torch" else FIXED
        self._open, self._suffix = ENGINES[engine]
        self._opened: dict[tuple[str, int | None], Graph] = {}

    def __call__(self, name: str, *arrays: np.ndarray) -> np.ndarray:
        """What a graph gives for arrays of as many rows each."""
        rows = 1 if len(arrays[0]) == 1 and name in self._fixed else None
        if (name, rows) not in self._opened:
            file = self._folder / f"{name}{self._suffix}"
            self._opened[name, rows] = self._open(file, rows, self._threads)
        return self._opened[name, rows](*map(np.ascontiguousarray, arrays))


class Policy:
    """Plans chunks of actions, and acts with a queue.

    Args:
        folder: Of the export; None takes that of this file.
        threads: Of the engine; 0 leaves the choice to it.
    """

    def __init__(self, folder: str | Path | None = None, threads: int = 0):
        folder = Path(__file__).parent if folder is None else Path(folder)
        check(folder)
        self.told: dict[str, Any] = json.loads((folder / "export.json").read_text())
        self.graphs = Graphs(folder, self.told["engine"], threads)
        self._of_steps = self.graphs("steps", np.array(self.told["timesteps"], np.float32))
        self.reset()

    def reset(self) -> None:
        """Forgets the past: call it when an episode begins."""
        self._frames: deque[Arrays] = deque(maxlen=self.told["n_obs_steps"])
        self._actions: deque[np.ndarray] = deque()

    def select_action(self, observation: Arrays) -> np.ndarray:
        """The next action, (Da,) in data units, for the present observation: images (C, H, W), states (D,)."""
        self._frames.extend([observation] * (1 if self._frames else self.told["n_obs_steps"]))
        if not self._actions:
            names = self.told["observations"]
            plan = self.plan({name: np.stack([frame[name] for frame in self._frames])[None] for name in names})
            now = self.told["n_obs_steps"] - 1
            self._actions.extend(plan[0, now : now + self.told["n_action_steps"]])
        return self._actions.popleft()

    def plan(self, observation: Arrays, noise: np.ndarray | None = None) -> np.ndarray:
        """The actions of the whole horizon, (B, Tp, Da) in data units, from the oldest observed step on.

        Args:
            observation: Images uint8, or floats in [0, 1], (B, To, C, H, W); states in data units, (B, To, D).
            noise: (`noise_draws`, B, Tp, Da), the start and what the sampler adds later; None draws it.
        """
        action, limit = self.told["action"], self.told["clip"]
        condition = self.graphs("condition", self._observed(observation))
        if noise is None:
            shape = (self.told["noise_draws"], len(condition), self.told["horizon"], *action["shape"])
            noise = np.random.default_rng().standard_normal(shape, dtype=np.float32)
        x, before = noise[0], np.float32(0)
        for i, (step, of_step) in enumerate(zip(self.told["sampler"], self._of_steps, strict=True)):
            prediction = self.graphs("denoiser", x, condition + of_step)
            clean = np.float32(step["clean"]["x"]) * x + np.float32(step["clean"]["prediction"]) * prediction
            clean = clean if limit is None else clean.clip(-limit, limit)
            drawn = noise[i + 1] if "noise" in step["next"] else np.float32(0)
            known = {"x": x, "prediction": prediction, "clean": clean, "before": before, "noise": drawn}
            x = np.sum([np.float32(share) * known[name] for name, share in step["next"].items()], axis=0)
            before = clean
        return x * np.float32(action["scale"]) + np.float32(action["offset"])

    def _observed(self, observation: Arrays) -> np.ndarray:
        """The numbers of all observed steps side by side, (B, G): state, cameras, environment."""
        states, cameras = {}, []
        for name, feature in self.told["observations"].items():
            values, shape = np.asarray(observation[name]), feature["shape"]
            if list(values.shape[1:]) != [self.told["n_obs_steps"], *shape]:
                raise ValueError(f"{name}: expected (B, {self.told['n_obs_steps']}, *{shape}), got {values.shape}")
            if len(shape) == 3:
                cameras.append(as_floats(values).reshape(-1, *shape))
            else:
                states[name] = (np.float32(values) - np.float32(feature["offset"])) / np.float32(feature["scale"])
        seen = [self.graphs("encoder", *cameras).reshape(*values.shape[:2], -1)] if cameras else []
        named = [states[name] for name in ("observation.state", "observation.environment_state") if name in states]
        parts = [*named[:1], *seen, *named[1:]] if "observation.state" in states else [*seen, *named]
        return np.concatenate(parts, axis=-1).reshape(len(values), -1)


def as_floats(images: np.ndarray) -> np.ndarray:
    """Bytes as float32 in [0, 1]; floats are that already."""
    floats = images.astype(np.float32)
    return floats / np.float32(255) if images.dtype == np.uint8 else floats


def check(folder: Path) -> None:
    """Compares every file with its SHA-256 in `hashes.json`: a damaged policy must not move a robot.

    Raises:
        ValueError: A file has been altered.
    """
    for name, noted in json.loads((folder / "hashes.json").read_text())["files"].items():
        with (folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != noted["sha256"]:
                raise ValueError(f"{folder / name}: expected the file that was exported, got another; copy it again")


def main() -> None:
    """Plans from nothing, and prints the actions and the median time."""
    policy = Policy(threads=int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    steps, features = policy.told["n_obs_steps"], policy.told["observations"]
    observation = {name: np.zeros((1, steps, *one["shape"]), np.float32) for name, one in features.items()}
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        plan = policy.plan(observation)
        seconds.append(time.perf_counter() - began)
    print(np.array_str(plan[0], precision=2, suppress_small=True))
    print(f"{1000 * float(np.median(seconds)):.1f} ms a plan: {policy.told['engine']}, {policy.told['precision']}")


if __name__ == "__main__":
    main()
