"""The page that compares, in a real browser; its numbers are held against the evaluations' own files."""

import base64
import io
import json
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import av
import numpy as np
import pytest
from PIL import Image

from visuomotor.evaluation.intervals import compare
from visuomotor.studio.app import Studio
from visuomotor.studio.comparing import Comparing
from visuomotor.studio.reports import Reports
from visuomotor.studio.sources import Sources

from .conftest import SIZES, Serving
from .measured import EPISODES, STEPS

pytestmark = pytest.mark.slow
NAMES = list(STEPS)
FRAMES = "(figures) => figures.map((figure) => Number(figure.dataset.frame))"
PICTURE = """(seen) => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [seen.videoWidth ?? seen.width, seen.videoHeight ?? seen.height];
  canvas.getContext("2d").drawImage(seen, 0, 0);
  return canvas.toDataURL("image/png").split(",")[1];
}"""
CURVES = "() => [...document.querySelectorAll('.pair path')].filter((one) => one.getAttribute('d')).length === 2"
BEYOND = "(step) => [...document.querySelectorAll('.pair figure')].every((one) => one.dataset.frame > step)"
AGENT = [65, 105, 225]  # --agent, on the page in light


@pytest.fixture
def address(comparing: Serving) -> str:
    return f"http://127.0.0.1:{comparing.port}"


def opened(page, address: str, place: str = "") -> None:
    page.goto(f"{address}/#/compare/{place}")
    page.wait_for_selector(".verdict .apart")


def shows(page, source: str, frame: int) -> None:
    """Waits until both sides show a frame."""
    page.wait_for_function(
        "([source, frame]) => [...document.querySelectorAll('.pair figure')].every("
        "(one) => one.dataset.source === source && Number(one.dataset.frame) === frame)",
        arg=[source, frame],
    )


