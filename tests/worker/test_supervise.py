"""One claimed job, with real trainers (small Python scripts) and a real database."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url, text

from detkds_core.store import Store, jobs
from detkds_worker.settings import Settings
from detkds_worker.supervise import attempt_folder, progress_of, run_claim, write_spec

from .test_processes import alive, until

SPEC = {"kind": "evaluate", "seed": 3, "candidates": [{"index": 0, "policy": {"terms": []}}]}


def claimed(store: Store, spec: dict[str, Any] = SPEC, lease_seconds: float = 30.0, **kwargs: Any) -> Any:
    with store.begin() as session:
        job_id = jobs.enqueue(session, kind=spec["kind"], spec=spec, **kwargs).id
    with store.begin() as session:
        claim = jobs.claim(session, worker="test", lease_seconds=lease_seconds, job_id=job_id)
    assert claim is not None
    return claim


def row(store: Store, claim: Any) -> dict[str, Any]:
    with store.begin() as session:
        job = jobs.get(session, claim.job_id)
        return {name: getattr(job, name) for name in ("state", "attempt", "result", "progress", "failure")}


def trainer_pid(settings: Settings, claim: Any) -> int:
    return int((attempt_folder(settings, claim) / "pid").read_text())


def test_a_result_is_stored_with_its_spec_and_log(database: Store, settings: Callable[..., Settings]) -> None:
    ours = settings("""
