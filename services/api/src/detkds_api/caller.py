"""Who asks: what a request may do, what it sees, and how often it may ask."""

from __future__ import annotations

import hmac
import math
import threading
import time
from collections.abc import Mapping
from typing import NamedTuple, cast

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from detkds_api.problems import Forbidden, KeyMissing, TooMany, database_away
from detkds_core.store import UNREACHABLE, Store, keys
from detkds_core.store.vocabulary import Scope

SCOPES: Mapping[str, int] = {"read": 0, "run": 1, "admin": 2}
KNOWN_SECONDS = 5.0  # for so long a key that was revoked may still pass
KNOWN_KEYS = 10_000  # kept at once, so that wrong ones fill no memory


class Caller(NamedTuple):
    """Who a request comes from. owner: whose its searches are; key: its id, None for the operator's own or where none is asked for."""

    owner: str
    scope: Scope
    key: str | None = None

    @property
    def sees(self) -> str | None:
        """Whose searches, distillations and results it sees; None: everybody's."""
        return None if self.scope == "admin" else self.owner

    def must(self, scope: Scope) -> None:
        """Raises Forbidden for a key whose scope is less."""
        if SCOPES[self.scope] < SCOPES[scope]:
            raise Forbidden(f"this needs a key with scope {scope!r}; this key's is {self.scope!r} (detkds keys create --scope {scope})")


OPERATOR = Caller(owner="", scope="admin")


class Callers:
    """Finds the caller of a key. operator_key None: everybody is the operator, which settings allow on loopback alone."""

    def __init__(self, store: Store, operator_key: str | None) -> None:
        self.store = store
        self.operator_key = operator_key
        self.lock = threading.Lock()
        self.known: dict[str, tuple[float, Caller | None]] = {}  # digest of a secret -> until when (monotonic), and whose it is

    def of(self, authorization: str) -> Caller:
        """The caller of an Authorization header. Raises KeyMissing."""
        if self.operator_key is None:
            return OPERATOR
        scheme, _, given = authorization.partition(" ")
        given = given.strip()
        if scheme.lower() == "bearer" and given:
            if hmac.compare_digest(given.encode(), self.operator_key.encode()):
                return OPERATOR
            if (caller := self.owner_of(given)) is not None:
                return caller
        wrong = "the API key is wrong, or no longer valid" if given else "no API key came with the request"
        raise KeyMissing(f"{wrong}; send 'Authorization: Bearer KEY' (DETKDS_API_KEY)", headers={"WWW-Authenticate": "Bearer"})

    def owner_of(self, secret: str) -> Caller | None:
        """The caller of a secret of the database, which is asked every few seconds. Raises Unavailable."""
        name, now = keys.digest(secret), time.monotonic()
        with self.lock:
            until, caller = self.known.get(name, (0.0, None))
        if now < until:
            return caller
        try:
            with self.store.read() as session:
                key = keys.find(session, secret)
                caller = Caller(key.owner, cast(Scope, key.scope), key.id) if key is not None else None
                unseen = key is not None and keys.unseen(session, key.id)
            if caller is not None and unseen:
                with self.store.begin() as session:
                    keys.used(session, str(caller.key))
        except UNREACHABLE:
            raise database_away() from None
        with self.lock:
            if len(self.known) >= KNOWN_KEYS:
                self.known.clear()
            self.known[name] = (now + KNOWN_SECONDS, caller)
        return caller


class Pace:
    """How often a caller may ask in a minute. None: as often as it likes. Each process of the service counts for itself."""

    def __init__(self, a_minute: int | None) -> None:
        self.allowed = None if a_minute is None else RateLimitItemPerMinute(a_minute)
        self.limiter = MovingWindowRateLimiter(MemoryStorage())

    def take(self, caller: str) -> None:
        """Count a request. Raises TooMany, with the seconds to wait."""
        if self.allowed is None or self.limiter.hit(self.allowed, caller):
            return
        wait = max(1, math.ceil(self.limiter.get_window_stats(self.allowed, caller).reset_time - time.time()))
        raise TooMany(f"more than {self.allowed.amount} requests in a minute; the next one in {wait} s", headers={"Retry-After": str(wait)})
