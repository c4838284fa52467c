"""Frames of a video by their time."""

import numpy as np
import pytest

from visuomotor.data import video
from visuomotor.data.video import Film, Films, decode
from visuomotor.errors import DatasetError

from .synthetic import FPS, HEIGHT, WIDTH, picture, write_video

SHAPE = (HEIGHT, WIDTH, 3)


@pytest.fixture(scope="module", params=["libx264", "libsvtav1"])
def film(request, tmp_path_factory):
    """20 frames, in H.264 and in AV1."""
    return write_video(tmp_path_factory.mktemp("film") / "film.mp4", [picture(row) for row in range(20)], request.param)


def frames(path, numbers, shape=SHAPE, fps=FPS):
    numbers = np.asarray(numbers)
    return list(decode(path, path.name, numbers / fps, 100 + np.arange(len(numbers)), shape, fps))


@pytest.mark.parametrize("numbers", [range(20), [0], [19], [6, 7, 8], [2, 2, 11], [1, 9, 10, 17], [3, 8, 13, 18]])
def test_each_time_gives_its_frame(film, numbers):
    found = frames(film, numbers)
    assert [row for row, _ in found] == list(range(100, 100 + len(numbers)))
    for number, (_, image) in zip(numbers, found, strict=True):
        assert image.shape == (1, *SHAPE)
        assert image.dtype == np.uint8
        assert np.abs(image[0].astype(int) - picture(number)).mean() < 3  # the next frame is 8 grey levels off


def test_films_give_any_rows_in_any_order(film, tmp_path):
    again = tmp_path / "again.mp4"
    again.write_bytes(film.read_bytes())
    numbers = np.array([5, 18, 0, 9, 9, 13, 2, 7])
    films = Films([film, again], np.arange(8) % 2, numbers / FPS, SHAPE, FPS)
    whole = np.concatenate([image for _, image in frames(film, range(20))])
    for rows in ([0, 1, 2, 3, 4, 5, 6, 7], [7, 2, 2, 5, 0], [4]):
        np.testing.assert_array_equal(films(np.array(rows)), whole[numbers[rows]])


def test_frames_that_are_stored_behind_their_key_frame_are_found(tmp_path):
    import av

    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        settings = {"crf": "10", "x265-params": "keyint=12:bframes=4:log-level=none"}
        stream = container.add_stream("libx265", rate=FPS, options=settings)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for row in range(60):
            image = np.full(SHAPE, 100, np.uint8)
            image[10:30, row : row + 20] = 255 - 2 * row  # what moves makes the encoder store frames out of order
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    whole = np.concatenate([image for _, image in frames(path, range(60))])
    films = Films([path], np.zeros(60, np.int64), np.arange(60) / FPS, SHAPE, FPS)
    for row in range(60):
        np.testing.assert_array_equal(films(np.array([row])), whole[[row]])


def test_no_more_films_stay_open_than_are_allowed(film, monkeypatch):
    opened, closed = [], []
    monkeypatch.setattr(video, "OPEN_FILMS", 2)
    monkeypatch.setattr(Film, "close", lambda film: closed.append(film.path))
    monkeypatch.setattr(Film, "__init__", lambda film, path, *rest: setattr(film, "path", path) or opened.append(path))
    monkeypatch.setattr(Film, "frames", lambda film, seconds: np.zeros((len(seconds), *SHAPE), np.uint8))
    films = Films(list("abc"), np.arange(3), np.zeros(3), SHAPE, FPS)
    for rows in ([0], [1], [0], [2], [0], [1]):
        films(np.array(rows))
    assert (opened, closed) == (["a", "b", "c", "b"], ["b", "c"])


def test_a_time_is_matched_within_a_quarter_of_a_frame(film):
    assert len(frames(film, [3.2])) == 1
    with pytest.raises(DatasetError, match=r"none at 0\.660 s"):
        frames(film, [3.3])


def test_too_few_frames_are_an_error(film):
    with pytest.raises(DatasetError, match=r"film\.mp4: expected a frame at each of 12 times .* none at 4\.000 s"):
        frames(film, range(10, 22))


def test_another_size_is_an_error(film):
    with pytest.raises(DatasetError, match=r"film\.mp4: expected frames of \(32, 80, 3\), got \(64, 80, 3\)"):
        frames(film, [0], (32, 80, 3))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_a_truncated_file_is_an_error(film, tmp_path, share):
    content = film.read_bytes()
    short = tmp_path / "short.mp4"
    short.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DatasetError, match=r"short\.mp4: expected .* cut off"):
        frames(short, range(20))


def test_sound_alone_is_an_error(tmp_path):
    import av

    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(DatasetError, match=r"sound\.wav: expected a video stream, got none"):
        frames(tmp_path / "sound.wav", [0])