print("hello from a library")
print("a warning", file=sys.stderr)
leave("result.json", {"seed": spec["seed"], "kind": spec["kind"]})
""")
    claim = claimed(database)
    assert run_claim(database, claim, ours) == "succeeded"
    after = row(database, claim)
    assert (after["state"], after["result"]) == ("SUCCEEDED", {"seed": 3, "kind": "evaluate"})
    folder = ours.home / "artifacts" / claim.job_id / "1"
    assert json.loads((folder / "spec.json").read_text()) == SPEC
    assert not (ours.home / "scratch" / claim.job_id).exists()
    assert sorted((folder / "trainer.log").read_text().splitlines()) == ["a warning", "hello from a library"]


def test_progress_is_relayed_while_the_trainer_works(database: Store, settings: Callable[..., Settings]) -> None:
    ours = settings('report(1); report(2); time.sleep(3.2); report(3); leave("result.json", {})')
    claim = claimed(database)
    seen: list[int] = []

    def look() -> bool:
        progress = row(database, claim)["progress"]
        if progress and progress["done"] not in seen:
            seen.append(progress["done"])
        return False

    assert run_claim(database, claim, ours, draining=look) == "succeeded"
    assert seen[:1] == [2]


@pytest.mark.parametrize(
    ("kind", "state"), [("out_of_memory", "QUEUED"), ("bug", "QUEUED"), ("not_finite", "FAILED"), ("bad_data", "FAILED")]
)
def test_what_a_trainer_says_of_its_failure_decides(database: Store, settings: Callable[..., Settings], kind: str, state: str) -> None:
    ours = settings(f'leave("failure.json", {{"kind": "{kind}", "detail": "at step 7"}}); sys.exit(1)')
    claim = claimed(database)
    assert run_claim(database, claim, ours) == "failed"
    after = row(database, claim)
    assert after["state"] == state
    assert after["failure"] == {"kind": kind, "detail": "at step 7"}


@pytest.mark.parametrize(
    ("script", "kind", "detail"),
    [
        ("[print(n) for n in range(100)]; sys.exit(3)", "bug", r"exit code 3\n60\n61\n[\d\n]+\n99$"),
        ("raise RuntimeError('no such layer')", "bug", r"RuntimeError: no such layer"),
        ("pass", "bug", r"exit code 0 but left no result\.json"),
        ("leave('result.json', '[1, 2]')", "bug", r"result\.json holds a list, not an object"),
        ("leave('result.json', '{\"ap\": NaN}')", "bug", r"NaN is not JSON"),
        ("leave('result.json', '{\"ap\": 3')", "bug", r"no JSON object"),
        ("leave('failure.json', {'kind': 'tired'}); sys.exit(1)", "bug", r"kind 'tired'; one of out_of_memory"),
        ("print('so far', flush=True); os.kill(os.getpid(), signal.SIGKILL)", "lost", r"ended by SIGKILL\nso far$"),
    ],
)
def test_an_end_without_an_outcome_is_told_with_the_log(
    database: Store, settings: Callable[..., Settings], script: str, kind: str, detail: str
) -> None:
    claim = claimed(database)
    assert run_claim(database, claim, settings(script)) == "failed"
    failure = row(database, claim)["failure"]
    assert failure["kind"] == kind
    assert re.search(detail, failure["detail"]), failure["detail"]


def test_cancelling_stops_the_trainer_even_one_that_does_not_listen(database: Store, settings: Callable[..., Settings]) -> None:
    ours = settings("signal.signal(signal.SIGTERM, signal.SIG_IGN); report(1); time.sleep(60)", lease_seconds=0.9)
    claim = claimed(database, lease_seconds=30)

    def cancel_once_it_runs() -> bool:
        if (attempt_folder(ours, claim) / "pid").exists() and row(database, claim)["state"] == "RUNNING":
            with database.begin() as session:
                assert jobs.cancel(session, claim.job_id)
        return False

    assert run_claim(database, claim, ours, draining=cancel_once_it_runs) == "lost"
    assert not alive(trainer_pid(ours, claim))
    assert row(database, claim)["state"] == "CANCELLED"


def test_a_worker_whose_lease_went_to_another_writes_nothing(database: Store, settings: Callable[..., Settings]) -> None:
    ours = settings('time.sleep(1); leave("result.json", {"from": "the old one"})')
    old = claimed(database, lease_seconds=0.2)
    newer: list[Any] = []

    def take_over() -> bool:
        if not newer:
            time.sleep(0.4)
            with database.begin() as session:
                assert jobs.reap(session) == [old.job_id]
            with database.begin() as session:
                newer.append(jobs.claim(session, worker="another", lease_seconds=30, job_id=old.job_id))
        return False

    assert run_claim(database, old, ours, draining=take_over) == "lost"
    after = row(database, old)
    assert (after["state"], after["attempt"], after["result"]) == ("RUNNING", 2, None)


def test_a_draining_worker_gives_its_job_back_uncounted(database: Store, settings: Callable[..., Settings]) -> None:
    ours = settings("time.sleep(60)")
    claim = claimed(database)
    pid = attempt_folder(ours, claim) / "pid"
    assert run_claim(database, claim, ours, draining=pid.exists) == "released"
    assert not alive(int(pid.read_text()))
    assert row(database, claim)["state"] == "QUEUED"
    with database.begin() as session:
        again = jobs.claim(session, worker="next", lease_seconds=30)
    assert again is not None
    assert again.attempt == 2, "so that its files are its own"
    assert attempt_folder(ours, again) != attempt_folder(ours, claim)
    assert run_claim(database, again, settings('leave("result.json", {})')) == "succeeded"


@pytest.mark.parametrize(
    ("script", "changes"),
    [
        ("[(report(n), time.sleep(0.1)) for n in range(600)]", {"deadline_seconds": 0.8}),
        ("report(1); time.sleep(60)", {"silence_seconds": 0.8}),
    ],
)
def test_what_takes_too_long_or_hangs_is_a_timeout(
    database: Store, settings: Callable[..., Settings], script: str, changes: dict[str, float]
) -> None:
    ours = settings(script, **changes)
    claim = claimed(database)
    started = time.monotonic()
    assert run_claim(database, claim, ours) == "failed"
    assert time.monotonic() - started < 5
    assert row(database, claim)["failure"]["kind"] == "timeout"
    assert not alive(trainer_pid(ours, claim))


def test_a_job_may_name_a_shorter_deadline(database: Store, settings: Callable[..., Settings]) -> None:
    claim = claimed(database, SPEC | {"deadline_seconds": 0.5})
    assert run_claim(database, claim, settings("time.sleep(60)")) == "failed"
    assert row(database, claim)["failure"]["kind"] == "timeout"


def test_a_talkative_trainer_is_not_held_up(database: Store, settings: Callable[..., Settings]) -> None:
    """64 KiB fill a pipe that nobody reads; 8 MB and a line of 3 MB pass."""
    ours = settings("""
