"""What the services say of themselves: one JSON object a line, or a line for people, and never a secret.

    log.info("trainer started", extra={"pid": 4711})      within  bound(job_id=..., attempt=1)
    {"time": "2026-05-04T10:11:12.345Z", "level": "INFO", "logger": "detkds.worker", "event": "trainer started", "job_id": ..., "pid": 4711}

`event` is a constant text, so that lines can be counted by it; what differs from line to line stands in fields.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

LogFormat = Literal["json", "text"]
OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}  # of every record; the others are fields
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
HIDDEN = "***"
SHORTEST_SECRET = 8  # characters; a shorter word would be hidden wherever it stands by chance
PATTERNS = (
    (re.compile(r"(://[^\s/:@]*:)[^\s/]+@"), rf"\1{HIDDEN}@"),  # the password of a URL
    (re.compile(r"(?i)\b(bearer|basic)\s+[^\s\"']+"), rf"\1 {HIDDEN}"),  # an Authorization header
    (re.compile(r"\bdetkds_[A-Za-z0-9_-]{43}"), f"detkds_{HIDDEN}"),  # an API key of the database
    (re.compile(r"(?i)\b(password|passwd|secret|api_key)=[^\s&]+"), rf"\1={HIDDEN}"),  # a connection string's, a query's
)

log = logging.getLogger("detkds")
_fields: ContextVar[Mapping[str, Any]] = ContextVar("fields", default={})  # noqa: B039 (never written to)


@contextmanager
def bound(**fields: Any) -> Iterator[None]:
    """Every line that is written within has these fields (those that are not None): request_id, search_id, job_id, attempt, worker, ..."""
    before = _fields.set({**_fields.get(), **{name: value for name, value in fields.items() if value is not None}})
    try:
        yield
    finally:
        _fields.reset(before)


def configure(log_format: LogFormat | None, secrets: Iterable[str | None]) -> None:
    """Write this process's log to standard error. log_format None: text on a terminal, else JSON.

    secrets: what must never stand in a line, keys as they are and the passwords of URLs.
    """
    text = log_format == "text" or (log_format is None and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter((Text if text else Json)(words_of(secrets)))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it lists its plugins
    sys.excepthook = _ended
    threading.excepthook = _thread_ended


def words_of(secrets: Iterable[str | None]) -> tuple[str, ...]:
    """The words to hide, the longest first: keys as they are, of a URL its password, as it is written and as it is meant."""
    words: set[str] = set()
    for secret in secrets:
        if secret and "://" in secret:
            password = urlsplit(secret).password or ""
            words |= {password, unquote(password)}
        elif secret:
            words.add(secret)
    return tuple(sorted((word for word in words if len(word) >= SHORTEST_SECRET), key=len, reverse=True))


def redacted(text: str, words: Iterable[str] = ()) -> str:
    """The text without these words, passwords in URLs, Authorization headers and API keys."""
    for word in words:
        text = text.replace(word, HIDDEN)
    for pattern, instead in PATTERNS:
        text = pattern.sub(instead, text)
    return text


class Json(logging.Formatter):
    """A record as one JSON object in one line."""

    def __init__(self, words: tuple[str, ...]) -> None:
        super().__init__()
        self.words = words

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": moment(record), "level": record.levelname, "logger": record.name, "event": self.clean(record.getMessage())}
        line |= self.fields(record)
        if error := self.error(record):
            line["error"] = error
        return json.dumps(line)

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """What is bound, and the record's own; plain values only, for libraries hang whole objects on their records."""
        found = {**_fields.get(), **{name: value for name, value in vars(record).items() if name not in OWN}}
        return {name: self.clean(value) for name, value in found.items() if isinstance(value, str | int | float | bool)}

    def clean(self, value: Any) -> Any:
        return redacted(value, self.words) if isinstance(value, str) else value

    def error(self, record: logging.LogRecord) -> str:
        """The stack trace, if there is one."""
        if record.exc_info and record.exc_info[0] is not None:
            return redacted(self.formatException(record.exc_info), self.words)
        return ""


class Text(Json):
    """A record as a line for people, a stack trace below it."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={value}" for name, value in self.fields(record).items())
        error = self.error(record)
        line = f"{moment(record)} {record.levelname} {self.clean(record.getMessage())}{fields}"
        # One line, whatever stands in it, and nothing that a terminal would obey.
        return UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], line) + (f"\n{error}" if error else "")


def moment(record: logging.LogRecord) -> str:
    """When a record was made, in UTC: `2026-05-04T10:11:12.345Z`."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def _ended(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The last line of a process that an exception ends."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        log.critical("the process failed", exc_info=(kind, error, trace))


def _thread_ended(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is not None and not issubclass(ended.exc_type, SystemExit):
        log.critical("a thread failed", exc_info=(ended.exc_type, ended.exc_value, ended.exc_traceback))
