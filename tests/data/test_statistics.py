"""Statistics equal numpy's, over blocks and for dimensions that never change."""

import numpy as np
import pytest

from visuomotor.data.statistics import BLOCK, aggregate, describe


def test_numbers_over_several_blocks_equal_numpys():
    values = np.random.default_rng(0).normal(1e4, 0.01, (2 * BLOCK + 7, 3)).astype(np.float32)
    found, exact = describe(values), values.astype(np.float64)
    np.testing.assert_array_equal(found["min"], values.min(axis=0))
    np.testing.assert_array_equal(found["max"], values.max(axis=0))
    np.testing.assert_allclose(found["mean"], exact.mean(axis=0), rtol=1e-7)
    np.testing.assert_allclose(found["std"], exact.std(axis=0), rtol=1e-6)
    assert found["count"].tolist() == [len(values)]


def test_images_are_described_by_channel_in_0_to_1():
    images = np.random.default_rng(0).integers(3, 250, (BLOCK + 3, 5, 4, 3), dtype=np.uint8)
    images[0, 0, 0] = [0, 1, 255]
    found, exact = describe(images), images.astype(np.float64) / 255
    for name, values in (("min", exact.min((0, 1, 2))), ("max", exact.max((0, 1, 2)))):
        assert found[name].shape == (3, 1, 1)
        np.testing.assert_array_equal(found[name].ravel(), values.astype(np.float32))
    np.testing.assert_allclose(found["mean"].ravel(), exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(found["std"].ravel(), exact.std((0, 1, 2)), rtol=1e-6)
    assert found["count"].tolist() == [BLOCK + 3]


@pytest.mark.parametrize("values", [np.full((BLOCK + 1, 2), 0.1, np.float32), np.full((9, 2, 2, 3), 77, np.uint8)])
def test_what_never_changes_has_deviation_0(values):
    found = describe(values)
    assert (found["std"] == 0).all()
    np.testing.assert_array_equal(found["min"], found["max"])
    np.testing.assert_allclose(found["mean"], found["min"], rtol=1e-7)


def test_a_column_of_scalars_has_one_dimension():
    assert describe(np.array([1.0, 3.0]))["mean"].tolist() == [2.0]


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
def test_numbers_of_any_shape_are_numbers(shape):
    values = np.random.default_rng(0).normal(size=(20, *shape)).astype(np.float32)
    found = describe(values)
    assert found["mean"].shape == (shape or (1,))
    np.testing.assert_allclose(found["std"].ravel(), values.astype(np.float64).std(axis=0).ravel(), rtol=1e-6)


def test_statistics_of_parts_are_those_of_the_whole():
    values = np.random.default_rng(0).normal(1e3, 5, (60, 3))
    parts = [describe(part) for part in np.split(values, [7, 20])]
    found, expected = aggregate(parts), describe(values)
    for name, value in expected.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        np.testing.assert_allclose(found[name], value, rtol=1e-5)


def test_parts_weigh_by_their_count_and_may_be_images():
    shape = (3, 1, 1)
    parts = [
        {name: np.full(shape, value) for name, value in numbers.items()} | {"count": np.array([count])}
        for count, numbers in (
            (1, {"min": 0, "max": 1, "mean": 0.2, "std": 0}),
            (3, {"min": -1, "max": 0, "mean": 1, "std": 2}),
        )
    ]
    found = aggregate(parts)
    assert [found[name].ravel()[0] for name in ("min", "max")] == [-1, 1]
    assert found["mean"].ravel()[0] == np.float32(0.8)
    assert found["std"].ravel()[0] == np.float32(np.sqrt((0.6**2 + 3 * (4 + 0.2**2)) / 4))
    assert (found["mean"].shape, found["count"].tolist()) == (shape, [4])
