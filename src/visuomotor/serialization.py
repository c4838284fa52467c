"""Configs as plain JSON values, and back: what files and pages hold of them."""

import dataclasses
from typing import Any, TypeVar, get_args

from visuomotor.config import nearest
from visuomotor.errors import ConfigError, mismatch

Config = TypeVar("Config")


def to_json(config: Any) -> dict[str, Any]:
    """A config as plain JSON values."""
    return dataclasses.asdict(config)


def from_json(kind: type[Config], content: Any, name: str) -> Config:
    """A config from plain JSON values, exactly as it was written.

    Args:
        kind: The config's class.
        content: What `json.loads` gave.
        name: The file it came from, for errors.

    Raises:
        ConfigError: A field is unknown (with the nearest known one), missing, of a wrong type, or impossible.
    """
    from pydantic import TypeAdapter, ValidationError  # 0.1 s that `import visuomotor` does not need

    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        problems = error.errors()
        unknown = [problem for problem in problems if problem["type"] == "unexpected_keyword_argument"]
        problem = (unknown or problems)[0]  # a typo also leaves the right field missing: the typo is what to show
        place = f"{name}: {'.'.join(str(part) for part in problem['loc']) or 'the whole'}"
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError):
            raise ConfigError(f"{name}: {cause}") from error
        if unknown:
            known = [spec.name for spec in dataclasses.fields(_innermost(kind, problem["loc"][:-1]))]
            advice = f"did you mean {nearest(str(problem['loc'][-1]), known)}?"
            raise ConfigError(mismatch(place, "a known field", "an unknown one", advice)) from error
        if problem["type"] == "missing":
            raise ConfigError(mismatch(place, "a value", "none", "add the field")) from error
        expected = problem["msg"].removeprefix("Input should be ")
        raise ConfigError(mismatch(place, expected, repr(problem["input"]), "correct the field")) from error


def _innermost(kind: Any, path: tuple[int | str, ...]) -> Any:
    """The dataclass that a path of field names leads to; through a dictionary, that of its values."""
    for part in path:
        if dataclasses.is_dataclass(kind):
            kind = {spec.name: spec.type for spec in dataclasses.fields(kind)}[str(part)]
        else:
            kind = get_args(kind)[-1]
    return kind
