"""A search as a user runs it, on real images: its policy against every hand-designed distiller and no distillation.

`python benchmarks/live.py run --pair digits_faster_rcnn` searches through a service of its own, within so many student iterations that
they cost less than ten full trainings, confirms the finalists and every distiller that suits the pair at the full schedule with five
(`--seeds`) fresh paired seeds on sealed images, and keeps the figures in `benchmarks/data/live.json`. `python benchmarks/live.py table`
prints what is there: the confirmation, what the search cost in CPU hours and in full trainings, and its funnel.

A full training is a student's alone, by a job of its own in the same run; its cost includes measuring teacher and student.
Seconds of processors are those of all processes of the service, so that other work beside it does not count.
"""

import argparse
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from detkds_client.client import Client
from detkds_client.demo import distilled, must_succeed, service
from detkds_client.types import Result, Search
from detkds_core.catalogue import PAIRS, Pair
from detkds_core.datasets import default_cache, load_dataset
from detkds_core.policy import readable
from detkds_core.report import false_rejects

FILE = Path(__file__).parent / "data" / "live.json"
ITERATIONS = 2_000  # of the search
GROUP = 16  # so that a search has few jobs, each of which begins with seconds of imports
FINALISTS = 5
STATES = ("QUEUED", "RUNNING", "CONFIRMING")
VERDICT = ("verdict", "returned", "why", "against_alone", "against_reference", "comparisons", "searched", "reference")


def run(pair: Pair, seed: int, seeds: int, iterations: int, confirm: int, workers: int, home: Path) -> dict[str, Any]:
    """Search and confirm; the figures of the pair."""
    load_dataset(pair.dataset, default_cache())
    home.mkdir(parents=True, exist_ok=True)
    with service(home) as client:
        common: dict[str, Any] = {
            "dataset": pair.dataset,
            "teacher": {"detector": pair.teacher, "checkpoint": pair.teacher_checkpoint},
            "student": {"detector": pair.student},
            "seed": seed,
            "inherit": pair.inherit,
        }
        before = processor_seconds()
        distilled(client, policy="none", recipe=pair.full.to_json(), name="a full training", **common)
        full = processor_seconds() - before
        started = client.search(
            iterations=iterations,
            group=GROUP,
            parallelism=workers,
            recipe=pair.proxy.to_json(),
            confirmation={"finalists": FINALISTS, "seeds": seeds, "iterations": confirm, "distillers": "all"},
            name=f"live {pair.name}",
            **common,
        )
        print(f"{pair.name}: search {started['id']}", flush=True)
        search, clock, used = followed(client, started["id"])
        must_succeed(search)
        return {"confirmed": confirm} | record(
            pair, search, client.result(str(search["result_id"])), {"clock": clock, "processors": used, "full": full}
        )


def followed(client: Client, search_id: str) -> tuple[Search, dict[str, float], dict[str, float]]:
    """Wait for a search, with a line a minute; and its seconds in each state, by the clock and of all processors."""
    said, clock, used = time.monotonic(), dict.fromkeys(STATES, 0.0), dict.fromkeys(STATES, 0.0)
    while (search := client.get_search(search_id))["state"] in STATES:
        began, before = time.monotonic(), processor_seconds()
        if began - said > 60:
            said = began
            progress = search["progress"]
            print(f"  {progress['step']}: {100 * progress['fraction']:.0f} %, best AP {progress['best_ap']}", flush=True)
        time.sleep(2)
        clock[search["state"]] += time.monotonic() - began
        used[search["state"]] += processor_seconds() - before
    return search, clock, used


def processor_seconds() -> float:
    """Of all processes that this one has started, those that have ended included."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def record(pair: Pair, search: Search, found: Result, cost: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a search."""
    metrics, evidence = found["metrics"], found["evidence"]
    rows = [
        {name: row[name] for name in ("name", "role", "formula", "seeds", "ap", "mean_ap", "interval", "images", "failures")}
        for row in metrics["rows"]
    ]
    return {
        "pair": pair.name,
        "dataset": evidence["dataset"],
        "seed": search["spec"]["seed"],
        "budget": search["spec"]["budget"],
        "full": pair.full.iterations,
        "proxy": pair.proxy.iterations,
        "images": evidence["images"],
        "rows": rows,
        "verdict": {name: metrics[name] for name in VERDICT},
        "cost": {**evidence["cost"], **cost},
        "spent": evidence["summary"]["spent"],
        "funnel": evidence["summary"]["funnel"],
        "rungs": evidence["summary"]["rungs"],
        "environment": found["environment"],
    }


