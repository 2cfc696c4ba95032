"""A database of jobs, and workers whose trainer is a small script."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detkds_core.store import Store
from detkds_worker.settings import Settings

PRELUDE = """
import json, os, signal, sys, time
spec, out = json.load(open(sys.argv[1])), sys.argv[2]
def leave(name, value): open(os.path.join(out, name), "w").write(value if isinstance(value, str) else json.dumps(value))
def report(done): print(json.dumps({"event": "progress", "done": done, "total": 4, "message": "train", "best_ap": None}), flush=True)
open(os.path.join(out, "pid"), "w").write(str(os.getpid()))
"""


@pytest.fixture
def database(tmp_path: Path) -> Store:
    store = Store(f"sqlite:///{tmp_path / 'detkds.sqlite'}")
    store.migrate()
    return store


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    def with_trainer(script: str, **changes: Any) -> Settings:
        path = tmp_path / "trainer.py"
        path.write_text(PRELUDE + script)
        return Settings(home=tmp_path, trainer=(sys.executable, str(path)), stop_grace_seconds=1.0, **changes)

    for name in [name for name in os.environ if name.startswith("DETKDS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DETKDS_CACHE", str(tmp_path / "cache"))
    return with_trainer
