"""The page of an open-loop validation: errors by joint, and predicted actions drawn over recorded ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from visuomotor.evaluation.charts import Line, chart
from visuomotor.evaluation.page import columns, figures, key, page, table

WIDTH = 560  # of a joint's drawing


@dataclass(frozen=True)
class Trace:
    """One episode to draw."""

    episode: int
    """Its own number."""
    recorded: np.ndarray
    """(T, Da) in the data's units."""
    predicted: np.ndarray
    """(K, T, Da)."""
    steps: int
    """Frames from one chunk's first to the next one's."""
    fps: float
    """Frames a second."""


def validation_page(validation: Mapping[str, Any], traces: Sequence[Trace]) -> str:
    """The page.

    Args:
        validation: The content of `validation.json`.
        traces: Episodes to draw.

    Returns:
        HTML. Everything that came from outside is escaped.
    """
    settings = validation["settings"]
    names = [joint["name"] for joint in validation["joints"]]
    drawn = "".join(_episode(trace, names) for trace in traces)
    body = f"""<header><h1>{escape(settings["policy"])} on {escape(settings["data"])}</h1></header>
<main>
{_score(validation)}
<section><h2>Errors by joint, in the data's units</h2><div class="card pad">{_joints(validation["joints"])}</div>
<p class="soft">Means over the executed steps of all chunks and noises. Holding still repeats the action before the
chunk; at an episode's beginning its first recorded action. Below 1 the policy is nearer to what was done.</p></section>
{drawn}
<section><h2>Settings and versions</h2><div class="tables"><div class="card">{table(settings)}</div>
<div class="card">{table(validation["versions"])}</div></div></section>
<details class="card"><summary>Every episode: mean absolute error</summary><div class="scroll">
{columns(["episode", "frames", *names], _episode_rows(validation["episodes"]))}</div></details>
</main>"""
    return page(f"open loop: {settings['policy']}", body)


def _score(validation: Mapping[str, Any]) -> str:
    relative, episodes = validation["relative_error"], validation["episodes"]
    joints = [joint for joint in validation["joints"] if joint["hold_mean_absolute_error"] > 0]
    rate = "none moves" if relative is None else f"{relative:.2f}"
    better = sum(joint["mean_absolute_error"] < joint["hold_mean_absolute_error"] for joint in joints)
    facts = {
        "Joints nearer than holding still": f"{better} of {len(joints)}",
        f"Episodes, {validation['settings']['episodes']}": len(episodes),
        "Frames": f"{sum(episode['frames'] for episode in episodes):,}",
        "Noises for each chunk": validation["settings"]["draws"],
    }
    listed = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    return f"""<section class="card score"><div><div class="rate">{rate} <small>of holding still</small></div>
<div class="soft">mean absolute error of the actions by that of repeating the last one, the median of the joints.
Open loop: the policy sees recorded frames, never where its own actions lead.</div></div>
<dl class="facts">{listed}</dl></section>"""


def _joints(joints: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for joint in joints:
        error, hold = joint["mean_absolute_error"], joint["hold_mean_absolute_error"]
        squared = joint["root_mean_square_error"]
        ratio = f"{error / hold:.2f}" if hold else ""
        rows.append([joint["name"], f"{error:.4g}", f"{squared:.4g}", f"{hold:.4g}", ratio])
    return columns(["joint", "mean absolute error", "root mean square", "holding still, mean absolute", "ratio"], rows)


def _episode(trace: Trace, names: Sequence[str]) -> str:
    charts = [(escape(name), _joint_chart(trace, joint)) for joint, name in enumerate(names)]
    legend = key("truth", "recorded") + key("many", "predicted, a line for each noise, anew at every chunk")
    return f"<section><h2>Episode {trace.episode} {legend}</h2>{figures(charts, 'traces')}</section>"


def _joint_chart(trace: Trace, joint: int) -> str:
    seconds = (np.arange(len(trace.recorded)) / trace.fps).tolist()
    recorded = list(zip(seconds, trace.recorded[:, joint].tolist(), strict=True))
    chunks = []
    for values in trace.predicted[:, :, joint].tolist():
        points = list(zip(seconds, values, strict=True))
        chunks += [points[start : start + trace.steps] for start in range(0, len(points), trace.steps)]
    return chart([Line([recorded], "truth"), Line(chunks, "many")], "seconds", "action", zero=False, width=WIDTH)


def _episode_rows(episodes: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [
        [str(e["episode"]), str(e["frames"]), *(f"{error:.4g}" for error in e["mean_absolute_error"])] for e in episodes
    ]
