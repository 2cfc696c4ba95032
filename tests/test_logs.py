"""What a process writes of itself: lines that machines read, or people, without a secret in them."""

import json
import os
import pty
import subprocess
import sys
from typing import Any

import pytest

from detkds_core import logs

KEY = "0123456789abcdef0123456789abcdef"
DATABASE = "postgresql+psycopg://detkds:p%40ss%2Fword-1@db/detkds"
PREPARED = """
import logging, sys, threading
from detkds_core import logs
logs.configure(FORMAT, SECRETS)
log = logging.getLogger("detkds.test")
"""


def written(script: str, log_format: str | None = "json", secrets: tuple[str | None, ...] = ()) -> str:
    """Standard error of a process that logs."""
    source = PREPARED.replace("FORMAT", repr(log_format)).replace("SECRETS", repr(secrets)) + script
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False).stderr


def lines(script: str, **settings: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written(script, **settings).splitlines()]


def test_a_line_is_an_object_with_what_is_known() -> None:
    first, second = lines("""
with logs.bound(search_id="s", job_id="j"), logs.bound(attempt=2, worker=None):
    log.info("trainer started", extra={"pid": 7, "ready": True, "data": {"not": "plain"}})
log.warning("%s of %d", "two", 3)
""")
    assert (first["level"], first["event"], first["logger"]) == ("INFO", "trainer started", "detkds.test")
    assert {name: first[name] for name in ("search_id", "job_id", "attempt", "pid", "ready")} == {
        "search_id": "s",
        "job_id": "j",
        "attempt": 2,
        "pid": 7,
        "ready": True,
    }
    assert first.keys().isdisjoint({"worker", "data"})
    assert len(first["time"]) == 24
    assert first["time"].endswith("Z")
    assert (second["level"], second["event"]) == ("WARNING", "two of 3")
    assert "job_id" not in second


def test_what_ends_a_process_or_a_thread_is_a_line_too() -> None:
    thread, process = lines("""
def fail(what): raise ValueError(what)
thread = threading.Thread(target=fail, args=("in a\\nthread",)); thread.start(); thread.join()
fail("at the end")
""")
    assert (thread["level"], thread["event"]) == ("CRITICAL", "a thread failed")
    assert "ValueError: in a\nthread" in thread["error"]
    assert process["event"] == "the process failed"
    assert process["error"].splitlines()[-1] == "ValueError: at the end"


def test_people_get_text_that_no_field_can_break() -> None:
    text = written("""
with logs.bound(job_id="j"):
    log.info("started", extra={"name_given": "a\\nb\\x1b[31mred"})
    try: 1 / 0
    except ZeroDivisionError: log.exception("failed")
""", log_format="text")  # fmt: skip
    first, second, *trace = text.splitlines()
    assert first.partition(" ")[2] == r"INFO started job_id=j name_given=a\nb\x1b[31mred"
    assert second.partition(" ")[2] == "ERROR failed job_id=j"
    assert trace[0].startswith("Traceback")
    assert trace[-1] == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize(("log_format", "first"), [(None, "2"), ("json", "{"), ("text", "2")])
def test_on_a_terminal_it_is_text_unless_asked_otherwise(log_format: str | None, first: str) -> None:
    ours, theirs = pty.openpty()
    source = PREPARED.replace("FORMAT", repr(log_format)).replace("SECRETS", "()") + "log.info('hello')"
    subprocess.run([sys.executable, "-c", source], stderr=theirs, timeout=60, check=True)
    assert os.read(ours, 1000).decode().startswith(first)
    assert written("log.info('hello')", log_format)[0] == ("2" if log_format == "text" else "{")
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("redis://:s3cret@redis:6379/0 is away", "redis://:***@redis:6379/0 is away"),
        ("postgresql://user:p@ss@db/x", "postgresql://user:***@db/x"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("{'authorization': 'bearer abc'}", "{'authorization': 'bearer ***'}"),
        ("key detkds_" + "A1b-_" * 8 + "xyz was used", "key detkds_*** was used"),
        ("host=db password=hunter2 user=x", "host=db password=*** user=x"),
        ("http://127.0.0.1:8350/searches answers", "http://127.0.0.1:8350/searches answers"),
        ("detkds_core.store.jobs", "detkds_core.store.jobs"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str, clean: str) -> None:
    assert logs.redacted(text) == clean


def test_known_secrets_are_hidden_wherever_they_stand() -> None:
    script = f"""
with logs.bound(note="key {KEY}"):
    log.info("it is %s", {KEY!r}, extra={{"password": "p@ss/word-1"}})
    try: raise RuntimeError({DATABASE!r} + " or p%40ss%2Fword-1 or {KEY}")
    except RuntimeError: log.exception("failed")
"""
    for log_format in ("json", "text"):
        text = written(script, log_format, (KEY, DATABASE, None))
        assert "it is ***" in text
        assert "RuntimeError: postgresql+psycopg://detkds:***@db/detkds or *** or ***" in text
        assert KEY not in text
        assert "ss/word" not in text
        assert "p%40ss" not in text


def test_a_word_too_short_to_be_a_secret_hides_nothing() -> None:
    assert logs.words_of(["redis://:detkds@redis/0", "short", None]) == ()
