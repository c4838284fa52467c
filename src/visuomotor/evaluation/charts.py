"""Charts as inline SVG. Colours are classes of the page, so that they follow its light or dark theme."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 400, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 42  # margins around the plotted area


@dataclass(frozen=True)
class Line:
    """What a chart draws in one colour."""

    parts: Sequence[Sequence[tuple[float, float]]]
    """Stretches of (x, y) points; from one to the next nothing is drawn."""
    kind: str = "line"
    """Its class in the page's style: `line`, `second`, `bound`, `many` or `truth`."""


def line_chart(xs: Sequence[float], ys: Sequence[float], x_label: str, y_label: str, log: bool = False) -> str:
    """A line through (xs, ys); `log` for a logarithmic vertical axis, which leaves out what is not positive."""
    return chart([Line([list(zip(xs, ys, strict=True))])], x_label, y_label, log=log)


def chart(
    lines: Sequence[Line], x_label: str, y_label: str, *, log: bool = False, zero: bool = True, width: int = WIDTH
) -> str:
    """Lines over x from 0 on; an empty text where fewer than two points can be drawn.

    Args:
        lines: What to draw, the first one lowest.
        x_label: Below the horizontal axis.
        y_label: Beside the vertical axis.
        log: A logarithmic vertical axis, which leaves out what is not positive.
        zero: The vertical axis reaches down to 0.
        width: Of the drawing, `HEIGHT` being its height.
    """
    drawn = [
        (line.kind, [[(x, math.log10(y) if log else y) for x, y in part if not log or y > 0] for part in line.parts])
        for line in lines
    ]
    points = [point for _, parts in drawn for part in parts for point in part]
    if len(points) < 2:
        return ""
    x_end = max(x for x, _ in points) or 1
    low, high = min(y for _, y in points), max(y for _, y in points)
    ticks = _log_ticks(low, high) if log else [(value, _plain(value)) for value in _ticks(0 if zero else low, high)]
    low, high = min(low, ticks[0][0]), max(high, ticks[-1][0])

    def height(y: float) -> float:
        return _y((y - low) / (high - low or 1))

    body = _grid([(height(value), text) for value, text in ticks], width)
    body += _below([(_x(value / x_end, width), _short(value)) for value in _ticks(0, x_end) if value <= x_end])
    for kind, parts in drawn:
        placed = [[f"{_x(x / x_end, width):.1f},{height(y):.1f}" for x, y in part] for part in parts if part]
        path = "".join("M" + "L".join(part if len(part) > 1 else part * 2) for part in placed)  # one point: a dot
        body += f'<path class="{kind}" d="{path}"/>'
    return _svg(body, x_label, y_label, width)


def histogram(values: Sequence[float], marker: float, x_label: str, y_label: str, bins: int = 20) -> str:
    """Counts of values in [0, 1]; bars beyond `marker`, a multiple of 1 / bins, are of another colour."""
    counts = [0] * bins
    for value in values:
        # 0.95 itself is no success: a bar holds its upper end
        counts[min(bins - 1, max(0, math.ceil(value * bins - 1e-9) - 1))] += 1
    ticks = _ticks(0, max(counts))
    high = max(ticks[-1], max(counts))
    body = _grid([(_y(value / high), f"{value:g}") for value in ticks])
    for index, count in enumerate(counts):
        left, right, top = _x(index / bins), _x((index + 1) / bins), _y(count / high)
        kind = "bar good" if (index + 0.5) / bins > marker else "bar"
        title = f"<title>{index / bins:.2f} to {(index + 1) / bins:.2f}: {count}</title>"
        box = f'x="{left + 1:.1f}" y="{top:.1f}" width="{right - left - 2:.1f}" height="{_y(0) - top:.1f}"'
        body += f'<rect class="{kind}" {box}>{title}</rect>'
    line = _x(marker)
    body += f'<line class="marker" x1="{line:.1f}" x2="{line:.1f}" y1="{TOP}" y2="{_y(0)}"/>'
    body += f'<text x="{line - 6:.1f}" y="{TOP + 10}" text-anchor="end">{marker:g}</text>'
    body += _below([(_x(value / 5), f"{value / 5:g}") for value in range(6)])
    return _svg(body, x_label, y_label)


def _x(share: float, width: int = WIDTH) -> float:
    return LEFT + share * (width - LEFT - RIGHT)


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _ticks(low: float, high: float) -> list[float]:
    """About four round numbers from `low` or just above it to `high` or just below it."""
    span = (high - low) or 1
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 5)
    first = math.ceil(low / step - 1e-9)
    return [(first + index) * step for index in range(math.floor((low + span) / step + 1e-9) - first + 1)]


def _log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Powers of ten around [low, high], which are logarithms; over less than two decades 2 and 5 times them too."""
    factors = (1, 2, 5) if high - low < 2 else (1,)
    powers = range(math.floor(low) - 1, math.ceil(high) + 1)
    values = [factor * 10.0**power for power in powers for factor in factors]
    return [(math.log10(value), f"{value:g}") for value in values if low - 0.3 <= math.log10(value) <= high + 0.3]


def _plain(value: float) -> str:
    """A number; as 1.5e-4 where it would be longer than its axis has room for."""
    text = f"{value:g}"
    if len(text) <= 5 and "e" not in text:
        return text
    return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-").replace("e+0", "e")


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def _grid(rows: list[tuple[float, str]], width: int = WIDTH) -> str:
    return "".join(
        f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>'
        for y, text in rows
    )


def _below(columns: list[tuple[float, str]]) -> str:
    y = HEIGHT - BOTTOM + 16
    return "".join(f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{escape(text)}</text>' for x, text in columns)


def _svg(body: str, x_label: str, y_label: str, width: int = WIDTH) -> str:
    label = escape(f"{y_label} over {x_label}", quote=True)
    middle = (LEFT + width - RIGHT) / 2
    return (
        f'<svg viewBox="0 0 {width} {HEIGHT}" role="img" aria-label="{label}">{body}'
        f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text transform="translate(12,{(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text></svg>"
    )
