"""What a tab and the studio say to each other."""

import base64
import io
import json
from collections.abc import Iterator
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import ClientConnection, connect

from visuomotor.simulation.pusht import render_states
from visuomotor.studio import app
from visuomotor.studio.driver import Gone
from visuomotor.studio.policies import SHIPPED
from visuomotor.studio.session import Session

from .conftest import Running, hear

SETTINGS = {"seed": 3, "noise_scheduler_type": "DDIM", "num_inference_steps": 2, "speed": 0}


@pytest.fixture
def tab(running: Running) -> Iterator[ClientConnection]:
    with connect(f"ws://127.0.0.1:{running.port}/api/watch", max_size=2**24) as socket:
        yield socket


def send(tab: ClientConnection, kind: str, **content: Any) -> None:
    tab.send(json.dumps({"type": kind, **content}))


def test_what_there_is(running: Running):
    with urlopen(f"{running.address}/api/about") as answer:
        about = json.load(answer)
    assert about["policies"] == list(SHIPPED)
    assert about["samplers"] == ["DDPM", "DDIM", "DPMSolverMultistep", "FlowMatchEuler"]


def test_a_rollout_runs_until_it_is_paused(running: Running, tab):
    send(tab, "settings", **SETTINGS)
    assert hear(tab, "settings")["policy"] == SHIPPED[0]
    send(tab, "run")
    plan = hear(tab, "plan")
    assert np.shape(plan["actions"]) == (16, 2)
    assert np.shape(plan["noisy"]) == (3, 16, 2)
    while hear(tab, "frame")["episodes"][0]["steps"] < 12:
        pass
    send(tab, "pause")
    while (frame := hear(tab, "frame"))["running"]:
        pass
    (session,) = running.studio.sessions
    assert session.episodes[0].steps == frame["episodes"][0]["steps"]
    np.testing.assert_allclose(session.episodes[0].table.state(), frame["episodes"][0]["state"], atol=0.01)


def test_each_tab_has_a_session_of_its_own(running: Running, tab):
    send(tab, "settings", **SETTINGS)
    hear(tab, "frame")
    with connect(f"ws://127.0.0.1:{running.port}/api/watch") as other:
        send(other, "settings", **SETTINGS | {"seed": 4})
        hear(other, "frame")
        assert [session.settings.seed for session in running.studio.sessions] == [3, 4]


def test_the_camera_comes_as_the_picture_that_the_policy_saw(running: Running, tab):
    send(tab, "settings", **SETTINGS, policy="pusht-image-small")
    send(tab, "step")
    plan = hear(tab, "plan")
    shown = plan["views"]["observation.image"]["images"][1].removeprefix("data:image/png;base64,")
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown))))
    (session,) = running.studio.sessions
    np.testing.assert_array_equal(picture, render_states(session.episodes[0].states[0][None])[0])


@pytest.mark.parametrize("text", ["{", "[]", '{"type": "settings", "policy": "../x"}', '{"type": "step"}', "[" * 9999])
def test_nonsense_is_one_line_and_the_tab_stays(tab, text):
    tab.send(text)
    said = hear(tab, "error")["text"]
    assert "expected" in said
    assert "\n" not in said
    send(tab, "settings", **SETTINGS)
    hear(tab, "settings")


def test_what_nobody_foresaw_is_one_line_too_and_the_tab_stays(tab, monkeypatch, caplog):
    def broken(*_: Any) -> None:
        raise ArithmeticError("of a\nkind of its own")

    with monkeypatch.context() as patch:
        patch.setattr(Session, "handle", broken)
        send(tab, "run")
        assert hear(tab, "error")["text"] == "unexpected ArithmeticError: of a kind of its own"
        assert not hear(tab, "frame")["running"]
    assert "Traceback" in caplog.text  # the terminal has the rest
    send(tab, "settings", **SETTINGS)
    hear(tab, "settings")


def test_a_tab_that_nobody_would_answer_any_more_is_closed(running: Running, tab, monkeypatch):
    def gone(*_: Any) -> None:
        raise Gone

    monkeypatch.setattr(Session, "handle", gone)
    send(tab, "run")
    with pytest.raises(ConnectionClosedError) as closed:
        tab.recv(timeout=60)
    assert closed.value.rcvd.code == 1011


def test_more_tabs_than_there_is_room_for_are_told(running: Running, tab, monkeypatch):
    monkeypatch.setattr(app, "MOST_TABS", 1)
    send(tab, "settings", **SETTINGS)
    hear(tab, "frame")
    with connect(f"ws://127.0.0.1:{running.port}/api/watch") as other:
        assert hear(other, "error")["text"] == "1 tabs watch already: close one"
