"""One self-contained HTML page about an evaluation: no network, light and dark."""

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from visuomotor.evaluation.charts import histogram, line_chart
from visuomotor.simulation.pusht import SUCCESS_COVERAGE

POINTS = 200  # of the loss curve, each a mean


def report(evaluation: Mapping[str, Any], command: str, videos: Sequence[Path], metrics: Path | None = None) -> str:
    """The page.

    Args:
        evaluation: The content of `eval.json`.
        command: What to type for the same figures.
        videos: mp4 files named `success_SEED` or `failure_SEED`; they are put into the page.
        metrics: `metrics.jsonl` of the run that trained the policy, for the loss curve.

    Returns:
        HTML. Everything that came from outside is escaped.
    """
    settings, episodes = evaluation["settings"], evaluation["episodes"]
    low, high = evaluation["success_rate_interval"]
    solved = sum(episode["success"] for episode in episodes)
    return Template(PAGE).substitute(
        policy=escape(str(settings["policy"])),
        rate=f"{evaluation['success_rate']:.1%}",
        interval=f"{low:.1%} to {high:.1%}",
        track=_track(evaluation["success_rate"], low, high),
        solved=f"{solved} of {len(episodes)} episodes",
        reward=f"{evaluation['mean_max_reward']:.3f}",
        coverage=f"{evaluation['mean_max_coverage']:.3f}",
        steps=_median_steps(episodes),
        videos=_videos(videos, episodes),
        charts=_charts(episodes, settings["max_steps"], metrics),
        command=escape(command),
        settings=_table(settings),
        versions=_table(evaluation["versions"]),
        episodes=_episode_rows(episodes),
        seconds=f"{evaluation['seconds']:.0f}",
    )


def _track(rate: float, low: float, high: float) -> str:
    """The rate and its interval on a line from 0 to 100 %."""
    return (
        f'<div class="track" aria-hidden="true"><i style="left:{low:.2%};width:{high - low:.2%}"></i>'
        f'<b style="left:{rate:.2%}"></b></div>'
    )


