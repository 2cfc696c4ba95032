"""`python -m detkds_api`: serve over HTTP until a signal ends it."""

from __future__ import annotations

import signal
import sys

import uvicorn
from pydantic import ValidationError

from detkds_api.app import create_app
from detkds_api.settings import Settings
from detkds_core.catalogue import OWN_FAULTS


def main() -> None:
    """Start the service, or say why the settings or the operator's own detectors do not allow it (exit code 2)."""
    try:
        settings = Settings()
    except ValidationError as error:
        for entry in error.errors():
            place, why = ".".join(str(part) for part in entry["loc"]), entry["msg"].removeprefix("Value error, ")
            name = f"DETKDS_{place.upper()}: " if place and not why.startswith("DETKDS_") else ""
            print(f"detkds_api: {name}{why}", file=sys.stderr)
        sys.exit(2)
    for fault in OWN_FAULTS:
        print(f"detkds_api: {fault}", file=sys.stderr)
    if OWN_FAULTS:
        sys.exit(2)
    settings.configure_logs()
    # uvicorn stops on these by its own handlers and then raises them again; a stop that was asked for is no failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        access_log=False,  # the gate writes what is worth it
        server_header=False,
        log_config=None,
        timeout_graceful_shutdown=5,
    )


if __name__ == "__main__":
    main()
