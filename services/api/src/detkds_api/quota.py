"""Whether new work is taken in: room on the disk, the priority that it asks for, and what one owner may have at once.

The operator and keys with scope `admin` have no quota and may ask for any priority.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from sqlalchemy.orm import Session

from detkds_api.problems import FieldError, Forbidden, NoRoom, TooMany
from detkds_api.service import Running
from detkds_core.store import disk, distillations, owners, searches

MOST_URGENT = 100
Priority = Annotated[
    int,
    Field(
        ge=-MOST_URGENT,
        le=MOST_URGENT,
        description="jobs of a higher priority are begun first; within one, owners share the workers. Above DETKDS_PRIORITY_MAX (0, unless "
        "it is set) for keys with scope `admin` only",
    ),
]
DeviceMemory = Annotated[int, Field(ge=1, le=4096, description="GiB that a GPU must have for it; default: any device will do")]


def wait_turn(session: Session, service: Running) -> None:
    """Let no other request of the caller's owner be counted and stored until this transaction ends.

    Before an Idempotency-Key is looked for: of two requests at once with one key, the second then finds the first one's row, where it
    would find the quota used up by it.
    """
    if service.caller.sees is not None and service.settings.quota_active is not None:
        owners.hold(session, service.caller.owner)


def check(session: Session, service: Running, *, iterations: int, priority: int) -> None:
    """Raises NoRoom, Forbidden for a priority, TooMany for a search or distillation of so many student iterations that the caller's owner
    may not add to what it has. Whoever asks has waited for its turn (`wait_turn`)."""
    owner, settings = service.caller.sees, service.settings
    if short := disk.shortage(settings.filled_folder, settings.disk_free_gib):
        raise NoRoom(f"no new work is taken: {short}")
    if owner is None:
        return
    check_priority(service, priority)
    most = settings.quota_iterations
    if most is not None and iterations > most:
        raise TooMany(f"this asks for {iterations} student iterations; one request may ask for {most} (DETKDS_QUOTA_ITERATIONS)")
    active = searches.count_active(session, owner) + distillations.count_active(session, owner)
    if settings.quota_active is not None and active >= settings.quota_active:
        allowed = f"{settings.quota_active} may at once (DETKDS_QUOTA_ACTIVE)"
        raise TooMany(f"{active} searches and distillations of {owner!r} wait or run already; {allowed}. Cancel one, or wait for its end")


def check_priority(service: Running, priority: int) -> None:
    """Raises Forbidden for one that is higher than the caller may ask for."""
    most = service.settings.priority_max
    if service.caller.sees is not None and priority > most:
        message = (
            f"{priority} is more than a key with scope {service.caller.scope!r} may ask for; at most {most} "
            "(DETKDS_PRIORITY_MAX), or ask somebody whose key has scope 'admin'"
        )
        raise Forbidden(f"priority: {message}", [FieldError("/priority", message)])
