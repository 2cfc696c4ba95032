"""What one owner may have at once. The operator and keys with scope `admin` have no quota."""

from __future__ import annotations

from sqlalchemy.orm import Session

from detkds_api.problems import TooMany
from detkds_api.service import Running
from detkds_core.store import distillations, searches


def check(session: Session, service: Running, iterations: int) -> None:
    """Raises TooMany for a search or distillation of so many student iterations that the caller's owner may not add to what it has."""
    owner, settings = service.caller.sees, service.settings
    if owner is None:
        return
    most = settings.quota_iterations
    if most is not None and iterations > most:
        raise TooMany(f"this asks for {iterations} student iterations; one request may ask for {most} (DETKDS_QUOTA_ITERATIONS)")
    active = searches.count_active(session, owner) + distillations.count_active(session, owner)
    if settings.quota_active is not None and active >= settings.quota_active:
        allowed = f"{settings.quota_active} may at once (DETKDS_QUOTA_ACTIVE)"
        raise TooMany(f"{active} searches and distillations of {owner!r} wait or run already; {allowed}. Cancel one, or wait for its end")
