"""Results that a benchmark goes on with when it is called again, and that are compared episode by episode."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visuomotor.evaluation.evaluate import versions
from visuomotor.evaluation.intervals import compare

FIRST_SEED = 500_000
"""Published figures are measured from 100000 on: nothing is chosen there."""


def open_record(file: Path, settings: dict[str, Any], **empty: Any) -> dict[str, Any]:
    """What a file holds so far; without it the settings, the versions, and what is there before the first result."""
    settings = settings | {"seed": FIRST_SEED}
    if not file.exists():
        return {"settings": settings, "versions": versions(), **empty}
    record = json.loads(file.read_text())
    if record["settings"] != settings:
        raise SystemExit(f"{file}: its settings are {record['settings']}: keep them, or take a new folder")
    return record


def solved(episodes: Sequence[Mapping[str, Any]]) -> str:
    """Of a summary's episodes, a digit a seed: 1 where it was solved."""
    return "".join("01"[episode["success"]] for episode in episodes)


def success(result: Mapping[str, Any]) -> str:
    """A table's cell: the rate and its interval."""
    low, high = result["success_rate_interval"]
    return f"{result['success_rate']:.1%} ({low:.1%} to {high:.1%})"


def against(reference: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """A table's cell: how much better a result is than another on the same episodes, and the interval of that."""
    pair = compare(_episodes(reference), _episodes(result))
    points, low, high = (f"{100 * value:+.1f}" for value in (pair.difference, *pair.interval))
    return f"{points} points ({low} to {high})"


def _episodes(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result as `compare` takes it."""
    return {"episodes": [{"seed": seed, "success": digit == "1"} for seed, digit in enumerate(result["solved"])]}
