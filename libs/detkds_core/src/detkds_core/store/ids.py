"""Identifiers: UUID version 7 (RFC 9562) as text, so that ids sort by the time they were made."""

from __future__ import annotations

import re
import secrets
import threading
import time
import uuid

ID = re.compile(r"[0-9a-f-]{36}")
_lock = threading.Lock()
_last = 0


def new_id() -> str:
    """A new UUIDv7: 48 bits of milliseconds, 12 bits of their fraction (RFC 9562, 6.2, method 3), 62 random bits.

    Strictly increasing within a process. The time in it only orders; no decision reads it.
    """
    global _last
    with _lock:
        moment = max(time.time_ns() * 4096 // 1_000_000, _last + 1)  # milliseconds in units of 1/4096
        _last = moment
    number = (moment >> 12) << 80 | 0x7 << 76 | (moment & 0xFFF) << 64 | 0b10 << 62 | secrets.randbits(62)
    return str(uuid.UUID(int=number))


def is_id(value: object) -> bool:
    """Whether this can be an id at all; what cannot is not there, and not every database would take it in a question."""
    return isinstance(value, str) and ID.fullmatch(value) is not None
