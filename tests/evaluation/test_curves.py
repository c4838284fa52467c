"""A run's page: every curve, from whatever the run has written so far."""

import json
from pathlib import Path

import pytest

from visuomotor.cli import main
from visuomotor.errors import CheckpointError
from visuomotor.evaluation.curves import POINTS, read_curves, thin, write_report
from visuomotor.presets import preset
from visuomotor.serialization import to_json

from .test_report import NASTY, Page


def write_lines(path: Path, rows: list[dict], cut: str = "") -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows) + cut)


def metrics(steps: range, **more: float) -> list[dict]:
    known = {"learning_rate": 1e-4, "gradient_norm": 0.5, "samples_per_second": 100.0}
    return [{"step": s, "epoch": s / 10, "loss": 1 / s, **known, **more, "seconds": s / 10} for s in steps]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    write_lines(folder / "metrics.jsonl", metrics(range(50, 2001, 50)), cut='{"step": 2050, "lo')
    config = {"format_version": 1, "source": NASTY, "recipe": to_json(preset("debug"))}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_curves_by_name(run: Path) -> None:
    curves = read_curves(run / "metrics.jsonl")
    assert curves["loss"] == [(step, 1 / step) for step in range(50, 2001, 50)]
    assert set(curves) == {"step", "epoch", "loss", "learning_rate", "gradient_norm", "samples_per_second", "seconds"}


def test_of_a_step_taken_twice_the_last_counts(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 5}, {"step": 2, "loss": 4}, {"step": 2, "loss": 3}, {"step": 1, "loss": 2.5}]
    write_lines(tmp_path / "m", rows)
    assert read_curves(tmp_path / "m")["loss"] == [(1, 2.5), (2, 3)]


@pytest.mark.parametrize(
    "line", ["", "null", "[1]", "{}", '{"loss": 1}', '{"step": "x"}', '{"step": NaN}', '{"step', "é\x00"]
)
def test_what_is_no_line_of_metrics_is_passed_over(tmp_path: Path, line: str) -> None:
    (tmp_path / "m").write_text(f'{{"step": 1, "loss": 2}}\n{line}\n{{"step": 2, "loss": NaN, "note": "x"}}\n')
    assert read_curves(tmp_path / "m") == {"step": [(1, 1), (2, 2)], "loss": [(1, 2)]}


def test_thin_keeps_the_mean() -> None:
    curve = [(float(x), float(x % 7)) for x in range(5 * POINTS)]
    thinned = thin(curve)
    assert len(thinned) == POINTS
    assert thinned[0] == (2.0, sum(range(5)) / 5)
    assert thin(curve[:POINTS]) == curve[:POINTS]


def test_the_page(run: Path) -> None:
    assert write_report(run) == run / "report.html"
    page = Page((run / "report.html").read_text())
    text = " ".join(page.texts)
    assert page.open == [] and page.links == [] and "b" not in page.tags
    assert page.tags.count("svg") == 4  # loss, learning rate, gradient, speed
    for part in ("2,000", "steps of 2", "0.0005", "100", "3.3 min", NASTY, "Learning rate"):
        assert part in text
    assert "held-out" not in text and "Evaluations" not in text


def test_held_out_loss_and_evaluations(run: Path) -> None:
    write_lines(run / "metrics.jsonl", metrics(range(50, 2001, 50), validation_loss=0.25, disk_gb=3.0))
    rows = [(500, 0.1, [0.05, 0.2], 0.4), (1000, 0.3, [0.2, 0.4], 0.6)]
    names = ("step", "success_rate", "success_rate_interval", "mean_max_reward")
    write_lines(run / "evaluations.jsonl", [dict(zip(names, row, strict=True)) for row in rows], cut='{"st')
    (run / "evaluation-last").mkdir()
    last = dict(zip(names[1:], (0.5, [0.4, 0.6], 0.7), strict=True))
    (run / "evaluation-last" / "eval.json").write_text(json.dumps(last))
    html = write_report(run).read_text()
    page, text = Page(html), " ".join(Page(html).texts)
    assert page.tags.count("svg") == 6  # the four, disk_gb, success
    for part in ("0.25", "disk_gb", "step 500", "10.0%", "20.0% to 40.0%", "0.600", "evaluation-last", "50.0%"):
        assert part in text
    assert html.count('class="bound"') == 1 and html.count('class="second"') == 2


def test_the_time_of_all_sessions(run: Path) -> None:
    write_lines(run / "metrics.jsonl", [{"step": s, "loss": 1, "seconds": t} for s, t in ((1, 60), (2, 90), (3, 120))])
    assert "2.0 min" in write_report(run).read_text()


def test_a_run_that_has_hardly_begun(run: Path) -> None:
    (run / "config.json").unlink()
    for content in ("", '{"step": 1, "loss": 0.5, "seconds": 1}\n'):
        (run / "metrics.jsonl").write_text(content)
        page = Page(write_report(run).read_text())
        assert page.open == [] and "svg" not in page.tags


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError, match=r"metrics.jsonl: expected the metrics of a run, got no such file; "):
        write_report(tmp_path)
    assert main(["report", str(tmp_path)]) == 2
    assert list(tmp_path.iterdir()) == []


def test_damage_is_named(run: Path) -> None:
    (run / "config.json").write_text('{"source": 1}')
    with pytest.raises(CheckpointError, match=r"config.json: expected the recipe of a run, got KeyError: 'recipe'; "):
        write_report(run)


def test_the_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"report:  {run / 'report.html'}\n"
