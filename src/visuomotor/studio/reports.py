"""The evaluation reports that a studio was given: found below its folders, read and checked when asked for."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from visuomotor.config import check_rules
from visuomotor.errors import CheckpointError, ConfigError, mismatch
from visuomotor.evaluation.intervals import compare
from visuomotor.policy.checkpoint import read_json
from visuomotor.serialization import from_json

FILE = "eval.json"
DEFAULT = "outputs"
"""Where reports are looked for when the studio was told no folder."""
AGAIN = "evaluate again"
FINITE = {"allow_inf_nan": False}


@dataclass(frozen=True)
class Outcome:
    """One episode of `eval.json`."""

    __pydantic_config__ = FINITE

    seed: int
    success: bool
    max_coverage: float
    max_reward: float
    steps: int

    def __post_init__(self) -> None:
        rules = [(self.seed >= 0, "seed", "0 or more", self.seed, AGAIN)]
        rules += [(self.steps >= 1, "steps", "1 or more", self.steps, AGAIN)]
        for name in ("max_coverage", "max_reward"):
            value = getattr(self, name)
            rules.append((0 <= value <= 1 + 1e-6, name, "0 to 1", value, AGAIN))
        check_rules(rules)


@dataclass(frozen=True)
class Acting:
    """How the policy acted: what of a report's `settings` is needed to let it act so again."""

    __pydantic_config__ = FINITE

    env: str
    max_steps: int
    policy_batch: int
    noise_scheduler_type: str
    num_inference_steps: int
    n_action_steps: int
    policy: str | None = None
    weights_sha256: str | None = None
    timesteps: tuple[float, ...] | None = None
    ddim_eta: float | None = None
    warm_start: float | None = None
    device: str | None = None
    server: str | None = None

    def __post_init__(self) -> None:
        counts = ("max_steps", "policy_batch", "num_inference_steps", "n_action_steps")
        check_rules([(1 <= getattr(self, n) < 10**5, n, "1 to 99999", getattr(self, n), AGAIN) for n in counts])


@dataclass(frozen=True)
class Evaluation:
    """What `eval.json` has to hold; of what else is there only differences are shown."""

    __pydantic_config__ = FINITE

    success_rate: float
    success_rate_interval: tuple[float, float]
    mean_max_coverage: float
    mean_max_reward: float
    episodes: list[Outcome]
    settings: Acting
    versions: dict[str, str]

    def __post_init__(self) -> None:
        seeds = {episode.seed for episode in self.episodes}
        solved = sum(episode.success for episode in self.episodes)
        low, high = self.success_rate_interval
        rate, reward, coverage = self.success_rate, self.mean_max_reward, self.mean_max_coverage
        check_rules(
            [
                (bool(seeds), "episodes", "one or more", "none", AGAIN),
                (len(seeds) == len(self.episodes), "episodes", "every seed once", "some more often", AGAIN),
                (abs(rate * len(seeds) - solved) < 1e-6, "success_rate", f"{solved} of {len(seeds)}", rate, AGAIN),
                (0 <= low <= high <= 1, "success_rate_interval", "two ends from 0 to 1", [low, high], AGAIN),
                (0 <= reward <= 1 + 1e-6, "mean_max_reward", "0 to 1", reward, AGAIN),
                (0 <= coverage <= 1 + 1e-6, "mean_max_coverage", "0 to 1", coverage, AGAIN),
            ]
        )


class Report:
    """One evaluation as `visuomotor eval` wrote it.

    Attributes:
        folder: That of its `eval.json`.
        evaluation: Checked.
        content: All that the file holds.

    Args:
        folder: Inside `root`.
        root: A folder that the studio was given: nothing outside of it is read.

    Raises:
        CheckpointError: `eval.json` is missing, damaged, or a link that leads outside.
        ConfigError: A figure in it is missing or impossible.
    """

    def __init__(self, folder: Path, root: Path):
        self.folder, self._root = folder, root
        path = self._inside(folder / FILE)
        self.content: dict[str, Any] = read_json(path)
        self.evaluation = from_json(Evaluation, self.content, str(path))

    def outcome(self, seed: int) -> Outcome:
        """The episode of a seed.

        Raises:
            ConfigError: It has none of that seed.
        """
        for episode in self.evaluation.episodes:
            if episode.seed == seed:
                return episode
        seeds = [episode.seed for episode in self.evaluation.episodes]
        expected = f"one of its {len(seeds)} from {min(seeds)} to {max(seeds)}"
        raise ConfigError(mismatch(f"{self.folder}: seed", expected, seed, "choose another"))

    def video(self, seed: int) -> Path | None:
        """The video that the evaluation wrote of an episode, if it did."""
        kind = "success" if self.outcome(seed).success else "failure"
        path = self.folder / "videos" / f"{kind}_{seed}.mp4"
        return self._inside(path).resolve() if path.is_file() else None

    def told(self) -> dict[str, Any]:
        """The checked figures, and of which episodes there is a video."""
        videos = {path.name for path in (self.folder / "videos").glob("*.mp4")}
        episodes = [
            vars(one) | {"video": f"{'success' if one.success else 'failure'}_{one.seed}.mp4" in videos}
            for one in self.evaluation.episodes
        ]
        return dataclasses.asdict(self.evaluation) | {"name": str(self.folder), "episodes": episodes}

    def _inside(self, path: Path) -> Path:
        if not path.resolve().is_relative_to(self._root.resolve()):
            advice = "copy the file itself into it"
            raise CheckpointError(
                mismatch(str(path), f"a file inside {self._root}", "a link that leads outside", advice)
            )
        return path