def table(one: dict[str, Any]) -> str:
    """A pair's figures as markdown."""
    pair, cost, funnel = PAIRS[one["pair"]], one["cost"], one["funnel"]
    against = {(row["first"], row["second"]): row for row in one["verdict"]["comparisons"]}
    searched = one["verdict"]["searched"]["name"]
    lines = [
        f"**{pair.name}** ({pair.title}; dataset `{one['dataset']['digest'][:12]}`): {one['images']['report']} sealed images, "
        f"{one.get('confirmed', one['full'])} iterations, seeds {', '.join(map(str, one['rows'][0]['seeds']))}",
        "",
        "| | policy | AP, with its interval | the searched policy against it |",
        "|---|---|---|---|",
    ]
    for row in sorted(one["rows"], key=lambda row: -(row["mean_ap"] or 0)):
        formula = readable(row["formula"])
        if row["mean_ap"] is None or row["failures"]:
            lines.append(f"| {row['name']} | `{formula}` | failed | |")
            continue
        low, high = row["interval"]
        versus = against.get((searched, row["name"]))
        said = "" if versus is None else f"{versus['mean']:+.1f} ({versus['interval'][0]:.1f} to {versus['interval'][1]:.1f})"
        lines.append(f"| {row['name']} | `{formula}` | {row['mean_ap']:.1f} ({low:.1f} to {high:.1f}) | {said} |")
    lines += ["", one["verdict"]["verdict"], ""]
    hours = {state: seconds / 3600 for state, seconds in cost["processors"].items()}
    minutes = {state: seconds / 60 for state, seconds in cost["clock"].items()}
    trainings = cost["processors"]["RUNNING"] / cost["full"]
    lines.append(
        f"Cost: {one['spent']:.0f} student iterations ({one['spent'] / one['full']:.1f} full trainings), "
        f"{hours['RUNNING']:.2f} CPU hours ({trainings:.1f} full trainings of {cost['full']:.0f} CPU seconds), "
        f"{minutes['RUNNING']:.0f} min by the clock; the confirmation {hours['CONFIRMING']:.2f} CPU hours, {minutes['CONFIRMING']:.0f} min."
    )
    refused = ", ".join(f"{count} by {gate}" for gate, count in funnel["rejected"].items()) or "none"
    trained = ", ".join(f"{count} at {rung['iterations']}" for count, rung in zip(funnel["trained"], one["rungs"], strict=True))
    lines.append(
        f"Funnel: {funnel['proposed']} proposed; refused: {refused}; {funnel['duplicates']} doubles, {funnel['infeasible']} infeasible; "
        f"trained: {trained} iterations; false-reject rate of the gates: {false_rejects(funnel)}."
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--pair", choices=sorted(PAIRS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--seeds", type=int, default=5, help="fresh paired seeds of the confirmation")
    parser.add_argument("--confirm", type=int, default=None, help="iterations of the confirmation; default: the full schedule")
    parser.add_argument("--workers", type=int, default=2, help="trainers at once, of one thread each")
    parser.add_argument("--home", type=Path, default=default_cache() / "live", help="where the service keeps its files")
    arguments = parser.parse_args()
    known = json.loads(FILE.read_text()) if FILE.is_file() else {}
    if arguments.command == "run":
        if arguments.pair is None:
            parser.error("run: --pair is needed")
        pair = PAIRS[arguments.pair]
        home = arguments.home / f"{pair.name}-seed{arguments.seed}"
        confirm = arguments.confirm or pair.full.iterations
        known[f"{pair.name} {arguments.seed}"] = run(
            pair, arguments.seed, arguments.seeds, arguments.iterations, confirm, arguments.workers, home
        )
        FILE.write_text("{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(one)}" for name, one in sorted(known.items())) + "\n}\n")
    print("\n\n".join(table(one) for one in known.values()))


if __name__ == "__main__":
    main()
