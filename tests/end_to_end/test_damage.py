"""Hundreds of damaged data sets and checkpoints: refused by one error that names a file, or loaded as the intact one.

Damage is made by rule and by a seed: files cut, emptied, missing or replaced by a pickle; JSON values of another type
or out of range; paths that lead outside; columns and tensors missing, empty, not finite, of another type or count. A
number that may as well be right (a statistic that is -1) is no damage that can be seen, and is left out.
"""

import copy
import json
import pickle
import random
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from visuomotor.data.dataset import load_dataset
from visuomotor.errors import CheckpointError, ConfigError, DatasetError
from visuomotor.policy.checkpoint import load_policy, save_policy
from visuomotor.policy.lerobot_export import save_lerobot

from ..data.synthetic import write_legacy, write_lerobot
from ..policy import lerobot_folders

Damage = tuple[str, Callable[[Path], None]]
WRONG = ["x", [], {}]
OUTSIDE = ["../../outside", "/etc/passwd", "a/../../b", "C:\\x", "\x00"]
BOMB = pickle.dumps({"loaded": 1})


class Unpickled(Exception):
    """Raised by whatever unpickles."""


@pytest.fixture(autouse=True)
def nothing_is_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise Unpickled

    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)


def of_files(folder: Path, draw: random.Random) -> Iterator[Damage]:
    """Every file cut at places, emptied, gone, and a pickle in its stead."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, content = path.relative_to(folder), path.read_bytes()
        for length in {0, 1, *(draw.randrange(len(content)) for _ in range(4)), len(content) - 1}:
            yield f"{name} cut to {length}", write(name, content[:length])
        yield f"{name} gone", lambda copied, name=name: (copied / name).unlink()
        yield f"{name} a pickle", write(name, BOMB)


def write(name: Path, content: bytes) -> Callable[[Path], None]:
    return lambda copied: (copied / name).write_bytes(content) and None


def of_json(folder: Path, pattern: str) -> Iterator[Damage]:
    """Every value of JSON files by one of another type or out of range, and texts by paths that lead outside."""
    for path in sorted(folder.rglob(pattern)):
        name, content = path.relative_to(folder), json.loads(path.read_text())
        for place in places(content):
            before = at(content, place)
            wrong = [value for value in WRONG if type(value) is not type(before)]
            if isinstance(before, int):
                wrong.append(-1)
            if isinstance(before, str) and str(place[-1]).endswith(("_path", "file")):
                wrong += OUTSIDE
            for value in wrong:
                changed = copy.deepcopy(content)
                at(changed, place[:-1])[place[-1]] = value
                yield f"{name} {place} = {value!r}", write(name, json.dumps(changed).encode())


def places(content: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a JSON's values are; of lists the first entry."""
    if place:
        yield place
    inside = content if isinstance(content, dict) else range(min(len(content), 1)) if isinstance(content, list) else ()
    for key in inside:
        yield from places(content[key], (*place, key))