class Reports:
    """Reports by number, in the order in which they were found. One that is written later gets the next number.

    Args:
        folders: Each one that `visuomotor eval` has written, or that holds such folders at any depth.

    Raises:
        ConfigError: There is no such folder.
    """

    def __init__(self, folders: Sequence[str] = ()):
        for folder in folders:
            if not Path(folder).is_dir():
                advice = "visuomotor eval POLICY --output DIR writes one"
                raise ConfigError(mismatch(f"--reports {folder}", "a folder", "none", advice))
        self.folders = list(dict.fromkeys(folders))
        self._found: dict[Path, Path] = {}
        self._lock = Lock()

    def list(self) -> list[dict[str, Any]]:
        """Number, name, policy and success of each; of one that is damaged, what is wrong with it. Those that were
        deleted keep their numbers, but are left out."""
        with self._lock:
            for root in map(Path, self.folders):
                for folder in _folders(root):
                    self._found.setdefault(folder, root)
            found = list(self._found.items())
        return [
            {"number": number, "name": str(folder), **_summary(folder, root)}
            for number, (folder, root) in enumerate(found)
            if os.path.lexists(folder / FILE)
        ]

    def open(self, number: int) -> Report:
        """One of them, as it is now.

        Raises:
            ConfigError: There is none of that number, or a figure in it is impossible.
            CheckpointError: It is missing or damaged.
        """
        if not self._found:
            self.list()
        with self._lock:
            found = list(self._found.items())
        if not 0 <= number < len(found):
            raise ConfigError(mismatch("report", f"0 to {len(found) - 1}", number, "choose another"))
        return Report(*found[number])


def given(folders: Sequence[str]) -> Sequence[str]:
    """The same, or where none is named `outputs` in the working directory, if there is one."""
    return folders or ([DEFAULT] if Path(DEFAULT).is_dir() else [])


def pair(first: Report, second: Report) -> dict[str, Any]:
    """Two reports, seed by seed, over the seeds that both have.

    Returns:
        `shared`, how many seeds these are; `gained`, those that only the second solved, and `lost`, only the first;
        `difference` of the success rates over them, second minus first; its `interval` and `p_value`, as
        `visuomotor.evaluation.intervals.compare` has them; `differences`, what was not the same when they were
        measured: name, first, second.

    Raises:
        ConfigError: They have no seed in common, or are of different environments.
    """
    names, (one, other) = f"{first.folder} and {second.folder}", (first.evaluation, second.evaluation)
    if one.settings.env != other.settings.env:
        found = f"{one.settings.env} and {other.settings.env}"
        raise ConfigError(mismatch(names, "the same environment", found, "choose two of one"))
    seeds = [{episode.seed for episode in report.episodes} for report in (one, other)]
    shared = seeds[0] & seeds[1]
    if not shared:
        found = " and ".join(f"{min(those)} to {max(those)}" for those in seeds)
        raise ConfigError(mismatch(names, "seeds in common", found, "evaluate both with the same --seed"))
    kept = [
        {"episodes": [vars(episode) for episode in report.episodes if episode.seed in shared]}
        for report in (one, other)
    ]
    return vars(compare(*kept)) | {"shared": len(shared), "differences": _differences(first, second)}


def _folders(root: Path) -> Iterator[Path]:
    """Folders of reports below one, in the order of their names; links and drafts are passed over."""
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        if FILE in files:
            yield Path(folder)


def _summary(folder: Path, root: Path) -> dict[str, Any]:
    """A line of the list."""
    try:
        found = Report(folder, root).evaluation
    except (CheckpointError, ConfigError) as error:
        return {"error": " ".join(str(error).split())}
    count = len(found.episodes)
    return {"policy": found.settings.policy, "success_rate": found.success_rate, "episodes": count}


def _differences(first: Report, second: Report) -> list[list[str]]:
    """Name, first and second value of each setting and version that is not the same."""
    told = [report.content["settings"] | report.content["versions"] for report in (first, second)]
    names = [name for name in dict.fromkeys([*told[0], *told[1]]) if name != "seed"]
    rows = [[name, *(str(one.get(name, "not told")) for one in told)] for name in names]
    return [row for row in rows if row[1] != row[2]]
