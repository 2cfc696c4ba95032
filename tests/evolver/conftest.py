"""What the tests of the evolver share."""

from collections.abc import Iterator

import pytest

from detkds_core.store import Store


@pytest.fixture
def sqlite(sqlite_database: str) -> Iterator[Store]:
    made = Store(sqlite_database)
    made.migrate()
    yield made
    made.close()
