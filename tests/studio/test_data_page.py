"""The page that shows data, in a real browser."""

import json
from contextlib import closing
from urllib.request import urlopen

import pytest

from visuomotor.studio.app import Studio
from visuomotor.studio.sources import Sources

from .conftest import SIZES, Running, Serving

pytestmark = pytest.mark.slow


def looked_at(page, frame: int) -> None:
    """Waits until pictures and window are those of a frame."""
    page.wait_for_selector(f'.pictures canvas[data-frame="{frame}"]')
    page.wait_for_selector(f'.frames figure:last-child canvas[data-frame="{frame}"]')


def test_an_episode_is_chosen_and_scrubbed(page, running: Running):
    page.goto(f"{running.address}/#/data")
    looked_at(page, 0)
    page.locator(".episodes tbody tr").nth(3).click()
    with urlopen(f"{running.address}/api/data/0") as answer:
        length = json.load(answer)["episodes"][3]["length"]
    page.locator(".player .said", has_text=f"of {length}").wait_for()
    page.get_by_label("Frame", exact=True).fill("30")
    looked_at(page, 30)
    assert page.evaluate("location.hash") == "#/data/0/3/30"
    assert page.locator(".plot").count() == 3  # x, y, and the corners of the T
    assert page.locator(".plot .cursor").count() == 3
    page.locator(".plot .chart").first.click(position={"x": 60, "y": 50})
    page.wait_for_function("() => Number(location.hash.split('/').at(-1)) < 30")
    page.wait_for_selector('.inspection .good:has-text("Nothing wrong was found.")')


def test_the_window_says_where_no_example_is(page, running: Running):
    page.goto(f"{running.address}/#/data/0/0/0")
    looked_at(page, 0)
    window = page.locator('section[aria-label="Training window"]')
    assert window.get_attribute("data-trained") == "true"
    assert window.locator("rect.padding").count() == 2  # the frame before the first one: observed, and acted
    page.get_by_label("Frame", exact=True).press("End")
    page.wait_for_selector('section[aria-label="Training window"][data-trained="false"]')
    assert window.locator("rect.padding").count() == 14
    page.get_by_label("Horizon", exact=True).fill("8")
    page.get_by_label("Horizon", exact=True).press("Enter")
    page.wait_for_function("() => document.querySelectorAll('.steps rect.padding').length === 6")


def test_a_damaged_source_is_one_line_and_others_stay_open(page, policies, tmp_path):
    folder = tmp_path / "damaged"
    (folder / "meta").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text("{")
    with closing(Serving(Studio(policies, Sources([str(folder)])).app())) as serving:
        page.goto(f"http://127.0.0.1:{serving.port}/#/data")
        page.wait_for_selector("#notice:not([hidden])")
        notice = page.inner_text("#notice")
        assert str(folder / "meta" / "info.json") in notice
        assert "\n" not in notice
        page.get_by_label("Data set", exact=True).select_option("1")
        looked_at(page, 0)
        assert page.locator("#notice").is_hidden()
    assert all("422" in line for line in page.said)
    page.said.clear()


@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_wider_than_the_screen(page, running: Running, size):
    width, height = SIZES[size]
    page.set_viewport_size({"width": width, "height": height})
    page.goto(f"{running.address}/#/data/0/0/12")
    looked_at(page, 12)
    assert page.evaluate("document.documentElement.scrollWidth") == width
