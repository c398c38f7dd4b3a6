"""The durable log of calls (see `journal`)."""

from lion_ray.gateway.journal.journal import Journal
from lion_ray.gateway.journal.spending import Spent

__all__ = ["Journal", "Spent"]
