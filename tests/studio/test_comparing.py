"""What the pages are told of evaluation reports, over HTTP."""

import json
import math
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest

from visuomotor.cli import main
from visuomotor.errors import ConfigError
from visuomotor.evaluation.intervals import compare, wilson_interval
from visuomotor.policy.checkpoint import load_policy
from visuomotor.simulation.rollout import rollout
from visuomotor.studio.app import Studio
from visuomotor.studio.comparing import Comparing
from visuomotor.studio.replays import Replays, Stopped
from visuomotor.studio.reports import Report, Reports, given
from visuomotor.studio.sources import Sources

from .conftest import Serving
from .measured import BATCH, EPISODES, FIRST, MAX_STEPS, POLICY, STEPS

NAMES = list(STEPS)
SEEDS = range(FIRST, FIRST + EPISODES)


@pytest.fixture
def address(comparing: Serving) -> str:
    return f"http://127.0.0.1:{comparing.port}/api/reports"


@pytest.fixture
def serve(policies) -> Iterator[Callable[..., str]]:
    """Serves other folders; the address of what is told of them."""
    started: list[Serving] = []

    def begin(*folders: Path, replays: Replays | None = None) -> str:
        reports = Reports([str(folder) for folder in folders])
        started.append(Serving(Studio(policies, Sources(), Comparing(reports, replays)).app()))
        return f"http://127.0.0.1:{started[-1].port}/api/reports"

    yield begin
    for serving in started:
        serving.close()


def get(address: str) -> Any:
    with urlopen(address) as answer:
        return json.load(answer)


def refusal(address: str) -> str:
    with pytest.raises(HTTPError) as refused:
        urlopen(address)
    assert refused.value.code == 422
    error = json.load(refused.value)["error"]
    assert "\n" not in error
    return error