def picture(element) -> np.ndarray:
    """What a video or canvas shows, (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(element.evaluate(PICTURE)))).convert("RGB"), float)


def filmed(folder: Path, seed: int) -> list[Path]:
    """The videos that the evaluations made of a seed."""
    return [path for name in NAMES for path in (folder / name / "videos").glob(f"*_{seed}.mp4")]


def test_two_reports_are_chosen_and_their_numbers_are_those_of_the_files(page, address, contents):
    opened(page, address)
    page.get_by_label("Report A", exact=True).select_option(label=label(contents, "two", page))
    page.get_by_label("Report B", exact=True).select_option(label=label(contents, "four", page))
    page.wait_for_function("() => location.hash === '#/compare/1/0'")
    for letter, name in (("A", "two"), ("B", "four")):
        content = contents[name]
        said = page.inner_text(f'.verdict [data-report="{letter}"]')
        low, high = content["success_rate_interval"]
        solved = sum(one["success"] for one in content["episodes"])
        assert f"{content['success_rate']:.1%}".replace("%", " %") in said
        assert f"{100 * low:.1f} % to {100 * high:.1f} %" in said
        assert f"{solved} of {EPISODES} solved" in said
        assert f"mean max reward {content['mean_max_reward']:.3f}" in said
        assert f"DDIM, {STEPS[name]} steps, 8 actions a plan" in said
    pair = compare(contents["two"], contents["four"])
    points, low, high = (f"{100 * value:+.1f}".replace("-", "\u2212") for value in (pair.difference, *pair.interval))
    expected = f"B solves {len(pair.gained)} more, loses {len(pair.lost)}: {points} points ({low} to {high})"
    assert page.inner_text(".verdict .sentence") == expected
    assert f"in {float(f'{100 * pair.p_value:.2g}'):g}\u00a0% of comparisons" in page.inner_text(".verdict .apart")


def label(contents: dict[str, dict[str, Any]], name: str, page) -> str:
    """What the choice calls a report."""
    options = page.get_by_label("Report A", exact=True).locator("option").all_inner_texts()
    (found,) = [text for text in options if f"/{name}, {100 * contents[name]['success_rate']:.1f} %" in text]
    return found


def test_seeds_are_filtered_by_who_solved_them_with_mouse_and_keys(page, address, contents):
    opened(page, address, "0/1")
    pair = compare(contents["four"], contents["two"])
    solved = [{one["seed"]: one["success"] for one in contents[name]["episodes"]} for name in NAMES]
    both = [seed for seed in solved[0] if solved[0][seed] and solved[1][seed]]
    neither = [seed for seed in solved[0] if not solved[0][seed] and not solved[1][seed]]
    expected = {"Both": both, "Only A": pair.lost, "Only B": pair.gained, "Neither": neither, "All": sorted(solved[0])}
    for name, seeds in expected.items():
        page.get_by_role("button", name=f"{name} {len(seeds)}", exact=True).click()
        shown = page.locator(".cells button")
        assert [int(seed) for seed in shown.evaluate_all("all => all.map((one) => one.dataset.seed)")] == seeds
        assert page.locator(".scatter circle").count() == len(seeds)
    page.locator(".filter").last.focus()
    page.keyboard.press("Tab")  # the seeds are one stop of the keyboard
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    third = sorted(solved[0])[2]
    assert page.evaluate("location.hash") == f"#/compare/0/1/{third}"
    assert page.get_attribute('.cells [aria-current="true"]', "data-seed") == str(third)
    assert page.get_attribute('.scatter circle[data-chosen="true"]', "data-seed") == str(third)


def test_the_two_videos_of_a_flipped_seed_go_in_step_and_show_the_frame_asked_for(page, address, folder, contents):
    pair = compare(contents["four"], contents["two"])
    seed = next(seed for seed in pair.gained + pair.lost if len(filmed(folder, seed)) == 2)
    opened(page, address, "0/1")
    page.click(f'.cells [data-seed="{seed}"]')
    shows(page, "video", 1)  # a film begins after the first step
    for step in (60, 23):
        page.get_by_label("Step", exact=True).fill(str(step))
        shows(page, "video", step)
        for video, path in zip(page.query_selector_all(".pair video"), filmed(folder, seed), strict=True):
            seen = picture(video)
            with av.open(path) as container:
                frames = [frame.to_ndarray(format="rgb24").astype(float) for frame in container.decode(video=0)]
            away = [np.abs(seen - frame).mean() for frame in frames[: step + 20]]
            assert int(np.argmin(away)) == step - 1
    page.get_by_role("button", name="Play", exact=True).click()
    page.wait_for_function(BEYOND, arg=35)
    first, second = page.eval_on_selector_all(".pair figure", FRAMES)  # at once: it plays
    assert abs(first - second) <= 3
    page.get_by_role("button", name="Pause", exact=True).click()
    step = int(page.get_by_label("Step", exact=True).input_value())
    shows(page, "video", step)
    page.wait_for_function(CURVES)


def test_a_flipped_seed_that_was_not_filmed_is_rolled_out_again_in_step(page, address, folder, contents):
    pair = compare(contents["four"], contents["two"])
    seed = next(seed for seed in pair.gained + pair.lost if not filmed(folder, seed))
    opened(page, address, f"0/1/{seed}")
    shows(page, "replay", 0)
    page.get_by_label("Step", exact=True).fill("40")
    shows(page, "replay", 40)
    for number, figure in enumerate(page.query_selector_all(".pair figure")):
        with urlopen(f"{address}/api/reports/{number}/replays/{seed}") as answer:
            replay = json.load(answer)
        assert figure.query_selector(".note").inner_text() == "Rolled out again: ends as reported."
        assert f"step 40 · {100 * replay['coverages'][39]:.1f} %" in figure.inner_text()
        seen, (x, y) = picture(figure.query_selector("canvas")), replay["states"][40][:2]
        around = [(x - 12, y), (x + 12, y), (x, y - 12), (x, y + 12)]  # some may lie under the plan
        scale = len(seen) / 512
        assert AGENT in [seen[round(v * scale), round(u * scale)].tolist() for u, v in around]
    page.wait_for_function(CURVES)
    page.evaluate("document.activeElement.blur()")
    page.get_by_label("Speed", exact=True).select_option("1")  # it must not end before it is held
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Space")
    page.wait_for_function(BEYOND, arg=50)
    page.keyboard.press("Space")
    step = int(page.get_by_label("Step", exact=True).input_value())
    shows(page, "replay", step)
    assert page.get_by_role("button", name="Play", exact=True).count() == 1


def test_swapping_keeps_the_seed(page, address, contents):
    seed = contents["four"]["episodes"][0]["seed"]
    opened(page, address, f"0/1/{seed}")
    page.get_by_role("button", name="Swap").click()
    page.wait_for_function(f"() => location.hash === '#/compare/1/0/{seed}'")
    (low, high) = contents["two"]["success_rate_interval"]
    page.wait_for_selector(f'.verdict [data-report="A"]:has-text("{100 * low:.1f} % to {100 * high:.1f} %")')


def test_without_reports_it_says_how_to_make_some(page, policies, tmp_path, contents):
    with closing(Serving(Studio(policies, Sources(), Comparing(Reports([str(tmp_path)]))).app())) as serving:
        page.goto(f"http://127.0.0.1:{serving.port}/#/compare")
        page.wait_for_selector(".empty:not([hidden])")
        said = page.inner_text(".empty")
        assert f"In {tmp_path} there is no evaluation yet." in said
        assert "visuomotor eval pusht-keypoints-small --episodes 100 --output outputs/own-steps" in said
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "eval.json").write_text(json.dumps(contents["four"]))
        page.get_by_role("button", name="Look again").click()
        page.wait_for_selector(".verdict .apart")
        assert page.locator(".empty").is_hidden()


def test_a_damaged_report_and_one_of_other_seeds_are_said_in_a_line(page, policies, tmp_path, contents):
    moved = [one | {"seed": one["seed"] + 1000} for one in contents["two"]["episodes"]]
    texts = {"a": "{", "b": json.dumps(contents["four"]), "c": json.dumps(contents["two"] | {"episodes": moved})}
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "eval.json").write_text(text)
    with closing(Serving(Studio(policies, Sources(), Comparing(Reports([str(tmp_path)]))).app())) as serving:
        opened(page, f"http://127.0.0.1:{serving.port}")
        assert page.inner_text(".damage").startswith(f"{tmp_path / 'a' / 'eval.json'}: expected JSON")
        assert page.evaluate("location.hash") == "#/compare/1/2"
        assert "expected seeds in common" in page.inner_text(".verdict .refused")
        assert page.locator(".cells button").count() == 0
        assert "there is no pair to be played" in page.inner_text(".pair")


@pytest.mark.parametrize(
    ("solved", "said"),
    [
        (5, "Not enough to tell them apart: the 6 seeds of both; equally good policies would differ as much in 6.3"),
        (6, "Over the 6 seeds of both B is better; equally good policies would differ as much in 3.1"),
    ],
)
def test_a_policy_is_better_where_chance_alone_would_hardly_do_it(page, policies, tmp_path, contents, solved, said):
    for name, count in (("a", 0), ("b", solved)):  # an interval of the difference excludes none in both cases
        episodes = [one | {"success": number < count} for number, one in enumerate(contents["four"]["episodes"])]
        content = contents["four"] | {"episodes": episodes, "success_rate": count / EPISODES}
        (tmp_path / name).mkdir()
        (tmp_path / name / "eval.json").write_text(json.dumps(content))
    with closing(Serving(Studio(policies, Sources(), Comparing(Reports([str(tmp_path)]))).app())) as serving:
        opened(page, f"http://127.0.0.1:{serving.port}", "0/1")
        assert said in page.inner_text(".verdict .apart")


@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_wider_than_the_screen(page, address, contents, size):
    width, height = SIZES[size]
    page.set_viewport_size({"width": width, "height": height})
    opened(page, address, f"0/1/{contents['four']['episodes'][0]['seed']}")
    page.wait_for_selector(".pair figure[data-frame]")
    assert page.evaluate("document.documentElement.scrollWidth") == width
