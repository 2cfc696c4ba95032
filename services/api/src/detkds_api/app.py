"""The application: one router a domain, the gate before them, problems for whatever goes wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, HTMLResponse
from fastapi.staticfiles import StaticFiles

from detkds_api import (
    candidates,
    comparison,
    datasets,
    detectors,
    distill,
    health,
    jobs,
    keys,
    live,
    metrics,
    policies,
    problems,
    reference,
    results,
    search_control,
    search_space,
    searches,
    uploads,
    workers,
)
from detkds_api.caller import Callers, Pace
from detkds_api.checking import Checker
from detkds_api.description import complete
from detkds_api.gate import Gate
from detkds_api.settings import Settings
from detkds_core.store import Store
from detkds_core.store.waiting import Fleets

DOMAINS = (
    *(searches, search_control, candidates, distill, live, comparison, results),
    *(uploads, datasets, detectors, policies, search_space, workers, jobs, keys, health, metrics),
)
ROUTERS = [domain.router for domain in DOMAINS]
PAGES = Path(__file__).parent / "pages"

DESCRIPTION = """\
Find the knowledge-distillation policy that suits a teacher and a student detector on your data (`POST /searches`),
train the student with it (`POST /distill`), and take the checkpoint with its evidence (`GET /results`).

Long work answers 202 with a `Location` to look at. Both POSTs take an `Idempotency-Key`. Lists are read with `limit` and `cursor`; their
filters and orders stand with each, and any other is refused.
Errors are RFC 9457 problems whose `errors[]` say which field was wrong and what would be right.
"""


def create_app(settings: Settings) -> FastAPI:
    """The app over the store of `settings`. The database must have been migrated (`detkds serve` does)."""
    store = Store(settings.url)
    checker = Checker(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        settings.home.mkdir(parents=True, exist_ok=True)
        store.migrate()
        uploads.remove_left(settings.home)
        checker.start()
        yield
        await run_in_threadpool(checker.stop)
        store.close()

    app = FastAPI(
        title="DetKDS",
        version=version("detkds_api"),
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # `reference` instead
        redoc_url=None,
    )
    app.state.store = store
    app.state.settings = settings
    app.state.fleets = Fleets()
    app.state.checker = checker
    app.state.readiness = health.Readiness(store, settings)
    app.state.streams = live.Streams(settings.quota_streams)
    app.state.requests = requests = metrics.Requests()
    for router in ROUTERS:
        app.include_router(router)
    app.mount("/pages", StaticFiles(directory=PAGES), name="pages")

    @app.get("/", include_in_schema=False)
    def dashboard() -> FileResponse:
        return FileResponse(PAGES / "dashboard.html", headers={"Cache-Control": "no-cache"})

    @app.get("/docs", include_in_schema=False)
    def documentation(request: Request) -> HTMLResponse:
        return HTMLResponse(reference.page(app.openapi(), str(request.base_url).rstrip("/")))

    describe = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            complete(describe(), ROUTERS, keys=settings.api_key is not None)
        return describe()

    app.openapi = described  # type: ignore[method-assign]
    problems.install(app)
    key = settings.api_key.get_secret_value() if settings.api_key else None
    pace = Pace(settings.requests_a_minute)
    app.add_middleware(Gate, allowed_hosts=settings.hosts, callers=Callers(store, key), pace=pace, note=requests.note)
    return app
