"""A run that is killed again and again ends as one that never was. `VISUOMOTOR_KILLS` says how often, else 5."""

import os
import random
import time
from pathlib import Path

import pytest

from visuomotor.training.checkpoint import read_run

from .runs import contents, lines, names, start, wait_for_line

STEPS = 200
FLAGS = ["--steps", str(STEPS), "--save-every", "10", "--log-every", "7", "--augmentation", "pusht-mirror"]
FLAGS += ["--noise-draws", "2", "--validation-episodes", "1", "--validate-every", "25", "--keep-checkpoints", "3"]
FLAGS += ["--scheduler-name", "warmup-stable-decay", "--scheduler-decay-steps", "33"]


@pytest.mark.slow
def test_kill_9_at_random_moments_changes_nothing(demonstrations: Path, tmp_path: Path) -> None:
    kills = int(os.environ.get("VISUOMOTOR_KILLS", "5"))
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert start(straight, demonstrations, *FLAGS).wait() == 0

    chance = random.Random(0)
    reached = sorted(chance.randrange(STEPS - 10) for _ in range(kills))
    for number, step in enumerate(reached):
        process = start(broken, demonstrations, *FLAGS, "--resume")
        if number % 5 == 4:
            time.sleep(chance.uniform(0, 5))  # while it starts, most likely
        else:
            wait_for_line(broken, process, step)
            time.sleep(chance.uniform(0, 0.2))  # some steps further, or within a checkpoint
        process.kill()
        process.wait()
        assert process.returncode == -9, process.stderr and process.stderr.read()
        there = names(broken) if (broken / "checkpoints").exists() else []
        last = lines_of_a_killed_run(broken)
        print(f"kill {number + 1}: drawn for step {step}, last line {last}, checkpoints {there}")
    process = start(broken, demonstrations, *FLAGS, "--resume")
    _, said = process.communicate()
    assert process.returncode == 0, said

    final = f"checkpoints/step_{STEPS:06d}"
    assert contents(broken / final) == contents(straight / final)
    assert lines(broken) == lines(straight)
    assert names(broken) == names(straight) == [f"step_{step:06d}" for step in (167, 180, 190, 200)]
    assert read_run(broken) == read_run(straight)


def lines_of_a_killed_run(run: Path) -> str:
    text = (run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").exists() else ""
    return text.splitlines()[-1][:13] if text else "none"
