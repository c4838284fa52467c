"""Batches gathered where the data lie are those of the data set, bit for bit."""

import numpy as np
import pytest
import torch

from visuomotor.data import resident
from visuomotor.data.dataset import Dataset, load_dataset
from visuomotor.data.resident import Resident, place

from .synthetic import write_lerobot

STEPS = {"observation.image": [-1, 0], "observation.state": [-2, 0], "action": [-1, 0, 1, 7]}


@pytest.mark.parametrize("block", [1, 40_000, resident.BLOCK])
@pytest.mark.parametrize("kept", ["stored", "encoded"])
def test_a_batch_is_that_of_the_data_set(tmp_path, monkeypatch, block, kept):
    if kept == "encoded":
        monkeypatch.setenv("VISUOMOTOR_CACHE_LIMIT", "0")
    monkeypatch.setattr(resident, "BLOCK", block)
    dataset = load_dataset(write_lerobot(tmp_path, "video"))
    assert isinstance(dataset.frames["observation.image"], np.ndarray) == (kept == "stored")
    there = Resident(dataset, STEPS, "cpu")
    rows = np.array([17, 0, 4, 5, 5, 9])
    found, expected = there.batch(rows, STEPS), dataset.batch(rows, STEPS)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].stride() == value.stride()
        assert torch.equal(found[name], value)
    assert found["observation.image"][0, 1, 0, 0, 0] != found["observation.image"][1, 1, 0, 0, 0]
    assert found["action_is_pad"].any() and not found["action_is_pad"].all()


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_the_values_lie_on_the_device(tmp_path, device):
    batch = Resident(load_dataset(write_lerobot(tmp_path)), ["action"], device).batch(np.arange(3), {"action": [0, 1]})
    assert {name: (value.device.type, value.shape) for name, value in batch.items()} == {
        "action": (device, (3, 2, 2)),
        "action_is_pad": (device, (3, 2)),
    }


def bytes_of(dataset: Dataset) -> int:
    frames = dataset.frames["observation.image"]
    return frames.nbytes + sum(dataset.arrays[name].nbytes for name in ("observation.state", "action"))


def test_they_lie_there_if_they_take_no_more_than_half_of_its_free_memory(tmp_path, monkeypatch, capsys):
    dataset = load_dataset(write_lerobot(tmp_path, "image"))
    free = [2 * bytes_of(dataset)]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[0], 10**12))
    assert isinstance(place(dataset, STEPS, "cpu", wanted=True), Resident)
    assert "0.3 MB of frames and columns lie on cpu; --data-device cpu leaves them" in capsys.readouterr().err
    assert place(dataset, STEPS, "cpu", wanted=False) is dataset
    assert "stay in the processor's memory (--data-device cpu): each batch is copied" in capsys.readouterr().err
    free[0] -= 2
    assert place(dataset, STEPS, "cpu", wanted=True) is dataset
    assert "(more than 0.3 MB, half of what is free on cpu): each batch" in capsys.readouterr().err
