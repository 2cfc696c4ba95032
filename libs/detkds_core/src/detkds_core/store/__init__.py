"""What is remembered: searches, candidates, jobs, results. One unit of work is `with store.begin() as session`; it commits once."""

from .session import UNREACHABLE, Store

__all__ = ["UNREACHABLE", "Store"]
