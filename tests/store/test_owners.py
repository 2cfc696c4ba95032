"""Requests of one owner are counted one after the other."""

import threading

import pytest

from detkds_core.store import Store, distillations, owners

DATASET = {"name": "shapes", "digest": "d1"}


def test_who_counts_sees_what_who_came_before_has_added(store: Store) -> None:
    """Both would see nothing otherwise. On SQLite the first writer holds the database."""
    held, found = threading.Event(), []

    def second() -> None:
        held.wait(30)
        with store.begin() as session:
            owners.hold(session, "me")
            found.append(distillations.count_active(session, "me"))

    thread = threading.Thread(target=second)
    thread.start()
    with store.begin() as session:
        owners.hold(session, "me")
        assert distillations.count_active(session, "me") == 0
        held.set()
        thread.join(0.5)
        assert thread.is_alive(), "it waits"
        distillations.create(session, name="d", spec={"policy": {"terms": []}}, dataset=DATASET, owner="me")
    thread.join(30)
    assert found == [1]


@pytest.mark.parametrize("owner", ["", "vision team", "größe"])
def test_the_key_of_an_owner_fits_postgres(owner: str) -> None:
    assert -(1 << 63) <= owners.lock_key(owner) < 1 << 63
    assert owners.lock_key(owner) == owners.lock_key(owner) != owners.lock_key(owner + " ")
