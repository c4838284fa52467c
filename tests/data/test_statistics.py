"""Statistics equal numpy's, over blocks and for dimensions that never change."""

import numpy as np
import pytest

from visuomotor.data.statistics import BLOCK, describe


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
