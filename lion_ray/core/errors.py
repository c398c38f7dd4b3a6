"""Errors, in two kinds.

Invariants:
- An *infrastructure* error (a lost engine, a storage that refuses writes) may pass if the same command runs again.
- A *data* error is about the user's input or what a model answered; running again unchanged will not help.
  A single bad row is never an exception: it is a row with a reason (see `records`). Only the sum of them is.
- Every class pickles by its message alone, so it crosses actor boundaries unchanged, and holds no secrets.
- Every class has an exit code of its own; the command line prints the message in one line and exits with it.
"""

from __future__ import annotations


class LionError(Exception):
    """Base of every error that the user is told about without a stack trace."""

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
    """A file of a run is not what was written: cut off, changed, or gone."""

    def __init__(self, path: str, what: str = "") -> None:
        # A pickled exception comes back with its message alone.
        super().__init__(
            f"{path}: damaged or of another version: {what}. Put a copy back, or delete it (of a part, also its "
            "stage's manifest): the same command then makes it again"
            if what
            else path
        )


class EndpointError(InfrastructureError):
    """An API endpoint refuses every call: no key, a wrong key, an unknown model, nobody there."""

    exit_code = 4


class BudgetError(LionError):
    """The budget is spent; with a higher one the same command goes on."""

    exit_code = 8


class ModelError(DataError):
    """A model cannot be found, fetched, verified or loaded."""

    exit_code = 5


class RunConflictError(DataError):
    """The run folder belongs to another configuration or to another live attempt."""

    exit_code = 7


class EngineError(InfrastructureError):
    """A student engine died or answers with weights that are not the checkpoint's."""


class TrainingError(InfrastructureError):
    """Fine-tuning failed."""


def as_raised(error: BaseException) -> BaseException:
    """The error that an actor or a task raised, from under the wrappers in which Ray hands it on."""
    while isinstance(cause := getattr(error, "cause", None), BaseException):
        error = cause
    return error


def one_line(error: object, limit: int = 300) -> str:
    """A text, or what an error says, with its lines joined; an error without words by its type's name."""
    flat = " ".join(str(error).split()) or type(error).__name__
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def first_line(error: object, limit: int = 300) -> str:
    """The first line of a text, or of what an error says: where it is followed by what helps developers only."""
    return one_line(str(error).strip().partition("\n")[0] or type(error).__name__, limit)
