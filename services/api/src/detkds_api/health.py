"""`GET /health`: whether the service and its database answer."""

from __future__ import annotations

from importlib.metadata import version
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from detkds_api.problems import Unavailable
from detkds_api.service import example
from detkds_core.store import Store

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The service answers."""

    status: Literal["ok"]
    version: str
    database: str


@router.get("/health", responses={200: example({"status": "ok", "version": "0.1.0", "database": "sqlite"})})
def health(request: Request) -> Health:
    """200 while the service can work, 503 while its database does not answer."""
    store: Store = request.app.state.store
    try:
        with store.read() as session:
            session.execute(text("SELECT 1"))
            dialect = session.get_bind().dialect.name
    except SQLAlchemyError as error:
        raise Unavailable("the database does not answer; the log has the reason") from error
    return Health(status="ok", version=version("detkds_api"), database=dialect)
