"""Charts: well-formed, with the data where the axes say."""

import re
from xml.etree import ElementTree

import pytest

from visuomotor.evaluation.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, histogram, line_chart


def heights(svg: str) -> list[float]:
    return [float(bar.get("height")) for bar in ElementTree.fromstring(svg).iter("rect")]


def points(svg: str) -> list[tuple[float, float]]:
    path = next(ElementTree.fromstring(svg).iter("path")).get("d")
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+),([\d.]+)", path)]


def test_histogram_counts():
    svg = histogram([0.0, 0.01, 0.5, 0.95, 0.9501, 1.0, 1.0], 0.95, "coverage", "episodes")
    bars = heights(svg)
    unit = max(bars) / 3
    assert [round(bar / unit) for bar in bars] == [2, *[0] * 8, 1, *[0] * 8, 1, 3]
    kinds = [bar.get("class") for bar in ElementTree.fromstring(svg).iter("rect")]
    assert kinds == ["bar"] * 19 + ["bar good"]  # 0.95 itself is no success


def test_line_reaches_its_corners():
    first, *_, last = points(line_chart([0, 5, 10], [0, 1, 4], "step", "loss"))
    assert first == (LEFT, HEIGHT - BOTTOM)
    assert last == (WIDTH - RIGHT, TOP)


def test_log_axis_halves_evenly():
    ys = [y for _, y in points(line_chart([1, 2, 3], [1.0, 0.1, 0.01], "step", "loss", log=True))]
    assert ys[1] - ys[0] == pytest.approx(ys[2] - ys[1], abs=0.11)


@pytest.mark.parametrize("values", [[0.5] * 9, [1e-4, 1e-4], [0.0, 0.0], [1e4, 3e-5, 7.0]])
@pytest.mark.parametrize("log", [False, True])
def test_any_values_stay_inside(values, log):
    svg = line_chart(range(1, len(values) + 1), values, "step", "loss", log)
    if log and not any(values):
        assert svg == ""
    else:
        assert all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM for x, y in points(svg))


def test_too_little_to_draw():
    assert line_chart([], [], "step", "loss") == line_chart([1], [2], "step", "loss") == ""


def test_labels_are_escaped():
    svg = line_chart([0, 1], [0, 1], "<step>", '"loss"')
    assert ElementTree.fromstring(svg).get("aria-label") == '"loss" over <step>'
