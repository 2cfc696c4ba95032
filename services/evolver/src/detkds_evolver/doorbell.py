"""The doorbell: tells a worker over Celery that a job waits. It carries an id and decides nothing; a lost ring is rung again."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from kombu.exceptions import KombuError
from redis.exceptions import RedisError

log = logging.getLogger("detkds.evolver")

TASK = "detkds.run_job"
AGAIN_SECONDS = 30.0  # a ring may be lost with the broker: ring again while the job waits
# A message nobody took in this time has been followed by others: workers drop it unread, else a long queue would leave thousands of them.
EXPIRES_SECONDS = 4 * AGAIN_SECONDS
PAUSE_SECONDS = 10.0  # after a broker that could not be reached: trying costs seconds, in which no search goes on
AT_ONCE = 32  # the first in the queue; whoever takes them makes place for the next


class Doorbell:
    """Rings for waiting jobs; without a broker it is silent, for local loops look for themselves."""

    def __init__(self, broker_url: str | None) -> None:
        self._rung: dict[str, float] = {}  # job -> time.monotonic() of its last ring
        self._not_before = 0.0  # time.monotonic()
        self._app = None
        if broker_url is not None:
            from celery import Celery  # costs half a second, and most installations have no broker

            self._app = Celery("detkds", broker=broker_url, set_as_current=False)
            self._app.conf.update(
                task_serializer="json",
                task_ignore_result=True,
                broker_connection_timeout=3,
                broker_transport_options={"visibility_timeout": 3600, "socket_connect_timeout": 3, "socket_timeout": 5},
            )

    def ring(self, waiting: Sequence[str]) -> list[str]:
        """Ring for those of the waiting jobs (ids, next one first) that were not rung for lately; the ids that were rung for.

        A broker that cannot be reached is left alone for a while.
        """
        now = time.monotonic()
        if self._app is None or now < self._not_before:
            return []
        self._rung = {job: then for job, then in self._rung.items() if job in waiting}
        rung: list[str] = []
        for job in waiting[:AT_ONCE]:
            if now - self._rung.get(job, -AGAIN_SECONDS) < AGAIN_SECONDS:
                continue
            try:
                self._app.send_task(TASK, args=[job], expires=EXPIRES_SECONDS, retry=False)
            except (OSError, KombuError, RedisError) as error:
                log.warning("the broker cannot be reached", extra={"reason": type(error).__name__, "waiting": len(waiting)})
                self._not_before = time.monotonic() + PAUSE_SECONDS
                break
            self._rung[job] = now
            rung.append(job)
        return rung

    def close(self) -> None:
        if self._app is not None:
            self._app.close()
