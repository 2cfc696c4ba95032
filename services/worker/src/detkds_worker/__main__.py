"""`python -m detkds_worker`: the local loop, or the Celery worker where DETKDS_BROKER_URL names a broker."""

from __future__ import annotations

import os
import sys

from detkds_core.store import Store
from detkds_worker import loop
from detkds_worker.settings import Settings, stop_on_faulty_detectors

CELERY_COMMAND = ("-m", "celery", "-A", "detkds_worker.celery_app", "worker", "--loglevel", "INFO")


def main() -> None:
    stop_on_faulty_detectors()
    settings = Settings()
    if settings.broker_url:
        os.execv(sys.executable, [sys.executable, *CELERY_COMMAND])  # one process, so that signals reach Celery itself
    settings.configure_logs()
    loop.run(Store(settings.url), settings, loop.Drain().listen())


if __name__ == "__main__":
    main()