def changed(content: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return content | {"settings": content["settings"] | settings}


def only(content: dict[str, Any], seeds: range, shift: int = 0) -> dict[str, Any]:
    """The figures of some of the episodes, as if measured from other seeds."""
    episodes = [one | {"seed": one["seed"] + shift} for one in content["episodes"] if one["seed"] in seeds]
    solved = sum(one["success"] for one in episodes)
    interval = list(wilson_interval(solved, len(episodes)))
    return content | {"episodes": episodes, "success_rate": solved / len(episodes), "success_rate_interval": interval}


def written(folder: Path, content: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "eval.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_the_list_names_every_report_below_the_folders(address, folder, contents):
    assert get(address) == {
        "folders": [str(folder)],
        "reports": [
            {
                "number": number,
                "name": str(folder / name),
                "policy": POLICY,
                "success_rate": contents[name]["success_rate"],
                "episodes": EPISODES,
            }
            for number, name in enumerate(NAMES)
        ],
    }


@pytest.mark.parametrize("number", [0, 1])
def test_a_report_is_what_the_evaluation_wrote(address, folder, contents, number):
    content, told = contents[NAMES[number]], get(f"{address}/{number}")
    for name in ("success_rate", "success_rate_interval", "mean_max_reward", "mean_max_coverage"):
        assert told[name] == content[name]
    assert [{**one, "video": None} for one in told["episodes"]] == [
        {**one, "video": None} for one in content["episodes"]
    ]
    videos = {int(path.stem.split("_")[1]) for path in (folder / NAMES[number] / "videos").iterdir()}
    assert {one["seed"] for one in told["episodes"] if one["video"]} == videos
    assert len(videos) == 2
    assert told["settings"]["num_inference_steps"] == STEPS[NAMES[number]]


def test_the_pair_is_that_of_the_projects_own_statistics(address, contents):
    told, expected = get(f"{address}/0/against/1"), compare(contents["four"], contents["two"])
    assert expected.gained and expected.lost
    assert (told["gained"], told["lost"], told["shared"]) == (expected.gained, expected.lost, EPISODES)
    assert (told["difference"], tuple(told["interval"])) == (expected.difference, expected.interval)
    assert told["p_value"] == expected.p_value
    assert told["differences"] == [["num_inference_steps", "4", "2"]]


def test_the_pair_is_of_the_seeds_that_both_have(contents, serve, tmp_path):
    half = range(FIRST + 2, FIRST + EPISODES)
    written(tmp_path / "a", contents["four"])
    written(tmp_path / "b", only(contents["two"], half))
    told = get(f"{serve(tmp_path)}/0/against/1")
    expected = compare(only(contents["four"], half), only(contents["two"], half))
    assert told["shared"] == len(half)
    assert (told["gained"], told["lost"], tuple(told["interval"])) == (
        expected.gained,
        expected.lost,
        expected.interval,
    )


def test_what_cannot_be_paired_is_said(contents, serve, tmp_path):
    first = written(tmp_path / "a", contents["four"])
    second = written(tmp_path / "b", only(contents["two"], SEEDS, shift=1000))
    third = written(tmp_path / "c", changed(contents["two"], env="another"))
    address = serve(tmp_path)
    seeds = f"{FIRST} to {FIRST + 5} and {FIRST + 1000} to {FIRST + 1005}"
    advice = "evaluate both with the same --seed"
    assert get(f"{address}/0/against/1") == {
        "refused": f"{first} and {second}: expected seeds in common, got {seeds}; {advice}"
    }
    assert get(f"{address}/0/against/2") == {
        "refused": f"{first} and {third}: expected the same environment, got pusht and another; choose two of one"
    }


def test_a_video_comes_whole_and_in_parts(address, folder):
    (path,) = (folder / "four" / "videos").glob("success_*.mp4")
    video = f"{address}/0/videos/{path.stem.split('_')[1]}"
    with urlopen(video) as answer:
        assert answer.headers["content-type"] == "video/mp4"
        assert answer.read() == path.read_bytes()
    with urlopen(Request(video, headers={"Range": "bytes=100-299"})) as answer:
        assert answer.status == 206
        assert answer.read() == path.read_bytes()[100:300]


def test_an_episode_without_a_video_is_told_with_the_command_that_makes_one(address, contents):
    seed = unfilmed(address)
    flags = "--noise-scheduler-type DDIM --num-inference-steps 4 --n-action-steps 8 --ddim-eta 0.0 --warm-start 1.0"
    tail = f"--episodes 1 --seed {seed} --max-steps {MAX_STEPS} --policy-batch {BATCH} --output outputs/seed-{seed}"
    assert refusal(f"{address}/0/videos/{seed}").endswith(f"visuomotor eval {POLICY} --device cpu {flags} {tail}")
    assert "seed: expected one of its 6" in refusal(f"{address}/0/videos/1")


def unfilmed(address: str, number: int = 0) -> int:
    return next(one["seed"] for one in get(f"{address}/{number}")["episodes"] if not one["video"])


def test_an_episode_rolled_out_again_is_the_one_that_was_measured(address, contents):
    seed = unfilmed(address)
    told = get(f"{address}/0/replays/{seed}")
    (episode,) = rollout(load_policy(POLICY).with_sampler("DDIM", 4), [seed], max_steps=MAX_STEPS, policy_batch=BATCH)
    np.testing.assert_allclose(told["states"], episode.states, atol=0.006)
    np.testing.assert_allclose(told["coverages"], episode.coverages, atol=1e-5)
    assert (len(told["states"]), told["chunk_starts"]) == (told["steps"] + 1, episode.chunk_starts)
    reported = next(one for one in contents["four"]["episodes"] if one["seed"] == seed)
    assert told["as_reported"]
    assert {name: told[name] for name in ("success", "steps", "max_coverage")} == {
        name: reported[name] for name in ("success", "steps", "max_coverage")
    }


def test_one_that_ends_otherwise_is_not_passed_off_as_the_same(contents, serve, tmp_path):
    content = json.loads(json.dumps(contents["four"]))
    content["episodes"][0]["max_coverage"] += 1e-4
    written(tmp_path / "a", content)
    assert get(f"{serve(tmp_path)}/0/replays/{FIRST}")["as_reported"] is False


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weights_sha256": "0" * 64}, "policy: expected the weights 000000000000..., got others in"),
        ({"policy": "outputs/gone/run"}, "outputs/gone/run: expected a policy's folder"),
        (
            {"policy": "someone/policy"},
            "policy: expected a folder on this machine, got 'someone/policy'; nothing is fetched",
        ),
        ({"policy": None, "server": "ws://elsewhere:8765"}, "policy: expected its name and the hash of its weights"),
    ],
)
def test_what_cannot_be_rolled_out_again_says_why_and_what_to_do(contents, serve, tmp_path, settings, said):
    written(tmp_path / "a", changed(contents["four"], **settings))
    told = get(f"{serve(tmp_path)}/0/replays/{FIRST}")
    assert said in told["refused"]
    source = "--server ws://elsewhere:8765" if "server" in settings else settings.get("policy", POLICY)
    assert told["command"].startswith(f"visuomotor eval {source} ")
    assert f"--episodes 1 --seed {FIRST} " in told["command"]


