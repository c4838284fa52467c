"""One self-contained HTML page about an evaluation: no network, light and dark."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from visuomotor.evaluation.charts import Line, chart, histogram, line_chart
from visuomotor.evaluation.curves import read_curves, thin
from visuomotor.evaluation.page import figures, page, table
from visuomotor.simulation.pusht import SUCCESS_COVERAGE


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
    rate = f"{evaluation['success_rate']:.1%}"
    body = Template(BODY).substitute(
        policy=escape(str(settings["policy"])),
        rate=rate,
        interval=f"{low:.1%} to {high:.1%}",
        track=_track(evaluation["success_rate"], low, high),
        solved=f"{solved} of {len(episodes)} episodes",
        reward=f"{evaluation['mean_max_reward']:.3f}",
        coverage=f"{evaluation['mean_max_coverage']:.3f}",
        steps=_median_steps(episodes),
        videos=_videos(videos, episodes),
        charts=_charts(episodes, settings["max_steps"], metrics),
        command=escape(command),
        settings=table(settings),
        versions=table(evaluation["versions"]),
        episodes=_episode_rows(episodes),
        seconds=f"{evaluation['seconds']:.0f}",
    )
    return page(f"{rate}: {settings['policy']}", body)


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
        loss = thin(read_curves(metrics).get("loss", []))
        charts.append(("Training loss", chart([Line([loss])], "training step", "loss", log=True)))
    return figures(charts)


def _episode_rows(episodes: Sequence[Mapping[str, Any]]) -> str:
    return "".join(
        f"<tr><td>{episode['seed']}</td><td>"
        + ('<span class="success">success</span>' if episode["success"] else '<span class="failure">failure</span>')
        + f"</td><td>{episode['max_coverage']:.3f}</td><td>{episode['max_reward']:.3f}</td>"
        f"<td>{episode['steps']}</td></tr>"
        for episode in episodes
    )


BODY = """<header><h1>$policy on Push-T</h1></header>
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
</main>"""
