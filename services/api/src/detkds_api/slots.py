"""How many requests that take long may be under way at once. The service answers in some 40 threads, which are for all: were such requests
to take every one of them, `GET /health` would wait too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from detkds_api.problems import Unavailable

RETRY_SECONDS = 30


class Slots:
    """Room for so many requests of a kind, of everybody together. doing: what is done with `count` of them, for people."""

    def __init__(self, count: int, doing: str) -> None:
        self.count, self.doing = count, doing
        self.free = threading.BoundedSemaphore(count)

    @contextmanager
    def one(self) -> Iterator[None]:
        """Raises Unavailable where all are taken: who waited for one would hold a thread."""
        if not self.free.acquire(blocking=False):
            message = f"{self.count} {self.doing} just now, which is as many as are at once; ask again in a while"
            raise Unavailable(message, headers={"Retry-After": str(RETRY_SECONDS)})
        try:
            yield
        finally:
            self.free.release()
