"""Calls through an endpoint's Batch API (see `queue`)."""

from lion_ray.gateway.batch.lines import InJournal, NotDone
from lion_ray.gateway.batch.queue import NOT_DONE, ROUNDS, BatchQueue

__all__ = ["NOT_DONE", "ROUNDS", "BatchQueue", "InJournal", "NotDone"]
