"""Videos that a browser plays, of what happened."""

import av
import numpy as np
import pytest

from visuomotor.evaluation.video import AMBER, GREEN, HOLD, STRIP, episode_frames, write_video
from visuomotor.simulation.pusht import render_states

from .episodes import made_up


def test_a_frame_for_every_step():
    episode = made_up(100_003, 20, 0.97)
    frames = list(episode_frames(episode, 192))
    assert len(frames) == 20 + HOLD
    assert {(frame.shape, str(frame.dtype)) for frame in frames} == {((192 + STRIP, 192, 3), "uint8")}
    assert all((frame == frames[19]).all() for frame in frames[20:])


def test_the_picture_is_the_state_with_the_rest_of_the_plan():
    episode = made_up(1, 12, 0.5)
    for step, frame in enumerate(episode_frames(episode, 512)):
        if step == 12:
            break
        changed = (frame[STRIP:] != render_states(episode.states[step + 1][None], 512)[0]).any(-1)
        expected = episode.actions[step : 8 if step < 8 else 12]
        for x, y in np.array(expected).round().astype(int):
            assert tuple(frame[STRIP + y, x]) == AMBER
            changed[y - 9 : y + 10, x - 9 : x + 10] = False
        assert not changed.any()


@pytest.mark.parametrize(("best", "colour"), [(0.97, GREEN), (0.5, AMBER)])
def test_the_bar_is_the_coverage(best, colour):
    *_, frame = episode_frames(made_up(1, 5, best), 200)
    bar = frame[STRIP - 3]
    assert [tuple(bar[x]) == colour for x in (0, round(best * 200) - 8, round(best * 200) + 1)] == [True, True, False]


def test_mp4_plays(tmp_path):
    write_video(tmp_path / "some.mp4", episode_frames(made_up(1, 15, 0.5), 192))
    with av.open(tmp_path / "some.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 10)
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    original = list(episode_frames(made_up(1, 15, 0.5), 192))
    assert len(decoded) == len(original) == 25
    assert np.abs(np.subtract(decoded, original, dtype=np.int16)).mean() < 4
    content = (tmp_path / "some.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # starts before it is read to its end
