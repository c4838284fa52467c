"""The errors a user can meet. Each says what it is about, what was expected, what was found and what to do."""


class VisuomotorError(ValueError):
    """Something the user gave does not fit. The command line prints it in one line and leaves with status 2."""


class DatasetError(VisuomotorError):
    """Demonstrations that are missing, damaged, or not what the recipe needs."""


class CheckpointError(VisuomotorError):
    """A policy or a training state that is missing, damaged, or of another shape."""


class ConfigError(VisuomotorError):
    """A setting that is unknown, out of range, or impossible together with another."""


class LossError(VisuomotorError):
    """A training whose loss or gradient is not finite."""


def mismatch(name: str, expected: object, found: object, advice: str) -> str:
    """The one form of every message: `name: expected ..., got ...; what to do`."""
    return f"{name}: expected {expected}, got {found}; {advice}"
