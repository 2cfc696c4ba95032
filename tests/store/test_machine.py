"""Jobs, leases and searches as a whole: Hypothesis plays API, evolver, workers that die and workers that wake up too late, in any order.

After every step the store must say what a model of a few lines says.
"""

from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule, run_state_machine_as_test

from detkds_core.store import Store, distillations, events, jobs, leases, searches
from detkds_core.store.jobs import MOST_ATTEMPTS, Claim
from detkds_core.store.models import Job
from detkds_core.store.states import FINAL, RETRIED

DATASET = {"name": "digits", "digest": "d"}
ENDED = ("SUCCEEDED", "FAILED", "CANCELLED", "DEAD")
ENTRANT = {"entrant": 0, "candidate": None, "name": "none", "role": "alone", "policy": {"terms": []}}
CLAIM_SECONDS = st.sampled_from([60.0, -1.0])  # a lease of -1 has run out: its worker is as good as dead, and may still write


@dataclass
class Expected:
    """What the store must say of a job."""

    of: str | None = None  # the search or distillation that it belongs to
    state: str = "QUEUED"
    attempt: int = 0
    released: int = 0
    most: int = 3
    token: str | None = None
    expired: bool = False
    result: dict[str, int] | None = None
    results: list[int] = field(default_factory=list)  # every result that was accepted

    def free(self, state: str, *, uncounted: bool = False) -> None:
        self.state, self.token, self.expired = state, None, False
        self.released, self.most = self.released + uncounted, self.most + uncounted

    def again(self, *, lost: bool) -> None:
        """After an attempt that may be repeated."""
        left = self.attempt - self.released < MOST_ATTEMPTS if lost else self.attempt < self.most
        self.most += lost and left
        self.free("QUEUED" if left else "DEAD")


