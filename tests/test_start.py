"""What start-up costs: nothing heavy is imported before it is needed."""

import resource
import subprocess
import sys

import pytest

import visuomotor

HEAVY = ("torch", "numpy", "av", "pyarrow", "pydantic", "rich", "huggingface_hub", "PIL", "gymnasium", "pygame", "cv2")


def loaded_by(*arguments: str) -> list[str]:
    """The heavy modules that a fresh interpreter loads, by Python's own account."""
    command = [sys.executable, "-X", "importtime", *arguments]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    modules = {line.rpartition("|")[2].strip().partition(".")[0] for line in said.splitlines()}
    return [name for name in HEAVY if name in modules]


def quickest(*arguments: str) -> float:
    """Seconds of processor time, the best of three runs: on an idle machine that is the time to wait."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def test_import_loads_nothing_heavy():
    assert loaded_by("-c", "import visuomotor") == []


def test_help_loads_nothing_heavy():
    assert loaded_by("-m", "visuomotor", "--help") == []


def test_import_takes_less_than_three_tenths_of_a_second():
    assert quickest("-c", "import visuomotor") < 0.3


@pytest.mark.parametrize("arguments", [["--help"], ["train", "pusht-image-small", "--help"]])
def test_help_takes_less_than_a_second(arguments):
    assert quickest("-m", "visuomotor", *arguments) < 1


def test_every_public_name_is_there():
    assert [name for name in visuomotor.__all__ if getattr(visuomotor, name).__name__ != name] == []
    assert set(visuomotor.__all__) <= set(dir(visuomotor))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'visuomotor' has no attribute 'polcy'"):
        visuomotor.polcy  # noqa: B018
