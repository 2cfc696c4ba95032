"""The service as Python: one method an operation, plain JSON documents back, one exception for whatever it refuses."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, cast

import httpx2

from detkds_client.types import Candidate, Dataset, DetectorChoice, Distillation, Key, NamedPolicy, NewKey, Result, Search

FINAL_STATES = ("SUCCEEDED", "FAILED", "CANCELLED", "DEAD")
PATIENCE = 90.0  # seconds that waiting outlives an unreachable service: its restart, or a database's
JsonPolicy = Mapping[str, Any]


def dotted(pointer: str) -> str:
    """A JSON pointer as people write it: `/policy/terms/1/weight` is `policy.terms[1].weight`; `?limit` stays."""
    if not pointer.startswith("/"):
        return pointer or "body"
    parts = (part.replace("~1", "/").replace("~0", "~") for part in pointer[1:].split("/"))
    return "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in parts).lstrip(".")


class ProblemError(Exception):
    """The service refused. Its text is readable as it is; `problem` is the RFC 9457 document, `status` the HTTP status."""

    def __init__(self, problem: Mapping[str, Any], status: int) -> None:
        self.problem = problem
        self.status = status
        self.errors: list[dict[str, str]] = list(problem.get("errors", []))
        text = str(problem.get("detail") or problem.get("title") or f"the service answered {status}")
        # The detail stops after some fields; whoever repairs a file wants to see all that is wrong with it.
        super().__init__("\n".join(f"{dotted(one['pointer'])}: {one['message']}" for one in self.errors) if len(self.errors) > 1 else text)


class ServiceUnreachable(Exception):
    """Nobody answers at the service's address."""


