"""Rights that one process at a time may hold."""

from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from detkds_core.store.models import Lease
from detkds_core.store.session import now


def hold(session: Session, name: str, holder: str, seconds: float) -> bool:
    """Take a right that is free or expired, or keep one's own. False: another holds it."""
    moment = now(session)
    lease = session.scalars(select(Lease).where(Lease.name == name).with_for_update()).one_or_none()
    if lease is None:
        session.add(Lease(name=name, holder=holder, expires_at=moment + timedelta(seconds=seconds)))
        session.flush()
        return True
    if lease.holder != holder and lease.expires_at > moment:
        return False
    lease.holder, lease.expires_at = holder, moment + timedelta(seconds=seconds)
    return True


def let_go(session: Session, name: str, holder: str) -> None:
    """Give a right back, if it is still one's own."""
    lease = session.get(Lease, name)
    if lease is not None and lease.holder == holder:
        session.delete(lease)
