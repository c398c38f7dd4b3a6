"""Errors, in two kinds.

Invariants:
- An *infrastructure* error (a lost engine, storage that refuses writes) may not occur again if the same command is
  repeated.
- A *data* error is about the user's input or a model's answers; repeating the command unchanged does not help.
  A single bad row is never an exception: it is a row with a reason (see `records`). Only too many of them are.
- Every class pickles by its message alone, so it crosses actor boundaries unchanged, and holds no secrets.
- Every class has an exit code; the command line prints the message in one line and exits with that code.
"""

from __future__ import annotations


class LionError(Exception):
    """Base of every error that is shown to the user without a stack trace."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class DataError(LionError):
    """The input, or too many of a model's answers, cannot be used."""

    exit_code = 3


class ConfigError(DataError):
    """The configuration or the command line is wrong."""

    exit_code = 2


class InfrastructureError(LionError):
    """A machine, process or storage failed; the same command resumes."""

    exit_code = 6


class DamagedError(InfrastructureError):
    """A file of a run differs from what was written: truncated, changed or missing."""

    def __init__(self, path: str, what: str = "") -> None:
        # Unpickling an exception passes its message alone.
        super().__init__(
            f"{path}: damaged or of another version: {what}. Restore a copy, or delete the file (for a part, also its "
            "stage's manifest); the same command then makes it again"
            if what
            else path
        )


class EndpointError(InfrastructureError):
    """An API endpoint refuses every call: no key, a wrong key, an unknown model, an unreachable host."""

    exit_code = 4


class BudgetError(LionError):
    """The budget is spent; with a higher one the same command resumes."""

    exit_code = 8


class ModelError(DataError):
    """A model cannot be found, fetched, verified or loaded."""

    exit_code = 5


class RunConflictError(DataError):
    """The run folder belongs to another configuration or to another live attempt."""

    exit_code = 7


class EngineError(InfrastructureError):
    """A student engine died, or serves weights that are not the checkpoint's."""


class EngineStartError(EngineError):
    """The processes of a student engine ended while they started."""


class TrainingError(InfrastructureError):
    """Fine-tuning failed."""


def as_raised(error: BaseException) -> BaseException:
    """The error that an actor or a task raised, without the wrappers that Ray adds."""
    while isinstance(cause := getattr(error, "cause", None), BaseException):
        error = cause
    return error


def one_line(error: object, limit: int = 300) -> str:
    """A text or an error's message in one line; the type's name for an error without a message."""
    flat = " ".join(str(error).split()) or type(error).__name__
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def first_line(error: object, limit: int = 300) -> str:
    """The first line of a text or of an error's message, for messages that continue with details for developers."""
    return one_line(str(error).strip().partition("\n")[0] or type(error).__name__, limit)
