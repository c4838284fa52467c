"""A run's curves, drawn from what it wrote: `visuomotor report`. Neither torch nor the run itself is needed."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from visuomotor.errors import CheckpointError, mismatch
from visuomotor.evaluation.charts import Line, chart
from visuomotor.evaluation.page import columns, figures, key, page, table
from visuomotor.files import write_bytes

Curve = list[tuple[float, float]]

POINTS = 200  # of a curve, each a mean
TITLES = {
    "learning_rate": "Learning rate",
    "gradient_norm": "Gradient norm, before clipping",
    "samples_per_second": "Samples a second",
}
LOGARITHMIC = ("gradient_norm",)
PLACES = ("step", "epoch", "seconds")  # where a line stands, no curves


def write_report(run: str | Path) -> Path:
    """Draws a run's curves into RUN/report.html, one file that needs no network. The run may be under way.

    Args:
        run: The folder of a run: its `metrics.jsonl`, and where they are `config.json`, `evaluations.jsonl` and
            `evaluation*/eval.json`.

    Returns:
        The page's path.

    Raises:
        CheckpointError: The folder holds no metrics, or its config.json is damaged.
    """
    run = Path(run)
    if not (run / "metrics.jsonl").is_file():
        advice = "pass a folder that `visuomotor train` has written"
        raise CheckpointError(mismatch(f"{run}/metrics.jsonl", "the metrics of a run", "no such file", advice))
    write_bytes(run / "report.html", training_report(run).encode())
    return run / "report.html"


def read_curves(metrics: Path) -> dict[str, Curve]:
    """(step, value) of every number in `metrics.jsonl`, by name and ascending.

    A line that is cut short is passed over; of a step that was taken twice, the last one counts.
    """
    curves: dict[str, dict[float, float]] = {}
    for row in _rows(metrics):
        for name, value in row.items():
            if isinstance(value, int | float) and math.isfinite(value):
                curves.setdefault(name, {})[float(row["step"])] = float(value)
    return {name: sorted(values.items()) for name, values in curves.items()}


def thin(curve: Curve) -> Curve:
    """At most `POINTS` points, each the mean of neighbours."""
    size = max(1, -(-len(curve) // POINTS))
    groups = [curve[start : start + size] for start in range(0, len(curve), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def training_report(run: Path) -> str:
    """The page as HTML; see `write_report`."""
    curves, settings = read_curves(run / "metrics.jsonl"), _settings(run)
    evaluations = list(_rows(run / "evaluations.jsonl")) if (run / "evaluations.jsonl").is_file() else []
    charts = figures([_loss_chart(curves), *_other_charts(curves), _success_chart(evaluations)], "curves")
    body = (
        f"<header><h1>{escape(str(run))}</h1></header>\n<main>\n{_head(run, curves, settings)}\n{charts}\n"
        f"{_evaluation_table(run, evaluations)}{_settings_table(settings)}</main>"
    )
    return page(f"training: {run}", body)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects with a step that a file of JSON lines holds."""
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # cut short: the run is writing it, or was killed
            continue
        step = row.get("step") if isinstance(row, dict) else None
        if isinstance(step, int | float) and math.isfinite(step):
            yield row


def _settings(run: Path) -> dict[str, Any]:
    """The recipe's fields and the data's source; none where config.json is not there."""
    path = run / "config.json"
    try:
        content = json.loads(path.read_text())
        return {"data": content["source"], **content["recipe"]["training"], **content["recipe"]["policy"]}
    except FileNotFoundError:
        return {}
    except (ValueError, LookupError, TypeError) as error:
        found = f"{type(error).__name__}: {error}"
        raise CheckpointError(mismatch(str(path), "the recipe of a run", found, "copy it again")) from error


