"""Which messages of the broker are ours. Whatever else lies there is dropped before Celery looks at it.

Whoever reaches the broker can write there. Celery refuses pickles and unknown tasks, but a message of a known task whose body is no list
(the number 7, or content of the type `application/data`) ends its main process, goes back into the queue, and ends the next one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from celery.worker.consumer import Consumer

from detkds_core.store.ids import is_id
from detkds_worker.celery_app import TASK

log = logging.getLogger("detkds.worker")

LARGEST = 4096  # bytes of a body; one of ours has about 120
FORBIDDEN = ("eta", "group", "chord")  # headers that would make Celery keep a message, or send further ones


class OurMessages(Consumer):  # type: ignore[misc]
    """Celery's consumer, which sees no message but those that the evolver sends."""

    def create_task_handler(self, *arguments: Any, **options: Any) -> Callable[[Any], None]:
        handle = super().create_task_handler(*arguments, **options)

        def handle_ours(message: Any) -> None:
            if reason := foreign(message):
                log.warning("a message that is not ours is dropped", extra={"reason": reason})
                message.reject_log_error(log, self.connection_errors)
            else:
                handle(message)

        return handle_ours


def foreign(message: Any) -> str:
    """Why a message cannot be the evolver's; empty: it can. Nothing of it is quoted, for it may be anything."""
    headers = message.headers
    if not isinstance(headers, dict) or headers.get("task") != TASK or not isinstance(headers.get("id"), str):
        return f"it is not for the task {TASK}"
    if any(headers.get(name) is not None for name in FORBIDDEN) or headers.get("timelimit") not in (None, [None, None]):
        return "it has a schedule, a limit or a group"
    if message.content_type != "application/json" or len(message.body) > LARGEST:
        return f"it is not JSON of at most {LARGEST} bytes"
    try:
        body = message.decode()
    except Exception:  # whatever a decoder stumbles over
        return "it cannot be read"
    if not isinstance(body, list) or len(body) != 3 or not isinstance(body[2], dict) or any(body[2].values()):
        return "it is not [arguments, options, nothing to follow]"
    arguments, options, _ = body
    if options != {} or not isinstance(arguments, list) or len(arguments) != 1 or not is_id(arguments[0]):
        return "its one argument is not the id of a job"
    return ""