def find_url(home: Path | None = None) -> str:
    """Where the service is: `DETKDS_URL`, else what `detkds serve` left in `$DETKDS_HOME/serve.json`.

    Raises ServiceUnreachable when neither says.
    """
    if url := os.environ.get("DETKDS_URL"):
        return url
    folder = home or Path(os.environ.get("DETKDS_HOME", "~/.detkds")).expanduser()
    try:
        return str(json.loads((folder / "serve.json").read_text())["url"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ServiceUnreachable(
            f"no service is known: {folder / 'serve.json'} is not there. "
            "Start one with 'detkds serve', or name one with --url or DETKDS_URL"
        ) from None


class Client:
    """A connection to one service. Use it as a context manager, or close it.

    url None: `find_url` looks for one; key None: `DETKDS_API_KEY`. Requests that are safe to repeat are repeated when the connection
    fails: reading, cancelling, and creating too, since every creation carries an Idempotency-Key.
    """

    def __init__(self, url: str | None = None, key: str | None = None, *, timeout: float = 60.0, retries: int = 4) -> None:
        self.url = (url or find_url()).rstrip("/")
        self.retries = retries
        key = key or os.environ.get("DETKDS_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # Proxies of the environment are for the internet; the service is on this machine or in this network.
        self.http = httpx2.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.http.close()

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
        )
        return cast(Search, self.post("/searches", body, idempotency_key))

    def preview_search(self, **wanted: Any) -> dict[str, Any]:
        """What a search with these fields of `search` would do and cost; nothing is started."""
        return cast(dict[str, Any], self.post("/searches/preview", given(**wanted), None))

    def searches(self, *, state: str | None = None, limit: int = 50) -> list[Search]:
        """The newest searches first."""
        return cast(list[Search], list(self.items("/searches", limit, state=state)))

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
        name: str | None = None,
        idempotency_key: str | None = None,
    ) -> Search:
        """Start a search that goes on where one that has SUCCEEDED ended. One of iterations, candidates and hours says how much more."""
        body = given(iterations=iterations, candidates=candidates, hours=hours, name=name)
        return cast(Search, self.post(f"/searches/{search_id}/extend", body, idempotency_key))

    def candidates(self, search_id: str) -> list[Candidate]:
        """All candidates of a search, by index."""
        return cast(list[Candidate], list(self.items(f"/searches/{search_id}/candidates", None)))

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
        )
        return cast(Distillation, self.post("/distill", body, idempotency_key))

    def distillations(self, *, state: str | None = None, limit: int = 50) -> list[Distillation]:
        """The newest distillations first."""
        return cast(list[Distillation], list(self.items("/distill", limit, state=state)))

    def get_distillation(self, distillation_id: str) -> Distillation:
        return cast(Distillation, self.get(f"/distill/{distillation_id}"))

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

    def results(self, *, kind: str | None = None, limit: int = 50) -> list[Result]:
        """The newest results first. kind: "search" or "distill"."""
        return cast(list[Result], list(self.items("/results", limit, kind=kind)))

    def result(self, result_id: str) -> Result:
        return cast(Result, self.get(f"/results/{result_id}"))

    def download_checkpoint(
        self, result_id: str, path: str | Path, format: Literal["safetensors", "pth", "config"] = "safetensors"
    ) -> Path:
        """Write the distilled student's weights, or the MMDetection configuration that goes with them, to `path`.

        The file appears whole or not at all.
        """
        path = Path(path)
        part = path.with_name(path.name + ".part")
        try:
            with self.http.stream("GET", f"/results/{result_id}/checkpoint", params={"format": format}) as response:
                if response.status_code != 200:
                    response.read()
                    raise problem_of(response)
                with part.open("wb") as file:
                    for chunk in response.iter_bytes(1 << 20):
                        file.write(chunk)
        except httpx2.TransportError as error:
            part.unlink(missing_ok=True)
            raise self.unreachable(error) from error
        part.replace(path)
        return path

    def detections(self, result_id: str) -> list[dict[str, Any]]:
        """What the distilled student finds in the report images: COCO detections (image_id, category_id, bbox xywh in pixels, score)."""
        return cast(list[dict[str, Any]], self.get(f"/results/{result_id}/detections")["student"])

    # Datasets, detectors, policies, health

    def datasets(self) -> list[Dataset]:
        return cast(list[Dataset], list(self.items("/datasets", None)))

    def register_dataset(
        self,
        name: str,
        *,
        train_annotations: str,
        train_images: str,
        val_annotations: str,
        val_images: str,
        idempotency_key: str | None = None,
    ) -> Dataset:
        """Check a COCO-format dataset below the service's registered folders, and remember it under a name."""
        body = {
            "name": name,
            "train": {"annotations": train_annotations, "images": train_images},
            "val": {"annotations": val_annotations, "images": val_images},
        }
        return cast(Dataset, self.post("/datasets", body, idempotency_key))

    def detectors(self) -> dict[str, Any]:
        """`{"detectors": [...], "pairs": [...]}`."""
        return cast(dict[str, Any], self.get("/detectors"))

    def policies(self) -> list[NamedPolicy]:
        return cast(list[NamedPolicy], self.get("/policies")["items"])

    def keys(self) -> list[Key]:
        """The API keys, newest first; for the operator and keys with scope `admin`."""
        return cast(list[Key], list(self.items("/keys", None)))

    def create_key(self, name: str, *, owner: str, scope: str = "run", days: float | None = 90) -> NewKey:
        """A key and its secret, which nobody can read again. days None: valid until it is revoked."""
        return cast(NewKey, self.post("/keys", {"name": name, "owner": owner, "scope": scope, "days": days}))

    def revoke_key(self, key_id: str) -> Key:
        """End a key now."""
        return cast(Key, self.request("DELETE", f"/keys/{key_id}"))

    def health(self) -> dict[str, Any]:
        return cast(dict[str, Any], self.get("/health"))

    # HTTP

    def get(self, path: str, **parameters: Any) -> Any:
        return self.request("GET", path, params=given(**parameters))

    def post(self, path: str, body: Mapping[str, Any] | None = None, idempotency_key: str | None = None) -> Any:
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self.request("POST", path, json=body, headers=headers) if body is not None else self.request("POST", path, headers=headers)

    def items(self, path: str, limit: int | None, **parameters: Any) -> Iterator[Any]:
        """The items of a list over its pages, at most `limit`."""
        left = limit
        cursor: str | None = None
        while left is None or left > 0:
            page = self.get(path, limit=100 if left is None else min(left, 100), cursor=cursor, **parameters)
            yield from page["items"]
            cursor = page["next_cursor"]
            left = None if left is None else left - len(page["items"])
            if cursor is None:
                return

    def wait(self, path: str, on_progress: Callable[[Any], None] | None, poll: float, timeout: float | None) -> Any:
        """Ask again and again until the state is final. A service that restarts in between is waited for."""
        started = reached = time.monotonic()
        while True:
            try:
                document = self.get(path)
                reached = time.monotonic()
            except ServiceUnreachable:
                if time.monotonic() - reached > PATIENCE:
                    raise
                time.sleep(poll)
                continue
            if on_progress is not None:
                on_progress(document)
            if document["state"] in FINAL_STATES:
                return document
            if timeout is not None and time.monotonic() - started > timeout:
                raise TimeoutError(f"{path} is still {document['state']} after {timeout:.0f} s")
            time.sleep(poll)

    def request(self, method: str, path: str, **arguments: Any) -> Any:
        """One exchange, repeated when the connection fails. Raises ProblemError, ServiceUnreachable."""
        for attempt in range(self.retries + 1):
            try:
                response = self.http.request(method, path, **arguments)
            except (httpx2.ConnectError, httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError) as error:
                if attempt == self.retries:
                    raise self.unreachable(error) from error
                time.sleep(min(0.1 * 2**attempt, 2.0))
                continue
            except httpx2.TransportError as error:
                raise self.unreachable(error) from error
            if response.is_success:
                return response.json()
            raise problem_of(response)
        raise AssertionError("the loop above returns or raises")

    def unreachable(self, error: Exception) -> ServiceUnreachable:
        return ServiceUnreachable(f"no answer from {self.url} ({error or type(error).__name__}); is 'detkds serve' running there?")


def problem_of(response: httpx2.Response) -> ProblemError:
    """The answer's problem document, or one made of whatever something between here and the service answered instead."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {"detail": f"{response.url} answered {response.status_code}, and not as a DetKDS service does"}
    return ProblemError(problem, response.status_code)


def given(**fields: Any) -> dict[str, Any]:
    """The fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}
