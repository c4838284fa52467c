"""Charts: well-formed, with the data where the axes say."""

import re
from xml.etree import ElementTree

import pytest

from visuomotor.evaluation.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Line, chart, histogram, line_chart


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


def test_points_at_zero_alone_are_drawn_at_the_left():
    found = points(line_chart([0, 0], [1, 2], "step", "loss"))
    assert len(found) == 2 and found[0][0] == found[1][0] == points(line_chart([0, 5], [1, 2], "step", "loss"))[0][0]


def test_lines_share_their_axes():
    svg = chart(
        [Line([[(0, 10), (4, 30)]], "truth"), Line([[(1, 20), (2, 20)], [(2, 25)]], "many")], "s", "a", zero=False
    )
    truth, many = ElementTree.fromstring(svg).iter("path")
    assert (truth.get("class"), many.get("class")) == ("truth", "many")
    inner = WIDTH - LEFT - RIGHT, HEIGHT - BOTTOM - TOP
    assert truth.get("d") == f"M{LEFT}.0,{HEIGHT - BOTTOM}.0L{WIDTH - RIGHT}.0,{TOP}.0"
    middle, upper = HEIGHT - BOTTOM - inner[1] / 2, HEIGHT - BOTTOM - inner[1] * 0.75
    quarter, half = (f"{LEFT + inner[0] * x / 4:.1f}" for x in (1, 2))
    dot = f"{half},{upper:.1f}"
    assert many.get("d") == f"M{quarter},{middle:.1f}L{half},{middle:.1f}M{dot}L{dot}"


@pytest.mark.parametrize("values", [[-61.5, -60.2], [-1, 1], [1e-5, 4e-5], [0.3, 0.7], [5, 5], [-3, -3]])
def test_ticks_are_round_and_inside(values):
    svg = chart([Line([list(enumerate(values))])], "s", "a", zero=False, width=500)
    root = ElementTree.fromstring(svg)
    assert root.get("viewBox") == f"0 0 500 {HEIGHT}"
    rows = [line for line in root.iter("line") if line.get("class") == "grid"]
    assert 1 <= len(rows) <= 6
    assert all(line.get("x2") == str(500 - RIGHT) and TOP <= float(line.get("y1")) <= HEIGHT - BOTTOM for line in rows)
    told = [float(text.text) for text in root.iter("text") if text.get("text-anchor") == "end"]
    assert len(told) == len(rows) and all(min(values) <= tick <= max(values) + 1 for tick in told)


@pytest.mark.parametrize(
    ("high", "told"),
    [
        (2e-4, ["0", "5e-5", "1e-4", "1.5e-4", "2e-4"]),
        (0.002, ["0", "5e-4", "0.001", "1.5e-3", "0.002"]),
        (200_000, ["0", "50000", "1e5", "1.5e5", "2e5"]),
    ],
)
def test_ticks_stay_short(high, told):
    texts = [text.text for text in ElementTree.fromstring(line_chart([0, 1], [0, high], "s", "a")).iter("text")]
    assert texts[:5] == told


def test_labels_are_escaped():
    svg = line_chart([0, 1], [0, 1], "<step>", '"loss"')
    assert ElementTree.fromstring(svg).get("aria-label") == '"loss" over <step>'