def test_an_episode_is_rolled_out_once(folder, contents, monkeypatch):
    report, replays = Report(folder / "two", folder), Replays("cpu")
    before = replays.episode(report, FIRST)
    monkeypatch.setattr("visuomotor.studio.replays.rollout", None)
    assert replays.episode(report, FIRST) == before
    with pytest.raises(Stopped):
        replays.episode(report, FIRST, stopped=lambda: True)


def test_a_rollout_is_given_up_in_its_middle(folder, contents):
    asked: list[int] = []
    with pytest.raises(Stopped):
        Replays("cpu").episode(Report(folder / "two", folder), FIRST, lambda: asked.append(1) or len(asked) > 3)
    assert len(asked) == 4


class Waiting(Replays):
    """Rolls nothing out, but notes that the page has left."""

    begun = left = False

    def episode(self, report: Report, seed: int, stopped: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        self.begun, end = True, time.monotonic() + 60
        while not stopped() and time.monotonic() < end:
            time.sleep(0.02)
        self.left = stopped()
        raise Stopped


@contextmanager
def waiting_page(port: int) -> Iterator[None]:
    with socket.create_connection(("127.0.0.1", port)) as page:
        page.sendall(f"GET /api/reports/0/replays/{FIRST} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        yield


def soon(there: Callable[[], bool]) -> bool:
    end = time.monotonic() + 30
    while not there() and time.monotonic() < end:
        time.sleep(0.02)
    return there()


def test_a_page_that_leaves_stops_its_rollout(contents, serve, tmp_path):
    written(tmp_path / "a", contents["four"])
    replays = Waiting("cpu")
    port = int(serve(tmp_path, replays=replays).split(":")[2].split("/")[0])
    with waiting_page(port):
        assert soon(lambda: replays.begun)
        time.sleep(0.5)
        assert not replays.left
    assert soon(lambda: replays.left)


def test_the_studio_ends_without_waiting_for_a_rollout(contents, policies, tmp_path, capfd):
    written(tmp_path / "a", contents["four"])
    replays = Waiting("cpu")
    comparing = Comparing(Reports([str(tmp_path)]), replays)
    serving = Serving(Studio(policies, Sources(), comparing).app())
    with closing(serving), waiting_page(serving.port):
        assert soon(lambda: replays.begun)
        serving.close()
        assert soon(lambda: replays.left)
    assert "Traceback" not in capfd.readouterr().err


def damaged(content: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return json.loads(json.dumps(content | changes))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda _: "{", "expected JSON"),
        (lambda _: "[]", "the whole: expected"),
        (lambda _: "{}", "success_rate: expected a value, got none"),
        (lambda one: damaged(one, episodes=[]), "episodes: expected one or more, got none"),
        (lambda one: damaged(one, episodes=one["episodes"] * 2), "episodes: expected every seed once"),
        (lambda one: damaged(one, success_rate=0.9), "success_rate: expected "),
        (lambda one: damaged(one, mean_max_reward=math.nan), "mean_max_reward: expected a finite number"),
        (lambda one: damaged(one, success_rate_interval=[0.9, 0.1]), "success_rate_interval: expected two ends"),
        (lambda one: damaged(one, settings="none"), "settings: expected"),
        (lambda one: damaged(one, versions={"torch": math.nan}), "versions.torch: expected a valid string, got nan"),
        (lambda one: changed(one, policy_batch=10**9), "policy_batch: expected 1 to 99999"),
    ],
)
def test_a_damaged_report_is_one_line_and_others_stand(contents, serve, tmp_path, damage, said):
    bad = written(tmp_path / "a", damage(contents["four"]))
    written(tmp_path / "b", contents["two"])
    address = serve(tmp_path)
    broken, whole = get(address)["reports"]
    error = refusal(f"{address}/0")
    assert error.startswith(f"{bad / 'eval.json'}: ")
    assert said in error
    assert broken == {"number": 0, "name": str(bad), "error": error}
    assert whole["episodes"] == EPISODES
    assert refusal(f"{address}/1/against/0") == error


