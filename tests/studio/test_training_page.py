"""The panel that trains, in a real browser; what it draws is compared with what the run has written."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from visuomotor.studio.app import Studio
from visuomotor.studio.policies import SHIPPED, Policies
from visuomotor.studio.sources import Sources
from visuomotor.studio.training import Asked

from .conftest import PATIENCE, SIZES, Running, Serving
from .test_record_page import drive, opened, state
from .test_training import metrics

pytestmark = pytest.mark.slow
STEPS = 300  # so many that the page is loaded again and the training stopped before they are done


@pytest.fixture
def broken(data: str, tmp_path: Path) -> str:
    """Demonstrations with a number that is none."""
    with np.load(data) as content:
        columns = dict(content)
    columns["action"][30, 1] = np.nan
    np.savez(tmp_path / "broken.npz", **columns)
    return str(tmp_path / "broken.npz")


@pytest.fixture
def running(data: str, broken: str, tmp_path: Path) -> Iterator[Running]:
    sources = Sources([data, broken])
    studio = Studio(Policies(), sources, recordings=str(tmp_path / "mine"), runs=tmp_path / "runs")
    serving = Serving(studio.app())
    yield Running(studio, serving.port)
    serving.close()


def panel(page, running: Running) -> Any:
    """The panel, which knows what fits the first data set."""
    opened(page, running)
    return ready(page)


def ready(page) -> Any:
    found = page.locator('section[aria-label="Train"]')
    found.get_by_role("button", name="Start").and_(page.locator(":enabled")).wait_for()
    return found


def choose(page, changes: dict[str, object]) -> None:
    for name, value in changes.items():
        control = ready(page).get_by_label(name, exact=True)
        if control.evaluate("element => element.tagName") == "SELECT":
            control.select_option(str(value))
        else:
            control.fill(str(value))
            control.press("Tab")


def reaches(page, name: str) -> None:
    page.locator(f'section[aria-label="Train"][data-state="{name}"]').wait_for(timeout=4 * PATIENCE)


def drawn(found: Any, kind: str) -> np.ndarray:
    """The points of a curve on the screen, (N, 2), read off its axes: steps and losses."""
    path = np.array(re.findall(r"([\d.]+),([\d.]+)", found.locator(f"path.{kind}").get_attribute("d")), float)
    ends = found.locator(".grid").first.evaluate("line => ['x1', 'x2'].map((name) => Number(line.getAttribute(name)))")
    places = found.locator(".grid").evaluate_all("lines => lines.map((line) => Number(line.getAttribute('y1')))")
    numbers = found.locator('text[text-anchor="end"]').all_text_contents()[: len(places)]
    losses = np.log10(np.array(numbers, float))  # rounded to two digits: a straight line through them is exact enough
    slope, level = np.polyfit(places, losses, 1)
    steps = (path[:, 0] - ends[0]) / (ends[1] - ends[0])
    return np.stack([steps, 10 ** (level + slope * path[:, 1])], axis=1)


def test_a_policy_is_trained_stopped_gone_on_with_and_watched(page, running: Running, data: str):
    heard: list[dict[str, Any]] = []
    page.on("websocket", lambda socket: socket.on("framereceived", lambda text: heard.append(json.loads(text))))
    found = panel(page, running)
    assert found.get_by_label("Preset").input_value() == "pusht-keypoints-small"
    assert found.get_by_label("Begin with").input_value() == "pusht-keypoints-small"
    choose(page, {"Preset": "debug", "Steps": STEPS, "Held out": 2})
    found.get_by_role("button", name="Start").click()
    found.locator("path.line[d*='L']").wait_for()
    page.reload()
    found.locator("path.line[d*='L']").wait_for()  # what came before is there again
    found.locator("fieldset:disabled:not([aria-busy])").get_by_label("Held out").wait_for()
    shown = [found.get_by_label(name, exact=True).input_value() for name in ("Data set", "Preset", "Steps", "Held out")]
    assert shown == [data, "debug", str(STEPS), "2"]
    found.get_by_role("button", name="Stop").click()
    reaches(page, "stopped")
    training = running.studio.training
    assert 2 <= training.lines[-1]["step"] < STEPS
    found.get_by_role("button", name="Go on").click()
    reaches(page, "done")

    lines = metrics(training.run)
    assert [line["step"] for line in lines] == [*range(1, STEPS + 1)]
    told: list[dict[str, Any]] = []
    for message in heard:
        if message["type"] == "training":
            told[message["first"] :] = message["lines"]
    assert told == lines
    for kind, name in (("line", "loss"), ("second", "validation_loss")):
        expected = np.array([(line["step"] / STEPS, line[name]) for line in lines if line.get(name) is not None])
        np.testing.assert_allclose(drawn(found, kind)[:, 0], expected[:, 0], atol=1e-3)
        np.testing.assert_allclose(drawn(found, kind)[:, 1], expected[:, 1], rtol=0.05)
    assert f"step {STEPS} of {STEPS} · loss {lines[-1]['loss']:.3g}" in found.locator(".said").inner_text()

    found.get_by_role("link", name="Watch it").click()
    page.wait_for_selector('.transport[data-state="paused"]')
    assert page.get_by_label("Policy", exact=True).input_value() == str(training.run)
    page.get_by_role("button", name="Step", exact=True).click()
    page.wait_for_function("() => document.querySelector('.said').textContent.includes('step 1 ')")
    (session,) = running.studio.sessions
    assert session.settings.policy == str(training.run)
    assert session.episodes[0].steps == 1
    assert running.studio._policies.names == [*SHIPPED, str(training.run)]


def test_what_was_recorded_is_what_is_proposed(page, running: Running, tmp_path: Path):
    found = panel(page, running)
    drive(page, opened(page, running))
    page.keyboard.press("k")
    state(page, "ready", 1_000_001)
    mine = str(tmp_path / "mine")
    found.get_by_text(re.compile(r"^1 episodes, ")).wait_for()
    assert found.get_by_label("Data set").input_value() == mine
    choose(page, {"Preset": "debug", "Steps": 2})
    found.get_by_role("button", name="Start").click()
    reaches(page, "done")
    training = running.studio.training
    assert json.loads((training.run / "config.json").read_text())["source"] == mine
    choose(page, {"Together with": "pusht-demonstrations"})
    found.get_by_text(re.compile(r"^241 episodes, ")).wait_for()


def test_what_was_chosen_stays_while_episodes_are_kept(page, running: Running, data: str, tmp_path: Path):
    def keep(number: int) -> None:
        drive(page, running.studio.recordings[-1])
        page.keyboard.press("k")
        state(page, "ready", 1_000_000 + number)

    found, training, mine = panel(page, running), running.studio.training, str(tmp_path / "mine")
    training._asked, training.state = Asked((data,), "debug", 2), "running"  # as if another tab had started it
    found.locator("fieldset:disabled").wait_for()
    keep(1)
    assert found.get_by_label("Data set").input_value() == data
    training.state = "done"
    found.get_by_text(re.compile(r"^1 episodes, ")).wait_for()
    assert found.get_by_label("Data set").input_value() == mine
    choose(page, {"Together with": data})
    found.get_by_text(re.compile(r"^13 episodes, ")).wait_for()
    choose(page, {"Held out": 3})
    keep(2)
    found.get_by_text(re.compile(r"^14 episodes, ")).wait_for()
    assert found.get_by_label("Held out").input_value() == "3"


def test_why_a_training_failed_stands_on_the_page(page, running: Running, broken: str):
    found = panel(page, running)
    choose(page, {"Data set": broken, "Preset": "debug"})
    found.get_by_role("button", name="Start").click()
    reaches(page, "failed")
    error = found.locator("p.bad").inner_text()
    assert error.startswith(f"{broken}: action, episode 1, frame 10: expected finite numbers, got ")
    assert "\n" not in error
    assert found.get_by_role("link", name="Watch it").count() == 0


def test_a_data_set_that_cannot_be_read_is_one_line_and_another_can_be_chosen(page, running: Running, data: str):
    found = panel(page, running)
    running.studio._sources.names.append("/nowhere")
    running.studio.training.error = "x"  # so that the tab is told something
    found.get_by_label("Data set").locator("option", has_text="/nowhere").wait_for(state="attached")
    found.get_by_label("Data set").select_option("/nowhere")
    page.wait_for_selector("#notice:not([hidden])")
    assert page.inner_text("#notice").startswith("/nowhere: expected ")
    assert found.get_by_role("button", name="Start").is_disabled()
    found.get_by_label("Data set").select_option(data)
    page.wait_for_selector("#notice", state="hidden")
    ready(page)


@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_wider_than_the_screen(page, running: Running, size: str):
    width, height = SIZES[size]
    page.set_viewport_size({"width": width, "height": height})
    panel(page, running)
    assert page.evaluate("document.documentElement.scrollWidth") == width
