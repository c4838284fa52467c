"""Flags from the command line, and one line of complaint where they are wrong."""

import dataclasses
import io
import re
import textwrap
from contextlib import redirect_stderr
from typing import Any, TypeVar

import tyro

from visuomotor.config import nearest
from visuomotor.errors import ConfigError, mismatch

Options = TypeVar("Options")

HIDDEN = ("input_features", "output_features", "normalization_mapping")
"""Fields that are no flags: the data set decides them, or they are no single value."""


def parse(default: Options, verb: str, arguments: list[str], about: str) -> Options:
    """Reads a verb's flags over `default`.

    Raises:
        ConfigError: A flag is unknown (with the nearest known one), missing, or has a wrong value.
    """
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            options, unknown = tyro.cli(
                type(default),
                prog=f"visuomotor {verb}",
                description=about,
                args=arguments,
                default=default,
                config=(tyro.conf.OmitArgPrefixes,),
                return_unknown_args=True,
            )
    except SystemExit as leave:
        if not leave.code:  # --help
            raise
        raise ConfigError(_one_line(complaint.getvalue(), verb)) from None
    if unknown:
        raise ConfigError(_unknown(unknown[0], default, verb))
    return options


def _one_line(box: str, verb: str) -> str:
    """What tyro says in a frame: the lines below the title and above the next rule, without frame and colours."""
    rows = [row.rstrip() for row in re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯]", "", box).splitlines()[1:]]
    rules = [number for number, row in enumerate(rows) if not row.strip(" ─-")]
    first = 1 if rules[:1] == [0] else 0  # where the terminal knows no frames, a rule follows the title
    end = next(iter(rules[first:]), len(rows))
    said = textwrap.dedent("\n".join(rows[first:end])).splitlines()
    if said and said[0].startswith("Missing from"):
        missing = [row.strip() for row in said if re.match(r" {4}\S", row)]  # their help stands further in
        return mismatch(f"visuomotor {verb}", " and ".join(missing), "none", f"see visuomotor {verb} --help")
    return f"visuomotor {verb}: {' '.join(row.strip() for row in said)}"


def _unknown(token: str, default: Any, verb: str) -> str:
    if not token.startswith("-"):
        return mismatch(f"visuomotor {verb}", "flags and their values", repr(token), "a flag is missing before it")
    parts = [getattr(default, spec.name) for spec in dataclasses.fields(default)]
    configs = [default, *(part for part in parts if dataclasses.is_dataclass(part))]
    names = [spec.name for config in configs for spec in dataclasses.fields(config) if spec.name not in HIDDEN]
    flag = token.partition("=")[0]
    if flag.strip("-").replace("-", "_") in HIDDEN:
        return mismatch(flag, "a field with a flag", "one without", "set it in a recipe of your own, in Python")
    known = nearest(flag, [f"--{name.replace('_', '-')}" for name in names])
    return mismatch(flag, f"a flag of visuomotor {verb}", "an unknown one", f"did you mean {known}?")
