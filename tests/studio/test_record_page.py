"""The page that records, in a real browser; what it does is read off the simulator and off the disk behind it."""

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from visuomotor.data.dataset import load_dataset
from visuomotor.data.writer import DatasetWriter
from visuomotor.studio.app import Studio
from visuomotor.studio.recording import Recording
from visuomotor.studio.sources import Sources

from .conftest import PATIENCE, SIZES, Running, Serving
from .test_recording import fits, solve

pytestmark = pytest.mark.slow
SEED = 1_000_000
SOCKETS = """window.sockets = [];
window.WebSocket = class extends WebSocket {
  constructor(...all) {
    super(...all);
    sockets.push(this);
  }
};"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "recordings" / "pusht"


@pytest.fixture
def running(policies, folder: Path) -> Iterator[Running]:
    studio = Studio(policies, Sources(), recordings=str(folder), runs=folder.parent / "runs")
    serving = Serving(studio.app())
    yield Running(studio, serving.port)
    serving.close()


def opened(page, running: Running) -> Recording:
    """The page before the first step, and the session behind it."""
    page.goto(f"{running.address}/#/record")
    state(page, "ready")
    return running.studio.recordings[-1]


def state(page, name: str, seed: int | None = None) -> None:
    page.wait_for_selector(f'.transport[data-state="{name}"]' + (f'[data-seed="{seed}"]' if seed else ""))


def on_screen(page, place) -> tuple[float, float]:
    """Where a place of the table is on the screen."""
    box = page.locator("#table").bounding_box()
    return tuple(box[key] + value / 512 * box["width"] for key, value in zip(("x", "y"), place, strict=True))


def driven(page, steps: int) -> None:
    page.wait_for_function("steps => Number(document.querySelector('.transport').dataset.steps) >= steps", arg=steps)


def drive(page, session: Recording, *, let_go: bool = True) -> None:
    """Takes the agent with the mouse, and leads it over two places for some steps each."""
    page.mouse.move(*on_screen(page, session.episode.states[-1][:2]))
    page.mouse.down()
    page.wait_for_selector('#table[data-held="agent"]')
    for place in ((150, 150), (300, 200)):
        page.mouse.move(*on_screen(page, place), steps=5)
        driven(page, session.episode.steps + 4)
    if let_go:
        page.mouse.up()
        state(page, "paused")


def shows(page, text: str) -> None:
    page.locator("section.kept h2", has_text=text).wait_for()


def test_an_episode_is_driven_with_the_mouse_and_kept(running, page, folder):
    session = opened(page, running)
    assert str(folder) in page.inner_text("section.kept")
    drive(page, session)
    episode = session.episode
    assert episode.steps >= 8
    np.testing.assert_allclose(episode.actions[-1], (300, 200), atol=1)  # a pixel of the screen
    assert episode.steps == int(page.locator(".transport").get_attribute("data-steps"))
    assert not folder.parent.exists()
    page.keyboard.press("k")
    state(page, "ready", SEED + 1)
    shows(page, f"1 episode · {episode.steps} frames")
    dataset = load_dataset(folder)
    assert len(dataset) == episode.steps
    fits(dataset, 0, episode)


def test_it_is_on_the_data_page_at_once_and_grows_there(running, page, folder):
    session = opened(page, running)
    for number in range(2):
        drive(page, session, let_go=False)  # keys end an episode under the hand, too
        page.keyboard.press("Enter")
        page.mouse.up()
        state(page, "ready", SEED + number + 1)
        page.locator(".kept a", has_text=re.compile(f"^{number}$")).click()
        page.wait_for_selector(f'.episodes tbody tr:nth-child({number + 1})[aria-current="true"]')
        assert page.locator(".episodes tbody tr").count() == number + 1
        assert page.inner_text("h1") == str(folder)
        page.wait_for_selector('.pictures canvas[data-frame="0"]')
        page.go_back()
        state(page, "ready", SEED + number + 1)
        session = running.studio.recordings[-1]


def test_time_stands_still_while_nothing_is_held(running, page):
    session = opened(page, running)
    drive(page, session)
    steps, before = session.episode.steps, session._table.state()
    page.wait_for_timeout(500)
    np.testing.assert_array_equal(session._table.state(), before)
    page.mouse.move(*on_screen(page, (400, 400)))  # beside the agent nothing is taken
    page.mouse.down()
    page.mouse.move(*on_screen(page, (100, 400)))
    page.mouse.up()
    assert session.episode.steps == steps
    drive(page, session)
    assert session.episode.steps >= steps + 8


def test_success_ends_the_episode(running, page, folder):
    session = opened(page, running)
    drive(page, session)
    solve(session)
    page.mouse.down()
    page.mouse.move(*on_screen(page, (310, 200)), steps=3)
    state(page, "solved")
    page.mouse.up()
    episode = session.episode
    assert "Solved" in page.inner_text(".hint")
    page.get_by_role("button", name="Keep").click()
    state(page, "ready", SEED + 1)
    assert page.locator(".kept td.good").count() == 1
    dataset = load_dataset(folder)
    fits(dataset, 0, episode)
    assert dataset.arrays["next.success"].tolist() == [False] * (episode.steps - 1) + [True]


@pytest.mark.parametrize("key", ["x", "Delete"])
def test_an_episode_is_discarded(running, page, folder, key):
    session = opened(page, running)
    drive(page, session)
    page.keyboard.press(key)
    state(page, "ready", SEED + 1)
    assert session.episode.seed == SEED + 1
    assert not folder.parent.exists()
    page.keyboard.press("k")  # nothing to keep
    page.keyboard.press("r")
    page.keyboard.press("x")  # but another beginning
    state(page, "ready", SEED + 2)
    assert page.locator("#notice").is_hidden()


def test_an_episode_is_retried_from_the_same_state(running, page, folder):
    session = opened(page, running)
    before = session.episode.states[0]
    drive(page, session)
    page.keyboard.press("r")
    state(page, "ready", SEED)
    np.testing.assert_array_equal(session._table.state(), before)
    assert session.episode.steps == 0
    drive(page, session)
    page.keyboard.press("k")
    state(page, "ready", SEED + 1)
    assert len(load_dataset(folder).episodes) == 1


def test_a_seed_is_chosen_and_its_keys_are_its_own(running, page):
    session = opened(page, running)
    drive(page, session)
    seed = page.get_by_label("Seed", exact=True)
    seed.click()
    seed.press("Delete")  # of a digit, not of the episode
    assert session.episode.steps >= 8
    seed.fill("1000500")
    seed.press("Enter")
    page.locator("#notice", has_text="seed 1000500 is for the next one").wait_for()
    page.get_by_role("button", name="Retry").click()
    state(page, "ready", SEED)
    drive(page, session)
    page.get_by_role("button", name="Discard").click()
    state(page, "ready", 1_000_500)
    assert session.episode.seed == 1_000_500
    assert page.locator("#notice").is_hidden()
    seed.fill("")
    seed.press("Enter")
    assert seed.input_value() == "1000500"
    seed.fill("7")  # one of the evaluation's
    seed.press("Enter")
    state(page, "ready", SEED)


def test_a_finger_drives_too(running, chromium, folder):
    context = chromium.new_context(viewport={"width": 768, "height": 1024}, has_touch=True)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    said = []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    session = opened(page, running)
    touch = context.new_cdp_session(page)

    def finger(kind: str, *places: tuple[float, float]) -> None:
        points = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(on_screen(page, p) for p in places)]
        touch.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})

    x, y = session.episode.states[0][:2]
    finger("Start", (x + 15, y))  # a finger is broad
    page.wait_for_selector('#table[data-held="agent"]')
    assert session.episode.steps == 0
    finger("Move", (200, 300))
    driven(page, 6)
    for others in ([(450, 450)], [(400, 450)], []):  # a second one comes, moves and goes
        finger("Start" if (450, 450) in others else "Move", (200, 300), *others)
        driven(page, session.episode.steps + 3)
        np.testing.assert_allclose(session.episode.actions[-1], (200, 300), atol=1)
    finger("End")
    state(page, "paused")
    np.testing.assert_allclose(session.episode.actions[-1], (200, 300), atol=1)
    episode = session.episode
    page.get_by_role("button", name="Keep").tap()
    state(page, "ready", SEED + 1)
    fits(load_dataset(folder), 0, episode)
    assert page.evaluate("scrollY") == 0  # nor has the page moved under the finger
    context.close()
    assert said == []


def test_a_lost_connection_is_told_and_what_was_kept_stays(page, policies, folder):
    def studio() -> Studio:
        return Studio(policies, Sources(), recordings=str(folder), runs=folder.parent / "runs")

    first = studio()
    with closing(Serving(first.app())) as serving:
        session = opened(page, Running(first, serving.port))
        drive(page, session)
        page.keyboard.press("k")
        state(page, "ready", SEED + 1)
        drive(page, session, let_go=False)
    page.wait_for_selector('body[data-connection="lost"]')
    assert "the episode under way" in page.inner_text("#notice")
    page.mouse.up()
    second = studio()
    with closing(Serving(second.app(), serving.port)):
        page.wait_for_function("() => document.querySelector('#notice').textContent.startsWith('Connected again')")
        state(page, "ready", SEED + 1)
        assert second.recordings[0].episode.seed == SEED + 1
        drive(page, second.recordings[0])
        page.keyboard.press("k")
        shows(page, "2 episodes")
    assert len(load_dataset(folder).episodes) == 2
    assert all("WebSocket" in line for line in page.said)
    page.said.clear()


def test_a_second_tab_is_told_and_goes_on_when_the_first_is_closed(running, page):
    first = page.context.new_page()
    opened(first, running)
    page.goto(f"{running.address}/#/record")
    page.wait_for_selector("#notice:not([hidden])")
    assert "expected one page that records, got another one" in page.inner_text("#notice")
    assert page.locator(".stage").get_attribute("inert") is not None
    first.close()
    state(page, "ready")
    assert page.locator("#notice").is_hidden()
    drive(page, running.studio.recordings[-1])


def test_a_folder_that_was_refused_is_not_asked_for_again_under_the_hand(running, page):
    page.add_init_script(SOCKETS)
    running.studio._recorder.hold()
    page.goto(f"{running.address}/#/record")
    page.wait_for_selector("#notice:not([hidden])")
    running.studio._recorder.release()
    page.evaluate("sockets.find((one) => one.url.endsWith('/api/record')).close()")  # it comes back before it is asked
    state(page, "ready")
    session = running.studio.recordings[-1]
    drive(page, session)
    episode = session.episode
    page.wait_for_timeout(3500)
    assert session.episode is episode


def test_the_set_of_another_robot_is_one_line(running, page, folder):
    action = {"dtype": "float32", "shape": (6,), "names": None}
    DatasetWriter.create(folder, 10, {"action": action}).finalize()
    page.goto(f"{running.address}/#/record")
    page.wait_for_selector("#notice:not([hidden])")
    notice = page.inner_text("#notice")
    assert f"{folder}: features: expected those of Push-T" in notice
    assert "\n" not in notice


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_the_table_is_as_large_as_the_screen_allows(running, page, size, scheme):
    page.emulate_media(color_scheme=scheme)
    width, height = SIZES[size]
    page.set_viewport_size({"width": width, "height": height})
    opened(page, running)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    box = page.locator("#table").bounding_box()
    assert box["width"] == box["height"] > min(500, 0.85 * width)
    assert box["y"] + box["height"] <= height
    for name in ("Keep", "Retry", "Discard"):
        button = page.get_by_role("button", name=name).bounding_box()
        assert button["y"] + button["height"] < box["y"]