def test_nothing_outside_the_folders_is_served(contents, serve, tmp_path):
    outside = written(tmp_path / "outside", contents["four"])
    (outside / "secret.mp4").write_bytes(b"secret")
    inside = written(tmp_path / "inside" / "a", contents["two"])
    (inside / "videos").mkdir()
    kind = "success" if contents["two"]["episodes"][0]["success"] else "failure"
    (inside / "videos" / f"{kind}_{FIRST}.mp4").symlink_to(outside / "secret.mp4")
    (tmp_path / "inside" / "b").mkdir()
    (tmp_path / "inside" / "b" / "eval.json").symlink_to(outside / "eval.json")
    (tmp_path / "inside" / "c").symlink_to(outside)
    address = serve(tmp_path / "inside")
    reports = get(address)["reports"]
    assert [report["name"] for report in reports] == [str(inside), str(tmp_path / "inside" / "b")]
    line = f"expected a file inside {tmp_path / 'inside'}, got a link that leads outside; copy the file itself into it"
    assert reports[1]["error"] == f"{tmp_path / 'inside' / 'b' / 'eval.json'}: {line}"
    assert refusal(f"{address}/1") == reports[1]["error"]
    assert refusal(f"{address}/0/videos/{FIRST}").endswith(line)
    assert refusal(f"{address}/2").startswith("report: expected 0 to 1, got 2")
    strange = ("/..%2F..%2Foutside", "/0/videos/..%2F..%2Foutside%2Fsecret.mp4", "/outside")
    for path in (*strange, f"/{'9' * 5000}", f"/0/against/{'9' * 5000}", f"/0/videos/{'9' * 5000}"):
        with pytest.raises(HTTPError) as refused:
            urlopen(address + path)
        assert refused.value.code == 404


def test_a_report_that_is_written_later_is_found_and_the_others_keep_their_numbers(contents, serve, tmp_path):
    written(tmp_path / "m", contents["four"])
    (tmp_path / ".a.0123.tmp").mkdir()
    shutil.copy(tmp_path / "m" / "eval.json", tmp_path / ".a.0123.tmp")  # a draft of an evaluation under way
    address = serve(tmp_path)
    assert [report["name"] for report in get(address)["reports"]] == [str(tmp_path / "m")]
    os.rename(tmp_path / ".a.0123.tmp", tmp_path / "a")
    assert [report["name"] for report in get(address)["reports"]] == [str(tmp_path / name) for name in "ma"]


def test_a_report_that_is_deleted_is_left_out_and_the_others_keep_their_numbers(contents, serve, tmp_path):
    numbers = {str(tmp_path / name): number for number, name in enumerate(["a", "b", "b/below/it"])}
    for name in numbers:
        written(Path(name), contents["four"])
    address = serve(tmp_path)
    assert {report["name"]: report["number"] for report in get(address)["reports"]} == numbers
    shutil.rmtree(tmp_path / "a")
    del numbers[str(tmp_path / "a")]
    assert {report["name"]: report["number"] for report in get(address)["reports"]} == numbers


def test_without_folders_those_below_outputs_are_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert given([]) == []
    (tmp_path / "outputs").mkdir()
    assert given([]) == ["outputs"]
    assert given(["others"]) == ["others"]
    assert Reports(["outputs"]).list() == []


def test_a_folder_that_is_not_there_is_one_line_before_a_page_opens(capsys):
    assert main(["studio", "--no-browser", "--reports", "nowhere"]) == 2
    advice = "visuomotor eval POLICY --output DIR writes one"
    assert capsys.readouterr().err == f"error: --reports nowhere: expected a folder, got none; {advice}\n"
    with pytest.raises(ConfigError, match="--reports nowhere"):
        Reports(["nowhere"])


def test_without_reports_the_list_is_empty(policies):
    with closing(Serving(Studio(policies, Sources()).app())) as serving:
        assert get(f"http://127.0.0.1:{serving.port}/api/reports") == {"folders": [], "reports": []}
