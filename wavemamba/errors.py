"""The errors that wavemamba raises: each says what was expected, what came and what to do."""

from __future__ import annotations


class WavemambaError(Exception):
    """Base of every error that wavemamba raises itself."""


class ShapeError(WavemambaError, ValueError):
    """A tensor has the wrong rank, size, dtype or value range."""


class BackendUnavailable(WavemambaError, RuntimeError):
    """A backend was named that cannot run the case, or no backend can."""


class CheckpointError(WavemambaError, RuntimeError):
    """A checkpoint is missing, damaged, unsafe, does not fit the model, or cannot be written."""


class SolverError(WavemambaError, RuntimeError):
    """A solver cannot go on: too many evaluations, steps too small, or numbers that are not finite."""


class ConfigError(WavemambaError, ValueError):
    """An option has a wrong name or value."""


class DataError(WavemambaError, ValueError):
    """A dataset is empty, missing or damaged."""


class ExportError(WavemambaError, RuntimeError):
    """A network has no form in the format that it is to be exported to, or the file cannot be written."""