for n in range(80000): print("x" * 99)
print("y" * 3_000_000); report(4)
leave("result.json", {})
""")
    claim = claimed(database)
    began = time.monotonic()
    assert run_claim(database, claim, ours) == "succeeded"
    assert time.monotonic() - began < 8
    assert (ours.home / "artifacts" / claim.job_id / "1" / "trainer.log").stat().st_size > 11_000_000


def test_the_trainer_sees_quiet_threads_and_no_secret(
    database: Store, settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = settings('leave("result.json", dict(os.environ))', threads=3)
    for name in ("DETKDS_DATABASE_URL", "DETKDS_BROKER_URL", "DETKDS_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "secret")
    claim = claimed(database)
    assert run_claim(database, claim, ours) == "succeeded"
    environment = row(database, claim)["result"]
    assert "secret" not in environment.values()
    wanted = {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}
    assert {name: environment[name] for name in wanted} == wanted


def test_what_the_trainer_started_ends_with_it(database: Store, settings: Callable[..., Settings]) -> None:
    ours = settings("""
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
leave("result.json", {"child": child.pid})
""")
    claim = claimed(database)
    assert run_claim(database, claim, ours) == "succeeded"
    child = row(database, claim)["result"]["child"]
    assert until(lambda: not alive(child))


def test_a_distillation_goes_on_where_it_was(database: Store, settings: Callable[..., Settings]) -> None:
    ours = settings("pass")
    spec = {"kind": "distill", "policy": {"terms": []}, "seed": 0, "resume_from": None}
    claim = claimed(database, spec)
    folder = attempt_folder(ours, claim)
    assert json.loads(write_spec(folder, claim, claim.spec).read_text())["resume_from"] is None
    resume = folder.parent / "resume.pt"
    resume.write_bytes(b"state")
    assert json.loads(write_spec(folder, claim, claim.spec).read_text())["resume_from"] == str(resume)


@pytest.mark.parametrize(
    "line", [b"", b"epoch 3", b"[1]", b'{"event": "other"}', b'{"event": "progress", "best_ap": NaN}', b'{"event": "prog', b"\xff"]
)
def test_other_lines_are_no_progress(line: bytes) -> None:
    assert progress_of(line) is None


def test_settings_name_their_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETKDS_TRAINER", "  ")
    with pytest.raises(ValueError, match="DETKDS_TRAINER is empty"):
        Settings()
    monkeypatch.setenv("DETKDS_TRAINER", "python 'my trainer.py' --fast")
    assert Settings().trainer == ("python", "my trainer.py", "--fast")


class Outage:
    """A Postgres database that nobody reaches for a while; the server itself stays up for the other tests."""

    def __init__(self, server_url: str, database_url: str) -> None:
        self.engine = create_engine(server_url, isolation_level="AUTOCOMMIT")
        self.name = make_url(database_url).database
        self.began = 0.0

    def begin(self) -> None:
        self.began = time.monotonic()
        with self.engine.connect() as connection:
            connection.execute(text(f"ALTER DATABASE {self.name} WITH ALLOW_CONNECTIONS false"))
            connection.execute(text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self.name}'"))

    def end(self) -> None:
        with self.engine.connect() as connection:
            connection.execute(text(f"ALTER DATABASE {self.name} WITH ALLOW_CONNECTIONS true"))
        self.engine.dispose()


@pytest.fixture
def outage(postgres_server: str, postgres_database: str) -> Iterator[tuple[Store, Outage]]:
    store = Store(postgres_database)
    store.migrate()
    made = Outage(postgres_server, postgres_database)
    yield store, made
    made.end()
    store.close()


def test_a_database_that_is_away_for_a_moment_costs_nothing(outage: tuple[Store, Outage], settings: Callable[..., Settings]) -> None:
    """It goes while the trainer works, and is back when its result has waited for a second."""
    store, away = outage
    ours = settings('time.sleep(0.8); leave("result.json", {"ap": 30.0})', lease_seconds=6.0)
    claim = claimed(store, lease_seconds=20)
    back = threading.Timer(2.0, away.end)

    def go_away_once() -> bool:
        if not away.began:
            away.begin()
            back.start()
        return False

    assert run_claim(store, claim, ours, draining=go_away_once) == "succeeded"
    assert time.monotonic() - away.began > 2
    back.join()
    assert row(store, claim)["result"] == {"ap": 30.0}


def test_a_worker_that_cannot_renew_its_lease_stops_in_time(outage: tuple[Store, Outage], settings: Callable[..., Settings]) -> None:
    store, away = outage
    ours = settings("time.sleep(60)", lease_seconds=1.0)
    claim = claimed(store, lease_seconds=1.0)

    def go_away_once() -> bool:
        if not away.began:
            away.begin()
        return False

    assert run_claim(store, claim, ours, draining=go_away_once) == "lost"
    assert time.monotonic() - away.began < 5
    assert not alive(trainer_pid(ours, claim))
