"""The page: everything in it, nothing from elsewhere, nothing unescaped."""

import base64
import json
import re
from html.parser import HTMLParser

import pytest

from visuomotor.evaluation.evaluate import summary, versions
from visuomotor.evaluation.report import report

from .episodes import made_up

NASTY = "runs/<b>&\"'$x"


class Page(HTMLParser):
    """Elements that a page opens and fails to close, its texts, and where it points to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "action", "poster", "srcset")]
        if tag not in ("meta", "br", "path", "line"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def evaluation() -> dict:
    results = [made_up(100_000, 30, 0.97), made_up(100_001, 300, 0.4), made_up(100_002, 120, 0.99)]
    settings = {"policy": NASTY, "env": "pusht", "max_steps": 300, "seed": 100_000}
    return summary(results) | {"settings": settings, "versions": versions(), "seconds": 12.34}


def test_everything_is_there(evaluation, tmp_path):
    for name in ("success_100000.mp4", "failure_100001.mp4"):
        (tmp_path / name).write_bytes(name.encode())
    lines = [json.dumps({"step": step, "loss": 1 / step}) for step in range(50, 2001, 50)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 2050, "lo']))  # cut off
    videos = sorted(tmp_path.glob("*.mp4"))
    page = Page(report(evaluation, f"visuomotor eval '{NASTY}'", videos, tmp_path / "metrics.jsonl"))
    assert page.open == []
    text = " ".join(page.texts)
    for part in (
        "66.7%",
        "20.8% to 93.9%",
        "2 of 3 episodes",
        f"visuomotor eval '{NASTY}'",
        "Training loss",
        "gym-pusht",
    ):
        assert part in text
    assert {"b"} & set(page.tags) == {"b"} and page.tags.count("b") == 1  # the mark of the rate, none of NASTY's
    embedded = [base64.b64decode(link.removeprefix("data:video/mp4;base64,")).decode() for link in page.links]
    assert embedded == [path.name for path in videos]
    assert page.tags.count("svg") == 3


def test_nothing_is_fetched(evaluation):
    html = report(evaluation, "visuomotor eval x", [])
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|<link", html)
    assert "prefers-color-scheme: dark" in html


def test_without_a_run_or_a_success(evaluation):
    evaluation |= summary([made_up(1, 300, 0.2)])
    page = Page(report(evaluation, "visuomotor eval x", []))
    assert page.tags.count("svg") == 2 and "video" not in page.tags
    assert "none solved" in " ".join(page.texts)
