"""The page that watches, in a real browser; what it does is read off the simulator behind it."""

from contextlib import closing

import numpy as np
import pytest

from visuomotor.studio.app import Studio
from visuomotor.studio.policies import Policies
from visuomotor.studio.session import Session
from visuomotor.studio.sources import Sources

from .conftest import SIZES, Running, Serving

pytestmark = pytest.mark.slow
SOLVED = 177  # solved after 63 steps with four steps of denoising


def opened(page, running: Running) -> Session:
    """The page, paused before the first step, and the session behind it."""
    page.goto(f"{running.address}/#/watch")
    page.wait_for_selector('.transport[data-state="paused"]')
    choose(page, "Denoising steps", 4)
    return running.studio.sessions[-1]


def choose(page, name: str, value: object) -> None:
    control = page.get_by_label(name, exact=True)
    if control.evaluate("element => element.tagName") == "SELECT":
        control.select_option(str(value))
    else:
        control.fill(str(value))
        control.press("Enter")
    page.wait_for_selector(".controls:not([aria-busy])")


def said(page, text: str) -> None:
    """Waits until the line beside the buttons says something."""
    page.wait_for_function("text => document.querySelector('.said').textContent.includes(text)", arg=text)


def on_screen(page, place) -> tuple[float, float]:
    """Where a place of the table is on the screen."""
    box = page.locator("#table").bounding_box()
    return tuple(box[key] + value / 512 * box["width"] for key, value in zip(("x", "y"), place, strict=True))


def held(page, thing: str) -> None:
    page.wait_for_selector(f'#table[data-held="{thing}"]')


def test_a_rollout_is_watched_to_success(page, running):
    session = opened(page, running)
    choose(page, "Seed", SOLVED)
    choose(page, "Speed", 0)
    page.get_by_role("button", name="Run").click()
    page.wait_for_selector('.transport[data-state="solved"]')
    assert session.episodes[0].seed == SOLVED
    assert session.episodes[0].coverage > 0.95
    assert session.over


def test_the_block_is_dragged_and_the_policy_goes_on(page, running):
    session = opened(page, running)
    page.get_by_role("button", name="Step", exact=True).click()
    said(page, "step 1 ")
    table = session.episodes[0].table
    before = table.state()
    centre = table._environment.block.local_to_world(table._environment.block.center_of_gravity)
    page.mouse.move(*on_screen(page, centre))
    page.mouse.down()
    held(page, "block")
    page.mouse.move(*on_screen(page, (centre[0] - 30, centre[1] + 40)), steps=5)
    page.mouse.up()
    held(page, "")
    moved = table.state() - before
    np.testing.assert_allclose(moved[2:4], (-30, 40), atol=2)
    np.testing.assert_array_equal(moved[:2], (0, 0))
    page.get_by_role("button", name="Step", exact=True).click()
    said(page, "step 2 ")
    assert session.episodes[0].steps == 2


def test_the_agent_is_held_in_the_middle_of_a_rollout(page, running):
    session = opened(page, running)
    table = session.episodes[0].table
    page.mouse.move(*on_screen(page, table.state()[:2]))
    page.mouse.down()
    held(page, "agent")
    page.mouse.move(*on_screen(page, (60, 450)), steps=3)
    page.keyboard.press("Space")
    page.wait_for_function("() => parseInt(document.querySelector('.said').textContent.split('step ')[1]) > 8")
    np.testing.assert_allclose(table.state()[:2], (60, 450), atol=2)  # nine steps, and it is where the hand is
    page.mouse.up()
    held(page, "")
    page.keyboard.press("Space")
    said(page, "paused")


def test_a_finger_drags_too(chromium, running):
    context = chromium.new_context(viewport={"width": 820, "height": 1180}, has_touch=True)
    context.set_default_timeout(120_000)
    page = context.new_page()
    session = opened(page, running)
    before = session.episodes[0].table.state()
    (x, y), (to_x, to_y) = on_screen(page, before[:2]), on_screen(page, (80, 80))
    touch = context.new_cdp_session(page)
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    held(page, "agent")
    touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": to_x, "y": to_y}]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    held(page, "")
    np.testing.assert_allclose(session.episodes[0].table.state()[:2], (80, 80), atol=2)
    context.close()


