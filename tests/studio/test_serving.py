"""`visuomotor studio`: where it listens, what it says, and how it ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

from visuomotor.cli import main
from visuomotor.studio.serving import Server, server


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "70000"], "port: expected 0 to 65535, got 70000; 8766 is usual"),
        (["--policy", "pusht-imag"], "did you mean pusht-image-small?"),
        (["--host", "203.0.113.7"], "203.0.113.7:8766: expected a free port, got Cannot assign requested address"),
    ],
)
def test_what_cannot_be_is_one_line(capsys, arguments, said):
    assert main(["studio", "--no-browser", *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error


def test_a_port_that_is_taken_is_one_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["studio", "--no-browser", "--port", str(port)]) == 2
    expected = f"error: 127.0.0.1:{port}: expected a free port, got Address already in use; choose another with --port"
    assert capsys.readouterr().err == f"{expected}; 0 takes a free one\n"


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A studio that looks at nothing outside a folder, and records and trains in it."""
    command = [sys.executable, "-m", "visuomotor", "studio", "--no-browser", "--port", "0", *arguments]
    command += ["--reports", str(folder), "--recordings", str(folder / "recordings"), "--runs", str(folder / "runs")]
    environment = os.environ | {"VISUOMOTOR_TOKEN": "secret"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGHUP, -signal.SIGTERM)])
def test_it_tells_its_address_serves_and_ends_with_a_signal(tmp_path, number, status):
    with started(tmp_path) as process:
        line = process.stdout.readline()
        address = re.fullmatch(r"studio:  (http://127\.0\.0\.1:\d+/)\n", line)
        assert address, line + process.stderr.read()
        with urlopen(f"{address[1]}api/about") as answer:
            assert "pusht-keypoints-small" in json.load(answer)["policies"]
        process.send_signal(number)
        _, error = process.communicate(timeout=120)
    assert process.returncode == status
    assert error == ""


def test_a_second_signal_does_not_cut_short_what_the_first_one_began():
    serving: Server = server(lambda scope, receive, send: None)
    for _ in range(2):
        serving.handle_exit(signal.SIGINT, None)
    assert serving.should_exit
    assert not serving.force_exit


def test_beyond_this_machine_it_asks_for_the_token(tmp_path):
    with started(tmp_path, "--host", "0.0.0.0") as process:
        line = process.stdout.readline()
        assert re.fullmatch(r"studio:  http://0\.0\.0\.0:\d+/\?token=secret\n", line)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=120)
    assert "travel unencrypted" in error