def _head(run: Path, curves: Mapping[str, Curve], settings: Mapping[str, Any]) -> str:
    """The figures that one looks for first."""
    done = int(max((curve[-1][0] for curve in curves.values()), default=0))
    total = f" of {settings['steps']:,}" if "steps" in settings else ""
    facts = {"Loss": _last(curves, "loss"), "Loss on held-out episodes": _last(curves, "validation_loss")}
    if speeds := [value for _, value in curves.get("samples_per_second", [])]:
        facts["Samples a second, median"] = f"{median(speeds):,.0f}"
    facts["Time, all sessions"] = _duration(curves.get("seconds", []))
    listed = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items() if value)
    return (
        f'<section class="card score"><div><div class="rate">{done:,} <small>steps{total}</small></div>'
        f'<div class="soft">drawn from <code>metrics.jsonl</code> in {escape(str(run))}</div></div>'
        f'<dl class="facts">{listed}</dl></section>'
    )


def _last(curves: Mapping[str, Curve], name: str) -> str:
    return f"{curves[name][-1][1]:.4g}" if name in curves else ""


def _duration(seconds: Curve) -> str:
    total = seconds[-1][1] if seconds else 0
    return f"{total / 3600:.1f} h" if total >= 5400 else f"{total / 60:.1f} min" if seconds else ""


def _loss_chart(curves: Mapping[str, Curve]) -> tuple[str, str]:
    lines = [Line([thin(curves.get("loss", []))])]
    title = "Loss"
    if held_out := curves.get("validation_loss"):
        lines.append(Line([thin(held_out)], "second"))
        title += key("line", "training") + key("second", "held-out")
    return title, chart(lines, "step", "loss", log=True)


def _other_charts(curves: Mapping[str, Curve]) -> list[tuple[str, str]]:
    names = [*TITLES, *(name for name in curves if name not in (*TITLES, *PLACES, "loss", "validation_loss"))]
    return [
        (
            escape(TITLES.get(name, name)),
            chart([Line([thin(curves[name])])], "step", name.replace("_", " "), log=name in LOGARITHMIC),
        )
        for name in names
        if name in curves
    ]


def _success_chart(evaluations: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The success rate with its interval, and the mean of the best rewards."""

    def curve(name: str, end: int | None = None) -> Curve:
        rows = [row for row in evaluations if name in row]
        return [(row["step"], 100 * (row[name] if end is None else row[name][end])) for row in rows]

    bounds = [curve("success_rate_interval", 0), curve("success_rate_interval", 1)]
    lines = [Line(bounds, "bound"), Line([curve("mean_max_reward")], "second"), Line([curve("success_rate")])]
    title = "Evaluations" + key("line", "success, dashed: 95% interval") + key("second", "mean max reward")
    return title, chart(lines, "step", "%")


def _evaluation_table(run: Path, evaluations: Sequence[Mapping[str, Any]]) -> str:
    found = [(f"step {row['step']}", row) for row in evaluations]
    for path in sorted(run.glob("evaluation*/eval.json")):
        try:
            found.append((path.parent.name, json.loads(path.read_text())))
        except ValueError as error:
            raise CheckpointError(mismatch(str(path), "JSON", error, "measure the policy again")) from error
    rows = []
    for place, row in found:
        low, high = row.get("success_rate_interval", (math.nan, math.nan))
        rate, reward = row.get("success_rate", math.nan), row.get("mean_max_reward", math.nan)
        rows.append([place, f"{rate:.1%}", f"{low:.1%} to {high:.1%}", f"{reward:.3f}"])
    titles = ["evaluation", "success", "95% interval", "mean max reward"]
    return f'<section><h2>Evaluations</h2><div class="card pad">{columns(titles, rows)}</div></section>' if rows else ""


def _settings_table(settings: Mapping[str, Any]) -> str:
    named = {name: value for name, value in settings.items() if not isinstance(value, dict)}
    if not named:
        return ""
    half = -(-len(named) // 2)
    parts = [dict(list(named.items())[:half]), dict(list(named.items())[half:])]
    cards = "".join(f'<div class="card">{table(part)}</div>' for part in parts)
    return f'<details class="card"><summary>Settings</summary><div class="tables">{cards}</div></details>'