def test_keys_move_and_turn_and_step(page, running):
    session = opened(page, running)
    before = session.episodes[0].table.state()
    page.locator("#table").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowUp")
    page.keyboard.press(".")
    said(page, "step 1 ")
    states = session.episodes[0].states
    np.testing.assert_allclose(states[0] - before, (0, -8, 8, 0, 0), atol=1e-9)
    page.keyboard.press("r")
    said(page, "step 0 ")
    page.keyboard.press("]")
    page.keyboard.press(".")
    said(page, "step 1 ")
    turned = session.episodes[0].states[0][4] - before[4]
    assert turned % (2 * np.pi) == pytest.approx(np.pi / 24)


def test_the_denoising_is_scrubbed_and_played(page, running):
    opened(page, running)
    page.get_by_role("button", name="Step", exact=True).click()
    panel = page.locator('section[aria-label="Denoising"]')
    page.wait_for_selector('section[aria-label="Denoising"][data-at="4"]')
    panel.locator(".multiples button").first.click()
    page.wait_for_selector('section[aria-label="Denoising"][data-at="0"]')
    assert "Before step 1 of 4, noise level t = 90" in panel.inner_text()
    panel.get_by_role("button", name="Play").click()
    page.wait_for_selector('section[aria-label="Denoising"][data-at="4"]')
    panel.get_by_role("button", name="Follow").click()
    assert "held" not in panel.inner_text()


def test_many_seeds_are_a_grid_and_one_of_them_is_chosen(page, running):
    session = opened(page, running)
    choose(page, "Episodes", 4)
    page.get_by_role("button", name="Step", exact=True).click()
    said(page, "0 of 4 solved")
    first = session.settings.seed
    page.get_by_role("button", name=str(first + 2)).click()
    page.wait_for_selector("#table", state="visible")
    page.wait_for_selector(".grid-of-seeds", state="hidden")
    assert (session.settings.seed, session.settings.episodes) == (first + 2, 1)


def test_an_image_policy_shows_what_it_sees(page, running):
    opened(page, running)
    choose(page, "Policy", "pusht-image-small")
    page.get_by_role("button", name="Step", exact=True).click()
    panel = page.locator('section[aria-label="What it sees"]')
    panel.locator("circle").nth(63).wait_for()
    assert panel.locator("image").count() == 2
    assert panel.locator("circle").count() == 64
    assert page.locator("select", has_text="DDIM").input_value() == "DPMSolverMultistep"


def test_a_lost_connection_is_told_and_comes_back(page, policies):
    with closing(Serving(Studio(policies, Sources()).app())) as serving:
        page.goto(f"http://127.0.0.1:{serving.port}/#/watch")
        page.wait_for_selector('.transport[data-state="paused"]')
    page.wait_for_selector('body[data-connection="lost"]')
    assert "The connection to the studio is lost." in page.inner_text("#notice")
    studio = Studio(policies, Sources())
    with closing(Serving(studio.app(), serving.port)):
        page.wait_for_selector('body[data-connection="open"]')
        page.wait_for_function("() => document.querySelector('#notice').textContent.startsWith('Connected again')")
        page.get_by_role("button", name="Step", exact=True).click()
        said(page, "step 1 ")
        assert studio.sessions[0].episodes[0].steps == 1
    assert all("WebSocket" in line for line in page.said)
    page.said.clear()


def test_a_policy_that_is_damaged_is_one_line_and_another_can_be_chosen(page, tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "config.json").write_text("{")
    (folder / "model.safetensors").write_bytes(b"")
    with closing(Serving(Studio(Policies([str(folder)]), Sources()).app())) as serving:
        page.goto(f"http://127.0.0.1:{serving.port}/#/watch")
        page.wait_for_selector("#notice:not([hidden])")
        assert str(folder / "config.json") in page.inner_text("#notice")
        page.get_by_label("Policy", exact=True).select_option("pusht-keypoints-small")
        page.wait_for_selector('.transport[data-state="paused"]')
        page.wait_for_selector("#notice", state="hidden")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_wider_than_the_screen(page, running, size, scheme):
    page.emulate_media(color_scheme=scheme)
    width, height = SIZES[size]
    page.set_viewport_size({"width": width, "height": height})
    opened(page, running)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert (
        page.evaluate("getComputedStyle(document.body).backgroundColor")
        == {
            "light": "rgb(246, 247, 249)",
            "dark": "rgb(18, 22, 28)",
        }[scheme]
    )
    box = page.locator("#table").bounding_box()
    assert box["width"] == box["height"] > min(370, 0.85 * width)
    assert box["y"] + box["height"] <= height
