"""The service as Python: one method an operation, plain JSON documents back, one exception for whatever it refuses."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import quote

import httpx2

from detkds_client.connection import Connection, DigestError, ProblemError, given, problem_of, told
from detkds_client.types import (
    Candidate,
    Checkpoint,
    Comparison,
    Dataset,
    DetectorChoice,
    Distillation,
    Job,
    Key,
    LogPart,
    NamedPolicy,
    NewKey,
    Result,
    ResultPolicy,
    Search,
    SearchSpace,
    Worker,
)

CHECK_SECONDS = 1800.0  # that the service may take to check a whole checkpoint
JsonPolicy = Mapping[str, Any]
Format = Literal["safetensors", "pth", "config", "last", "last_pth"]


class Client(Connection):
    """A service's operations. `Connection` says how it is found, and what is repeated."""

    # Searches

    def search(
        self,
        *,
        pair: str | None = None,
        dataset: str | None = None,
        teacher: DetectorChoice | None = None,
        student: DetectorChoice | None = None,
        candidates: int | None = None,
        iterations: int | None = None,
        hours: float | None = None,
        wall_clock_hours: float | None = None,
        algorithm: str | None = None,
        weights: str | None = None,
        rungs: Sequence[int] | None = None,
        mode: str | None = None,
        seed: int = 0,
        name: str | None = None,
        knowledge: Sequence[str] | None = None,
        references: Sequence[str | JsonPolicy] | None = None,
        recipe: Mapping[str, Any] | None = None,
        confirmation: Mapping[str, Any] | None = None,
        parallelism: int | None = None,
        group: int | None = None,
        space: str | None = None,
        inherit: bool | None = None,
        resize: bool | None = None,
        warm_start: Sequence[str] | None = None,
        priority: int | None = None,
        device_memory_gib: int | None = None,
        notes: str | None = None,
        tags: Sequence[str] | None = None,
        idempotency_key: str | None = None,
    ) -> Search:
        """Start a search for the pair's policy. What is None is left to the service; one of the budgets is needed, from candidates on."""
        body = given(
            pair=pair,
            dataset=dataset,
            teacher=teacher,
            student=student,
            candidates=candidates,
            iterations=iterations,
            hours=hours,
            wall_clock_hours=wall_clock_hours,
            algorithm=algorithm,
            weights=weights,
            rungs=rungs,
            mode=mode,
            seed=seed,
            name=name,
            knowledge=knowledge,
            references=references,
            recipe=recipe,
            confirmation=confirmation,
            parallelism=parallelism,
            group=group,
            space=space,
            inherit=inherit,
            resize=resize,
            warm_start=warm_start,
            priority=priority,
            device_memory_gib=device_memory_gib,
            notes=notes,
            tags=tags,
        )
        return cast(Search, self.post("/searches", body, idempotency_key))

    def preview_search(self, **wanted: Any) -> dict[str, Any]:
        """What a search with these fields of `search` would do and cost; nothing is started."""
        return cast(dict[str, Any], self.post("/searches/preview", given(**wanted), None))

    def searches(self, *, limit: int | None = 50, **asked: str | None) -> list[Search]:
        """At most `limit` searches, the newest first; asked: `sort` and filters of `GET /searches` (state, tag, dataset, name, teacher,
        student, algorithm)."""
        return cast(list[Search], list(self.items("/searches", limit, **asked)))

    def get_search(self, search_id: str) -> Search:
        return cast(Search, self.get(f"/searches/{search_id}"))

    def cancel_search(self, search_id: str) -> Search:
        return self.change_search(search_id, "cancel")

    def change_search(self, search_id: str, verb: str) -> Search:
        """verb: `pause`, `resume` or `cancel`."""
        return cast(Search, self.post(f"/searches/{search_id}/{verb}"))

    def extend_search(
        self,
        search_id: str,
        *,
        iterations: int | None = None,
        candidates: int | None = None,
        hours: float | None = None,
        wall_clock_hours: float | None = None,
        name: str | None = None,
        priority: int | None = None,
        idempotency_key: str | None = None,
    ) -> Search:
        """Start a search that goes on where one that has SUCCEEDED ended; one of the first four says how much more."""
        more = given(iterations=iterations, candidates=candidates, hours=hours, wall_clock_hours=wall_clock_hours)
        body = more | given(name=name, priority=priority)
        return cast(Search, self.post(f"/searches/{search_id}/extend", body, idempotency_key))

    def clone_search(self, search_id: str, *, idempotency_key: str | None = None, **changes: Any) -> Search:
        """Start a search with the request of another one. changes: fields of `search` to be different; None: back to the default."""
        return cast(Search, self.post(f"/searches/{search_id}/clone", changes, idempotency_key))

    def label_search(
        self,
        search_id: str,
        *,
        name: str | None = None,
        notes: str | None = None,
        tags: Sequence[str] | None = None,
        priority: int | None = None,
    ) -> Search:
        """Change what a search is called, what is written beside it, and how urgent it is; what is None stays."""
        return cast(Search, self.patch(f"/searches/{search_id}", given(name=name, notes=notes, tags=tags, priority=priority)))

    def candidates(self, search_id: str, **asked: str | None) -> list[Candidate]:
        """The candidates of a search by index: all, or those that the filters let through (state, stage, island, operator)."""
        return cast(list[Candidate], list(self.items(f"/searches/{search_id}/candidates", None, **asked)))

    def wait_search(
        self, search_id: str, on_progress: Callable[[Search], None] | None = None, *, poll: float = 1.0, timeout: float | None = None
    ) -> Search:
        """Wait until a search has ended, in whatever state. Raises TimeoutError after `timeout` seconds."""
        return cast(Search, self.wait(f"/searches/{search_id}", cast(Callable[[Any], None] | None, on_progress), poll, timeout))

    # Distillations

    def distill(
        self,
        *,
        policy: str | JsonPolicy,
        pair: str | None = None,
        dataset: str | None = None,
        teacher: DetectorChoice | None = None,
        student: DetectorChoice | None = None,
        recipe: Mapping[str, Any] | None = None,
        seed: int = 0,
        name: str | None = None,
        inherit: bool | None = None,
        resize: bool | None = None,
        priority: int | None = None,
        device_memory_gib: int | None = None,
        notes: str | None = None,
        tags: Sequence[str] | None = None,
        idempotency_key: str | None = None,
    ) -> Distillation:
        """Train the student under a policy: its name, its formula, its JSON, or `{"search": id}` for a search's winner."""
        body = given(
            policy=policy,
            pair=pair,
            dataset=dataset,
            teacher=teacher,
            student=student,
            recipe=recipe,
            seed=seed,
            name=name,
            inherit=inherit,
            resize=resize,
            priority=priority,
            device_memory_gib=device_memory_gib,
            notes=notes,
            tags=tags,
        )
        return cast(Distillation, self.post("/distill", body, idempotency_key))

    def distillations(self, *, limit: int | None = 50, **asked: str | None) -> list[Distillation]:
        """At most `limit` distillations, the newest first; asked: `sort` and filters of `GET /distill` (as of searches)."""
        return cast(list[Distillation], list(self.items("/distill", limit, **asked)))

    def get_distillation(self, distillation_id: str) -> Distillation:
        return cast(Distillation, self.get(f"/distill/{distillation_id}"))

    def clone_distillation(self, distillation_id: str, *, idempotency_key: str | None = None, **changes: Any) -> Distillation:
        """Start a distillation with the request of another one; changes as of `clone_search`."""
        return cast(Distillation, self.post(f"/distill/{distillation_id}/clone", changes, idempotency_key))

    def label_distillation(
        self,
        distillation_id: str,
        *,
        name: str | None = None,
        notes: str | None = None,
        tags: Sequence[str] | None = None,
        priority: int | None = None,
    ) -> Distillation:
        """Change what a distillation is called, what is written beside it, and how urgent it is; what is None stays."""
        return cast(Distillation, self.patch(f"/distill/{distillation_id}", given(name=name, notes=notes, tags=tags, priority=priority)))

    def cancel_distillation(self, distillation_id: str) -> Distillation:
        return self.change_distillation(distillation_id, "cancel")

    def change_distillation(self, distillation_id: str, verb: str) -> Distillation:
        """verb: `pause`, `resume` or `cancel`."""
        return cast(Distillation, self.post(f"/distill/{distillation_id}/{verb}"))

    def wait_distillation(
        self,
        distillation_id: str,
        on_progress: Callable[[Distillation], None] | None = None,
        *,
        poll: float = 1.0,
        timeout: float | None = None,
    ) -> Distillation:
        """Wait until a distillation has ended, in whatever state. Raises TimeoutError after `timeout` seconds."""
        done = self.wait(f"/distill/{distillation_id}", cast(Callable[[Any], None] | None, on_progress), poll, timeout)
        return cast(Distillation, done)

    # Results

    def results(self, *, limit: int | None = 50, **asked: str | float | None) -> list[Result]:
        """At most `limit` results, the newest first; asked: `sort` ("-ap": the best first) and filters of `GET /results` (name, tag, kind,
        dataset, teacher, student, term, ap_at_least, ap_at_most)."""
        return cast(list[Result], list(self.items("/results", limit, **asked)))

    def compare(self, ids: Sequence[str]) -> Comparison:
        """Several results side by side, in groups of those that were measured on the same images."""
        return cast(Comparison, self.get("/results/compare", ids=",".join(ids)))

    def result(self, result_id: str) -> Result:
        return cast(Result, self.get(f"/results/{result_id}"))

    def download_checkpoint(self, result_id: str, path: str | Path, format: Format = "safetensors") -> Path:
        """Write the distilled student's weights, or the MMDetection configuration that goes with them, to `path`.

        Of a student that was measured on its way, these are the best weights; `last` and `last_pth` are those of the end of its training.
        The file appears whole or not at all, compared with the SHA-256 that the service tells; a connection that breaks off is taken up
        again where it was. Raises DigestError, ProblemError, ServiceUnreachable.
        """
        path = Path(path)
        part = path.with_name(path.name + ".part")
        etag: str | None = None
        try:
            for attempt in range(self.retries + 1):
                have = part.stat().st_size if etag is not None else 0
                headers = {"Range": f"bytes={have}-", "If-Range": etag} if etag is not None and have else {}
                try:
                    with self.http.stream(
                        "GET", f"/results/{result_id}/checkpoint", params={"format": format}, headers=headers
                    ) as response:
                        if response.status_code not in (200, 206):
                            response.read()
                            raise problem_of(response)
                        etag = response.headers.get("etag")
                        with part.open("ab" if response.status_code == 206 else "wb") as file:
                            for chunk in response.iter_bytes():
                                file.write(chunk)
                    break
                except httpx2.TransportError as error:
                    if attempt == self.retries:
                        raise self.unreachable(error) from error
                    time.sleep(min(0.1 * 2**attempt, 2.0))
            wanted = (etag or "").strip('"')
            with part.open("rb") as received:
                found = hashlib.file_digest(received, "sha256").hexdigest()
            if wanted and found != wanted:
                raise DigestError(f"{path}: expected SHA-256 {wanted}, received {found}; download it again")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return path

    def detections(self, result_id: str) -> list[dict[str, Any]]:
        """What the distilled student finds in the report images: COCO detections (image_id, category_id, bbox xywh in pixels, score)."""
        return cast(list[dict[str, Any]], self.get(f"/results/{result_id}/detections")["student"])

    def result_policy(self, result_id: str) -> ResultPolicy:
        """The policy of a result as JSON and formula, and the MMDetection configuration of the student that was trained under it."""
        return cast(ResultPolicy, self.get(f"/results/{result_id}/policy"))

    def report(self, result_id: str) -> str:
        """The report of a result, as HTML that stands alone."""
        return self.exchange("GET", f"/results/{result_id}/report").text

    # Jobs

    def jobs(self, *, search: str | None = None, distillation: str | None = None, state: str | None = None, limit: int = 50) -> list[Job]:
        """At most `limit` jobs, the newest first: all, or those of a search, of a distillation, in a state."""
        return cast(list[Job], list(self.items("/jobs", limit, search=search, distillation=distillation, state=state)))

    def job(self, job_id: str) -> Job:
        """One job of a search or a distillation."""
        return cast(Job, self.get(f"/jobs/{job_id}"))

    def log(self, job_id: str, attempt: int, *, offset: int = 0, limit: int = 1 << 16) -> LogPart:
        """A part of what the trainer of an attempt wrote, at most `limit` bytes from byte `offset` on."""
        return cast(LogPart, self.get(f"/jobs/{job_id}/attempts/{attempt}/log", offset=offset, limit=limit))

    def read_log(self, job_id: str, attempt: int, *, follow: bool = False, poll: float = 1.0) -> Iterator[str]:
        """The whole log of an attempt, part by part; with `follow` also what is written from now on, until the attempt ends."""
        offset = 0
        while True:
            part = self.log(job_id, attempt, offset=offset)
            if part["text"]:
                yield part["text"]
            if part["next_offset"] == offset:  # all that there is, or half a character
                if part["ended"] or not follow:
                    return
                time.sleep(poll)
            offset = part["next_offset"]

    # Checkpoints

    def checkpoints(self) -> list[Checkpoint]:
        """The checkpoints that were brought, newest first."""
        return cast(list[Checkpoint], list(self.items("/checkpoints", None)))

    def checkpoint(self, checkpoint_id: str) -> Checkpoint:
        return cast(Checkpoint, self.get(f"/checkpoints/{checkpoint_id}"))

    def delete_checkpoint(self, checkpoint_id: str) -> Checkpoint:
        """Remove a checkpoint that nothing needs, and its files; what it was. Raises ProblemError (409) for one in use."""
        return cast(Checkpoint, self.request("DELETE", f"/checkpoints/{checkpoint_id}"))

    def upload_checkpoint(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        classes: Sequence[str] | None = None,
        detector: str | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Checkpoint:
        """Send a teacher's or a student's weights; READY when this returns, and its `id` then stands for a checkpoint.

        An upload of the same file that broke off goes on where it was. classes, detector: needed where the file does not say.
        on_progress: told the bytes that are there, and those of the file. Raises ProblemError with the reason of a refusal.
        """
        path = Path(path)
        with path.open("rb") as file:
            size, sha256 = path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
            body = given(name=name or path.name, size=size, sha256=sha256, classes=classes, detector=detector)
            one = cast(Checkpoint, self.post("/checkpoints", body))
            if one["state"] == "READY":
                return one
            there, done = set(one["received"] or ()), 0
            for number in range(one["parts"]):
                file.seek(number * one["part_bytes"])
                part = file.read(one["part_bytes"])
                if number not in there:
                    place = f"/checkpoints/{one['id']}/parts/{number}"
                    self.request("PUT", place, content=part, headers={"Content-Type": "application/octet-stream"})
                done += len(part)
                if on_progress is not None:
                    on_progress(done, size)
        return cast(Checkpoint, self.request("POST", f"/checkpoints/{one['id']}/complete", timeout=CHECK_SECONDS))

    def add_checkpoint(
        self,
        place: str,
        *,
        sha256: str | None = None,
        name: str | None = None,
        classes: Sequence[str] | None = None,
        detector: str | None = None,
    ) -> Checkpoint:
        """Take in weights that lie below a registered folder of the service's machine, or at an https address of a host that it allows.

        sha256: of the file, hexadecimal; needed for an address.
        """
        there = {"url" if "://" in place else "path": place}
        body = given(name=name or place.partition("?")[0].rpartition("/")[2], **there, sha256=sha256, classes=classes, detector=detector)
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        return cast(Checkpoint, self.request("POST", "/checkpoints", json=body, headers=headers, timeout=CHECK_SECONDS))

    # Datasets, detectors, policies, health

    def datasets(self) -> list[Dataset]:
        return cast(list[Dataset], list(self.items("/datasets", None)))

    def dataset(self, name: str) -> Dataset:
        return cast(Dataset, self.get(f"/datasets/{quote(name, safe='')}"))

    def delete_dataset(self, name: str) -> Dataset:
        """Remove a dataset that is not READY; what it was. Raises ProblemError (409) for one that is."""
        return cast(Dataset, self.request("DELETE", f"/datasets/{quote(name, safe='')}"))

    def register_dataset(
        self,
        name: str,
        *,
        train_annotations: str,
        train_images: str,
        val_annotations: str,
        val_images: str,
        on_progress: Callable[[Dataset], None] | None = None,
        poll: float = 0.5,
    ) -> Dataset:
        """Have a COCO-format dataset below the service's registered folders checked and remembered under a name; returns once it is READY.

        Raises ProblemError with all that is wrong where it is REFUSED.
        """
        body = {
            "name": name,
            "train": {"annotations": train_annotations, "images": train_images},
            "val": {"annotations": val_annotations, "images": val_images},
        }
        self.post("/datasets", body)
        checked = cast(Dataset, self.wait(f"/datasets/{name}", cast(Callable[[Any], None] | None, on_progress), poll, None))
        if checked["state"] == "REFUSED":
            raise ProblemError({"detail": told(checked["problems"]), "errors": checked["problems"]}, 422)
        return checked

    def detectors(self) -> dict[str, Any]:
        """`{"detectors": [...], "pairs": [...]}`."""
        return cast(dict[str, Any], self.get("/detectors"))

    def search_space(
        self,
        pair: str | None = None,
        *,
        teacher: str | None = None,
        student: str | None = None,
        dataset: str | None = None,
        batch: int | None = None,
        resize: bool | None = None,
        space: Literal["published", "full"] | None = None,
        weights: Literal["balanced", "published"] | None = None,
    ) -> SearchSpace:
        """What a search on a pair would choose from, and why not from other knowledge; teacher, student: detectors, for no pair or
        in place of its own. batch: images of a forward on one device."""
        asked = given(teacher=teacher, student=student, dataset=dataset, batch=batch, resize=resize, space=space, weights=weights)
        return cast(SearchSpace, self.get("/search-space", pair=pair, **asked))

    def policies(self) -> list[NamedPolicy]:
        return cast(list[NamedPolicy], self.get("/policies")["items"])

    def workers(self) -> list[Worker]:
        """The workers that are there, by name, and what each holds."""
        return cast(list[Worker], self.get("/workers")["items"])

    def drain_worker(self, worker_id: str) -> Worker:
        """Let a worker end what it runs and take nothing new; for the operator and keys with scope `admin`."""
        return cast(Worker, self.post(f"/workers/{worker_id}/drain"))

    def undrain_worker(self, worker_id: str) -> Worker:
        """Let a worker take jobs again."""
        return cast(Worker, self.post(f"/workers/{worker_id}/undrain"))

    def keys(self) -> list[Key]:
        """The API keys, newest first; for the operator and keys with scope `admin`."""
        return cast(list[Key], list(self.items("/keys", None)))

    def create_key(self, name: str, *, owner: str, scope: str = "run", days: float | None = 90) -> NewKey:
        """A key and its secret, which nobody can read again. days None: valid until it is revoked."""
        return cast(NewKey, self.post("/keys", {"name": name, "owner": owner, "scope": scope, "days": days}))

    def revoke_key(self, key_id: str) -> Key:
        """End a key now."""
        return cast(Key, self.request("DELETE", f"/keys/{key_id}"))

    def metrics(self) -> str:
        """What there is to watch, in the text format of Prometheus."""
        return self.exchange("GET", "/metrics").text

    def ready(self) -> dict[str, Any]:
        """What the service stands on. Raises ProblemError (503) that names what is missing."""
        return cast(dict[str, Any], self.get("/ready"))

    def health(self) -> dict[str, Any]:
        return cast(dict[str, Any], self.get("/health"))