def _median_steps(episodes: Sequence[Mapping[str, Any]]) -> str:
    steps = sorted(episode["steps"] for episode in episodes if episode["success"])
    return str(steps[len(steps) // 2]) if steps else "none solved"


def _videos(videos: Sequence[Path], episodes: Sequence[Mapping[str, Any]]) -> str:
    if not videos:
        return ""
    by_seed = {episode["seed"]: episode for episode in episodes}
    figures = []
    for path in videos:
        kind, seed = path.stem.split("_")
        episode = by_seed[int(seed)]
        end = f"solved in {episode['steps']} steps" if kind == "success" else f"best {episode['max_coverage']:.1%}"
        data = base64.b64encode(path.read_bytes()).decode()
        figures.append(
            f'<figure><video controls muted loop playsinline preload="metadata" src="data:video/mp4;base64,{data}">'
            f'</video><figcaption><span class="{kind}">{kind}</span> seed {seed}, {end}</figcaption></figure>'
        )
    return f'<section><h2>Episodes to watch</h2><div class="videos">{"".join(figures)}</div></section>'


def _charts(episodes: Sequence[Mapping[str, Any]], max_steps: int, metrics: Path | None) -> str:
    ends = sorted(episode["steps"] for episode in episodes if episode["success"])
    xs, ys = [0.0], [0.0]
    for count, end in enumerate(ends):  # stairs: two corners for each success
        xs += [end, end]
        ys += [100 * count / len(episodes), 100 * (count + 1) / len(episodes)]
    solved = line_chart([*xs, max_steps], [*ys, ys[-1]], "step", "solved, %")
    charts = [
        (
            "Best coverage of each episode",
            histogram([episode["max_coverage"] for episode in episodes], SUCCESS_COVERAGE, "coverage", "episodes"),
        ),
        ("Solved within a number of steps", solved),
    ]
    if metrics is not None:
        charts.append(("Training loss", line_chart(*_loss(metrics), "training step", "loss", log=True)))
    cards = "".join(f"<figure><figcaption>{title}</figcaption>{svg}</figure>" for title, svg in charts if svg)
    return f'<div class="charts">{cards}</div>'


def _loss(metrics: Path) -> tuple[list[float], list[float]]:
    """Steps and losses, averaged so that at most `POINTS` are left. A line cut off by a crash is passed over."""
    rows = []
    for line in metrics.read_text().splitlines():
        try:
            row = json.loads(line)
            rows.append((float(row["step"]), float(row["loss"])))
        except (ValueError, KeyError, TypeError):
            continue
    size = max(1, -(-len(rows) // POINTS))
    bins = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [sum(step for step, _ in b) / len(b) for b in bins], [sum(loss for _, loss in b) / len(b) for b in bins]


def _table(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{escape(str(name))}</th><td>{escape(str(value))}</td></tr>" for name, value in values.items()
    )
    return f"<table>{rows}</table>"


def _episode_rows(episodes: Sequence[Mapping[str, Any]]) -> str:
    return "".join(
        f"<tr><td>{episode['seed']}</td><td>"
        + ('<span class="success">success</span>' if episode["success"] else '<span class="failure">failure</span>')
        + f"</td><td>{episode['max_coverage']:.3f}</td><td>{episode['max_reward']:.3f}</td>"
        f"<td>{episode['steps']}</td></tr>"
        for episode in episodes
    )


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$rate: $policy</title>
<style>
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1d2430; --soft: #5c6675; --line: #dfe3e9;
  --accent: #2563eb; --good: #178048; --bad: #b45309; --bar: #aab6c8; }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --card: #1b2129; --ink: #e6eaf0; --soft: #9aa5b4;
  --line: #303947; --accent: #7aa2ff; --good: #4cc38a; --bad: #f0a04b; --bar: #56637a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 32px 24px 64px; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1rem; font-weight: 600; margin: 0 0 4px; color: var(--soft); overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 40px 0 12px; }
.card, figure { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.score { display: grid; grid-template-columns: minmax(0, 1.6fr) minmax(0, 1fr); gap: 32px; padding: 28px 32px; }
.rate { font-size: clamp(3.2rem, 9vw, 5.5rem); font-weight: 700; line-height: 1.05; letter-spacing: -0.03em; }
.rate small { font-size: 1.15rem; font-weight: 500; letter-spacing: 0; color: var(--soft); }
.interval { font-size: 1.35rem; font-weight: 600; }
.track { position: relative; height: 10px; margin: 16px 0 10px; border-radius: 5px; background: var(--line); }
.track i { position: absolute; top: 0; bottom: 0; border-radius: 5px; background: var(--accent); opacity: 0.45; }
.track b { position: absolute; top: -4px; bottom: -4px; width: 4px; margin-left: -2px; border-radius: 2px;
  background: var(--accent); }
dl { display: grid; gap: 14px; margin: 0; align-content: center; }
dl div { border-left: 3px solid var(--line); padding-left: 14px; }
dt { color: var(--soft); font-size: 0.9rem; }
dd { margin: 0; font-size: 1.4rem; font-weight: 600; }
.soft { color: var(--soft); }
figure { margin: 0; padding: 14px; }
.videos { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); gap: 16px; }
.videos figure { padding: 0; overflow: hidden; }
.videos figcaption { padding: 10px 14px; font-size: 0.9rem; }
video { display: block; width: 100%; background: #fff; }
.charts { display: flex; flex-wrap: wrap; gap: 16px; margin-top: 16px; }
.charts figure { flex: 1 1 320px; min-width: 0; }
.charts figcaption { font-weight: 600; margin-bottom: 6px; }
svg { display: block; width: 100%; height: auto; max-height: 300px; }
svg text { fill: var(--soft); font-size: 12px; }
.grid { stroke: var(--line); } .marker { stroke: var(--ink); stroke-dasharray: 4 3; }
.line { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; }
.bar { fill: var(--bar); } .good { fill: var(--good); }
.success, .failure { font-weight: 600; } .success { color: var(--good); } .failure { color: var(--bad); }
pre { margin: 0; padding: 16px 18px; white-space: pre-wrap; overflow-wrap: anywhere; }
code, pre { font: 0.9rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.tables { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 16px; }
.tables .card { padding: 8px 18px; }
table { width: 100%; border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
tr:last-child > * { border-bottom: 0; }
th { font-weight: 500; color: var(--soft); white-space: nowrap; vertical-align: top; }
details { padding: 14px 18px; margin-top: 40px; }
summary { cursor: pointer; font-weight: 600; }
.scroll { max-height: 480px; overflow: auto; margin-top: 12px; }
thead th { position: sticky; top: 0; background: var(--card); }
@media (max-width: 700px) { .score { grid-template-columns: 1fr; padding: 22px; } body { padding: 20px 14px 48px; } }
</style>
</head>
<body>
<header><h1>$policy on Push-T</h1></header>
<main>
<section class="card score">
<div>
<div class="rate">$rate <small>success</small></div>
$track
<div class="interval">$interval</div>
<div class="soft">95% interval (Wilson) from $solved; solved means more than 95% of the goal covered</div>
</div>
<dl>
<div><dt>Mean of each episode's best coverage</dt><dd>$coverage</dd></div>
<div><dt>Mean of each episode's best reward</dt><dd>$reward</dd></div>
<div><dt>Steps to success, median</dt><dd>$steps</dd></div>
</dl>
</section>
$charts
$videos
<section><h2>The same figures again</h2><div class="card"><pre>$command</pre></div>
<p class="soft">It took $seconds seconds here. Initial states and noise follow from the seeds, whatever the machine.</p>
</section>
<section><h2>Settings and versions</h2>
<div class="tables"><div class="card">$settings</div><div class="card">$versions</div></div></section>
<details class="card"><summary>Every episode</summary><div class="scroll"><table>
<thead><tr><th>seed</th><th>outcome</th><th>best coverage</th><th>best reward</th><th>steps</th></tr></thead>
<tbody>$episodes</tbody></table></div></details>
</main>
</body>
</html>
"""