class Service(RuleBasedStateMachine):
    """store: set by the test."""

    store: Store
    known = Bundle("jobs")
    claims = Bundle("claims")
    hunts = Bundle("searches")

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[str, Expected] = {}
        self.searches: dict[str, list[str]] = {}  # its state, and before it that in which it was paused
        self.distillations: set[str] = set()
        self.holders: dict[str, tuple[str, bool]] = {}
        self.numbers = iter(range(10**6))

    # --- the API

    @initialize(target=known)
    def one_job(self) -> str:
        return self._enqueue(None)

    @rule(target=known, most=st.integers(1, 3))
    def enqueue(self, most: int) -> str:
        return self._enqueue(None, most)

    @rule(target=known)
    def distill(self) -> str:
        with self.store.begin() as session:
            one = distillations.create(session, name="d", spec={}, dataset=DATASET)
            job = jobs.of_distillation(session, one.id)
            assert job is not None
            self.distillations.add(one.id)
            self.jobs[job.id] = Expected(one.id)
            return job.id

    @rule(target=hunts)
    def search(self) -> str:
        with self.store.begin() as session:
            one = searches.create(session, name="s", spec={}, dataset=DATASET).id
        self.searches[one] = ["QUEUED"]
        return one

    @rule(job=known)
    def cancel(self, job: str) -> None:
        model = self.jobs[job]
        with self.store.begin() as session:
            assert jobs.cancel(session, job) is (model.state not in ENDED)
        if model.state not in ENDED:
            model.free("CANCELLED")

    @rule(job=known)
    def pause_job(self, job: str) -> None:
        with self.store.begin() as session:
            paused = jobs.pause(session, Job.id == job)
        assert paused == ([job] if self._paused(self.jobs[job]) else [])

    @rule(job=known)
    def resume_job(self, job: str) -> None:
        with self.store.begin() as session:
            resumed = jobs.resume(session, Job.id == job)
        assert resumed == ([job] if self._resumed(self.jobs[job]) else [])

    @rule(one=hunts)
    def pause_search(self, one: str) -> None:
        states = self.searches[one]
        able = states[-1] in ("QUEUED", "RUNNING", "CONFIRMING")
        with self.store.begin() as session:
            assert searches.pause(session, one) is able
        if able:
            states.append("PAUSED")
            for model in self._of(one):
                self._paused(model)

    @rule(one=hunts)
    def resume_search(self, one: str) -> None:
        states = self.searches[one]
        able = states[-1] == "PAUSED"
        with self.store.begin() as session:
            assert searches.resume(session, one) is able
        if able:
            states.pop()
            for model in self._of(one):
                self._resumed(model)

    @rule(one=consumes(hunts), fails=st.booleans())
    def end_search(self, one: str, fails: bool) -> None:
        states = self.searches[one]
        with self.store.begin() as session:
            assert searches.fail(session, one, "why") if fails else searches.cancel(session, one)
        states[:] = ["FAILED" if fails else "CANCELLED"]
        for model in self._of(one):
            if model.state not in ENDED:
                model.free("CANCELLED")

    # --- the evolver

    @rule(target=known, one=hunts)
    def drive(self, one: str) -> object:
        """It starts a search, or has it go on to its confirmation, and enqueues a job; nothing where somebody holds it."""
        states = self.searches[one]
        with self.store.begin() as session:
            search = searches.lock(session, one)
            assert (search is not None) is (states[-1] != "PAUSED")
            if search is None:
                return multiple()
            if states[-1] == "QUEUED":
                searches.start(session, search)
                states[:] = ["RUNNING"]
            elif states[-1] == "RUNNING":
                searches.confirm(session, search)
                states[:] = ["CONFIRMING"]
                job = jobs.enqueue(session, kind="confirm", spec={}, search_id=one).id
                searches.enter(session, one, job_id=job, seed=1, entrants=[ENTRANT])
                self.jobs[job] = Expected(one)
                return job
        return self._enqueue(one)

    @rule()
    def reap(self) -> None:
        lost = {job for job, model in self.jobs.items() if model.state == "RUNNING" and model.expired}
        with self.store.begin() as session:
            assert set(jobs.reap(session)) == lost
        for job in lost:
            self.jobs[job].again(lost=True)

    @rule(job=known)
    def collect(self, job: str) -> None:
        """A result is counted once, however often somebody tries."""
        with self.store.begin() as session:
            one = jobs.get(session, job)
            assert one is not None
            before = one.collected
            assert jobs.collect(session, one) is not before
        with self.store.begin() as session:
            one = jobs.get(session, job)
            assert one is not None
            assert not jobs.collect(session, one)

    @rule(name=st.sampled_from(["reaper", "search 1"]), holder=st.sampled_from(["a", "b"]), runs_out=st.booleans())
    def duty(self, name: str, holder: str, runs_out: bool) -> None:
        own = f"{id(self)} {name}"
        has, expired = self.holders.get(own, (holder, True))
        able = has == holder or expired
        with self.store.begin() as session:
            assert leases.acquire(session, own, holder=holder, seconds=-1 if runs_out else 60) is able
        if able:
            self.holders[own] = (holder, runs_out)

    # --- workers

    @rule(target=claims, job=known, seconds=CLAIM_SECONDS)
    def claim(self, job: str, seconds: float) -> object:
        """A message rings for a job, perhaps again and too late."""
        with self.store.begin() as session:
            claim = jobs.claim(session, worker="w", lease_seconds=seconds, job_id=job)
        assert (claim is not None) is (self.jobs[job].state == "QUEUED")
        return multiple() if claim is None else self._took(claim, seconds)

    @rule(target=claims, seconds=CLAIM_SECONDS)
    def claim_next(self, seconds: float) -> object:
        with self.store.begin() as session:
            claim = jobs.claim(session, worker="w", lease_seconds=seconds)
        waiting = [job for job, model in self.jobs.items() if model.state == "QUEUED"]
        assert (claim is not None) is bool(waiting)
        return multiple() if claim is None else self._took(claim, seconds)

    @rule(claim=claims, seconds=CLAIM_SECONDS)
    def renew(self, claim: Claim, seconds: float) -> None:
        with self.store.begin() as session:
            assert jobs.renew(session, claim, lease_seconds=seconds, progress={"done": 1}) is self._holds(claim)
        if self._holds(claim):
            self.jobs[claim.job_id].expired = seconds < 0

    @rule(claim=claims)
    def finish(self, claim: Claim) -> None:
        result = {"number": next(self.numbers)}
        with self.store.begin() as session:
            assert jobs.finish(session, claim, result) is self._holds(claim)
        if self._holds(claim):
            model = self.jobs[claim.job_id]
            model.result = result
            model.results.append(result["number"])
            model.free("SUCCEEDED")

    @rule(claim=claims, kind=st.sampled_from([*RETRIED, *FINAL]))
    def fail(self, claim: Claim, kind: str) -> None:
        with self.store.begin() as session:
            assert jobs.fail(session, claim, kind=kind, detail="why") is self._holds(claim)
        if self._holds(claim):
            model = self.jobs[claim.job_id]
            if kind in FINAL:
                model.free("FAILED")
            else:
                model.again(lost=kind == "lost")

    @rule(claim=claims)
    def release(self, claim: Claim) -> None:
        with self.store.begin() as session:
            assert jobs.release(session, claim) is self._holds(claim)
        if self._holds(claim):
            self.jobs[claim.job_id].free("QUEUED", uncounted=True)

    # --- what must hold

    @invariant()
    def the_store_says_what_the_model_says(self) -> None:
        with self.store.read() as session:
            for name, model in self.jobs.items():
                job = jobs.get(session, name)
                assert job is not None
                found = (job.state, job.attempt, job.released, job.max_attempts, job.lease_token, job.result)
                assert found == (model.state, model.attempt, model.released, model.most, model.token, model.result)
                assert (job.lease_expires_at is not None) is (model.token is not None)
                told = [one.kind for one in events.after(session, name)]
                assert told.count("succeeded") == len(model.results) <= 1
                if model.of in self.distillations:
                    one = distillations.get(session, model.of)
                    assert one is not None
                    # it becomes SUCCEEDED with its result, which the evolver writes
                    assert one.state == ("RUNNING" if model.state == "SUCCEEDED" else model.state)
            for name, states in self.searches.items():
                search = searches.get(session, name)
                assert search is not None
                assert search.state == states[-1]

    def teardown(self) -> None:
        with self.store.begin() as session:
            for job in self.jobs:
                jobs.cancel(session, job)

    # --- the model

    def _enqueue(self, search: str | None, most: int = 3) -> str:
        with self.store.begin() as session:
            job = jobs.enqueue(session, kind="evaluate", spec={}, search_id=search, max_attempts=most).id
        self.jobs[job] = Expected(search, most=most)
        return job

    def _of(self, search: str) -> list[Expected]:
        return [model for model in self.jobs.values() if model.of == search]

    def _holds(self, claim: Claim) -> bool:
        model = self.jobs[claim.job_id]
        return model.state == "RUNNING" and (model.attempt, model.token) == (claim.attempt, claim.token)

    def _took(self, claim: Claim, seconds: float) -> Claim:
        model = self.jobs[claim.job_id]
        assert model.state == "QUEUED"
        assert claim.token not in {one.token for one in self.jobs.values()}
        model.state, model.token, model.expired = "RUNNING", claim.token, seconds < 0
        model.attempt += 1
        assert claim.attempt == model.attempt
        return claim

    def _paused(self, model: Expected) -> bool:
        if model.state not in ("QUEUED", "RUNNING"):
            return False
        model.free("PAUSED", uncounted=model.state == "RUNNING")
        return True

    def _resumed(self, model: Expected) -> bool:
        if model.state != "PAUSED":
            return False
        model.free("QUEUED")
        return True


def test_whoever_does_what_in_whatever_order(store: Store) -> None:
    class OnStore(Service):
        pass

    OnStore.store = store
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    run_state_machine_as_test(
        OnStore, settings=settings(max_examples=12, stateful_step_count=30, deadline=None, suppress_health_check=checks)
    )