def at(content: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        content = content[key]
    return content


def of_tables(folder: Path) -> Iterator[Damage]:
    """Every column of parquet files."""
    for path in sorted(folder.rglob("*.parquet")):
        name, table = path.relative_to(folder), pq.read_table(path)
        rows = table.num_rows
        for at, column in enumerate(table.column_names):
            changes = {
                "gone": table.drop_columns([column]),
                "null": table.set_column(at, column, pa.nulls(rows)),
                "text": table.set_column(at, column, pa.array(["x"] * rows)),
                "lists": table.set_column(at, column, pa.array([[1.0, 2.0, 3.0]] * rows)),
                "NaN": table.set_column(at, column, pa.array([float("nan")] * rows)),
            }
            if pa.types.is_integer(table[column].type):
                changes["negative"] = table.set_column(at, column, pa.array([-1] * rows))
                changes["large"] = table.set_column(at, column, pa.array([2**62] * rows))
            for what, changed in changes.items():
                yield f"{name} {column} {what}", lambda copied, n=name, t=changed: pq.write_table(t, copied / n)
        for what, changed in (("a row less", table.slice(1)), ("twice", pa.concat_tables([table, table]))):
            yield f"{name} {what}", lambda copied, n=name, t=changed: pq.write_table(t, copied / n)


def of_tensors(folder: Path, draw: random.Random) -> Iterator[Damage]:
    """Tensors of safetensors files, six of each."""
    for path in sorted(folder.rglob("*.safetensors")):
        name, tensors = path.relative_to(folder), load_file(path)
        for key in draw.sample(sorted(tensors), min(6, len(tensors))):
            value = tensors[key]
            changes = {
                "gone": None,
                "longer": torch.cat([value.flatten(), value.flatten()]),
                "whole numbers": torch.zeros(value.shape, dtype=torch.int64),
                "NaN": torch.full_like(value, float("nan")),
                "renamed": value,
            }
            for what, changed in changes.items():
                new = {k: v for k, v in tensors.items() if k != key}
                if changed is not None:
                    new[f"{key}.x" if what == "renamed" else key] = changed
                yield f"{name} {key} {what}", lambda copied, n=name, t=new: save_file(t, copied / n)


def tally(good: Path, damages: list[Damage], error: Any, load: Callable[[Path], Any], same: Callable) -> Counter[str]:
    """Loads every damaged copy; what is neither refused properly nor equal fails the test, all of it listed."""
    intact, counts, faults = load(good), Counter(), []
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    folder = good.with_name("damaged")
    for what, damage in damages:
        shutil.copytree(good, folder)
        damage(folder)
        begun = time.monotonic()
        try:
            found = load(folder)
            counts["equal"] += 1
            if not same(found, intact):
                faults.append(f"{what}: loads as something else")
        except error as refusal:
            counts["refused"] += 1
            message = str(refusal)
            if "\n" in message or not any(known in message for known in (str(folder), "meta/", folder.name)):
                faults.append(f"{what}: names no file: {message}")
        except Exception as other:
            faults.append(f"{what}: {type(other).__name__}: {other}")
        if time.monotonic() - begun > 5:
            faults.append(f"{what}: {time.monotonic() - begun:.1f} s")
        shutil.rmtree(folder)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 2**20  # GiB on Linux
    assert not faults, f"{len(faults)} of {len(damages)}:\n" + "\n".join(faults)
    assert grown < 1, f"{grown:.1f} GiB"
    print(f"{good.name}: {len(damages)} damaged, {dict(counts)}")
    return counts


def load_all(folder: Path) -> dict[str, np.ndarray]:
    """Every column and frame that the data set declares."""
    dataset = load_dataset(folder)
    for name in dataset.features:
        assert np.isfinite(dataset.statistics[name]["mean"]).all()
    return dict(dataset.arrays) | {name: np.array(dataset.frames[name]) for name in dataset.camera_keys}


def equal_columns(found: dict[str, np.ndarray], intact: dict[str, np.ndarray]) -> bool:
    """Those that are still declared."""
    return all(name in intact and np.array_equal(values, intact[name]) for name, values in found.items())


@pytest.mark.parametrize("kind", ["v3.0 images", "v3.0 video", "v2.1 video", "v2.0 images"])
def test_damaged_data_sets(tmp_path: Path, kind: str) -> None:
    version, camera = kind.split()
    camera, good = camera.removesuffix("s"), tmp_path / "good"
    write_lerobot(good, camera) if version == "v3.0" else write_legacy(good, version, camera)
    draw = random.Random(kind)
    damages = [*of_files(good, draw), *of_json(good, "info.json"), *of_json(good, "stats.json"), *of_tables(good)]
    damages = draw.sample(damages, min(len(damages), 220))
    counts = tally(good, damages, DatasetError, load_all, equal_columns)
    assert counts["refused"] > 2 * counts["equal"]


@pytest.mark.parametrize("kind", ["ours", "LeRobot 0.6", "LeRobot 0.3", "LeRobot 2024"])
def test_damaged_checkpoints(tmp_path: Path, kind: str) -> None:
    policy, good = lerobot_folders.small(), tmp_path / "good"
    if kind == "ours":
        save_policy(policy, good)
    elif kind == "LeRobot 0.6":
        save_lerobot(policy, good)
    else:
        lerobot_folders.write_legacy(policy, good, of_2024=kind == "LeRobot 2024")
    draw = random.Random(kind)
    damages = [*of_files(good, draw), *of_json(good, "*.json"), *of_tensors(good, draw)]
    damages = draw.sample(damages, min(len(damages), 160))
    refused = (CheckpointError, ConfigError)
    counts = tally(good, damages, refused, lambda folder: lerobot_folders.actions(load_policy(folder)), torch.equal)
    assert counts["refused"] > counts["equal"]
