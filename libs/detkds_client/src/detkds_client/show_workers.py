"""Workers and their jobs in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from detkds_client.show import facts, listed, state, waiting
from detkds_client.types import HeldJob, Job, Worker


def workers(found: Sequence[Worker]) -> None:
    columns = [("name", ""), ("state", ""), ("device", ""), ("GiB", "right"), ("holds", ""), ("job", "wide")]
    rows = [
        (
            one["name"] if one["present"] or one["state"] == "lost" else f"{one['name']} (not running)",
            state(one["state"]) if not one["disk_low"] else Text(f"{one['state']}, disk full"),
            one["device"],
            str(one["memory_gib"] or "-"),
            holding(one["job"]),
            (one["job"] and one["job"]["id"]) or "-",
        )
        for one in found
    ]
    listed(columns, rows, "No worker. `detkds serve` starts one, or `python -m detkds_worker`.")


def holding(held: HeldJob | None) -> str:
    """`search NAME`, `distillation NAME`; `somebody else's job`; `-` for nothing."""
    if held is None:
        return "-"
    if held["id"] is None:
        return "somebody else's job"
    return f"{'search' if held['search_id'] else 'distillation'} {held['name']}"


def jobs(found: Sequence[Job]) -> None:
    columns = [("id", ""), ("kind", ""), ("state", ""), ("attempt", "right"), ("worker", "wide"), ("last failure", "wide")]
    rows = [
        (
            one["id"],
            one["kind"],
            state(one["state"]),
            f"{one['attempt']}/{one['max_attempts']}",
            one["worker"] or "-",
            one["failure"]["kind"] if one["failure"] else "-",
        )
        for one in found
    ]
    listed(columns, rows, "No job yet. The evolver makes the first one within a second, if it runs.")


def job(one: Job) -> None:
    of = ("search", one["search_id"]) if one["search_id"] else ("distillation", one["distillation_id"])
    facts(
        [
            ("job", f"{one['id']}  ({one['kind']})"),
            ("state", state(one["state"])),
            *waiting(one),
            *([(of[0], of[1])] if of[1] else []),
            ("priority", str(one["priority"])),
            ("attempt", f"{one['attempt']} of {one['max_attempts']}"),
            *([("worker", f"{one['worker']} on {one['device']}")] if one["worker"] else []),
            *([("failure", f"{one['failure']['kind']}: {one['failure']['detail']}")] if one["failure"] else []),
            *([("logs", f"of attempt {', '.join(map(str, one['logs']))}: detkds logs {one['id']} --attempt N")] if one["logs"] else []),
        ]
    )
