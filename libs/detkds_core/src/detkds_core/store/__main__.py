"""`python -m detkds_core.store`: bring the database of DETKDS_DATABASE_URL (else SQLite in DETKDS_HOME) up to date."""

from __future__ import annotations

import os
from pathlib import Path

from .session import Store


def main() -> None:
    home = Path(os.environ.get("DETKDS_HOME") or "~/.detkds").expanduser().resolve()
    store = Store(os.environ.get("DETKDS_DATABASE_URL") or f"sqlite:///{home / 'detkds.sqlite'}")
    store.migrate()
    print(f"{store.url.render_as_string(hide_password=True)} is up to date")


if __name__ == "__main__":
    main()
