"""How documents of the service look in a terminal."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from detkds_client.connection import dotted
from detkds_client.types import Candidate, Checkpoint, Dataset, Distillation, Job, Key, NamedPolicy, Result, Search
from detkds_core.catalogue import Recipe
from detkds_core.names import counted
from detkds_core.policy import readable

STATE_STYLE: Mapping[str, str] = {
    "QUEUED": "yellow",
    "RUNNING": "cyan",
    "CONFIRMING": "cyan",
    "SUCCEEDED": "green",
    "FAILED": "red",
    "DEAD": "red",
    "CANCELLED": "dim",
    "PAUSED": "yellow",
    "busy": "cyan",
    "draining": "yellow",
    "drained": "yellow",
    "lost": "red",
    "UPLOADING": "yellow",
    "READY": "green",
    "REFUSED": "red",
}
FILE_WIDTH = 400  # characters; of what goes into a file or a pipe
MOST_EVALUATIONS = 20  # lines of what a training was measured at on its way
WHOLE = ("id", "state", "pair", "detector")  # columns whose words are copied, and never broken
WIDE = 120  # characters; in a narrower terminal, columns marked "wide" are left out


def console() -> Console:
    """A console on the standard output of now. What is no terminal is as wide as a line may be, so that it can be searched."""
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=FILE_WIDTH)


def put(shown: Table) -> None:
    """Print a table; rich fills its lines with blanks, which only a terminal does not show."""
    screen = console()
    if screen.is_terminal:
        screen.print(shown)
        return
    with screen.capture() as captured:
        screen.print(shown)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def as_json(document: object) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=False))


def duration(seconds: float | None) -> str:
    """`3:05`, `1:02:09`; `-` when nothing is known."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def ap(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def when(timestamp: str) -> str:
    """`2026-05-04T10:11:12.3Z` as `2026-05-04 10:11` (UTC, as stored)."""
    return timestamp[:16].replace("T", " ")


def state(name: str) -> Text:
    return Text(name, style=STATE_STYLE.get(name, ""))


def plain(text: str | Text) -> Text:
    """Text as it is: a formula's options stand in brackets, which rich would take for markup."""
    return text if isinstance(text, Text) else Text(text)


def table(columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str | Text]], width: int = FILE_WIDTH) -> Table:
    """A table without lines; columns are (heading, words): "right" for numbers, "wide" for what a narrow terminal can do without."""
    shown = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    kept = [place for place, (_, words) in enumerate(columns) if width >= WIDE or "wide" not in words]
    for place in kept:
        heading, words = columns[place]
        shown.add_column(heading, justify="right" if "right" in words else "left", overflow="fold", no_wrap=heading in WHOLE)
    for row in rows:
        shown.add_row(*(plain(row[place]) for place in kept))
    return shown


def searches(found: Sequence[Search], *, filtered: bool = False) -> None:
    """A line each. filtered: not all were asked for."""
    rows = [
        (
            one["id"],
            one["name"],
            state(one["state"]),
            f"{one['progress']['fraction']:.0%}",
            ap(one["progress"]["best_ap"]),
            one["dataset"],
            ", ".join(one["tags"]),
            when(one["created_at"]),
        )
        for one in found
    ]
    columns = [
        ("id", ""),
        ("name", ""),
        ("state", ""),
        ("done", "right"),
        ("best AP", "right"),
        ("dataset", "wide"),
        ("tags", "wide"),
        ("created (UTC)", "wide"),
    ]
    listed(columns, rows, none_passes("search") if filtered else "No search yet. Start one: detkds search --pair digits_gfl")


def distillations(found: Sequence[Distillation], *, filtered: bool = False) -> None:
    """A line each. filtered: not all were asked for."""
    rows = [
        (
            one["id"],
            one["name"],
            state(one["state"]),
            f"{one['progress']['fraction']:.0%}",
            one["dataset"],
            readable(one["formula"]),
            ", ".join(one["tags"]),
            when(one["created_at"]),
        )
        for one in found
    ]
    columns = [
        ("id", ""),
        ("name", ""),
        ("state", ""),
        ("done", "right"),
        ("dataset", "wide"),
        ("policy", "wide"),
        ("tags", "wide"),
        ("created (UTC)", "wide"),
    ]
    listed(
        columns,
        rows,
        none_passes("distillation") if filtered else "No distillation yet. Start one: detkds distill --pair digits_gfl --policy pkd",
    )


def results(found: Sequence[Result], *, filtered: bool = False) -> None:
    """A line each. filtered: not all were asked for."""
    rows = [
        (one["id"], one["kind"], one["name"], one["dataset"], ap(one["ap"]), readable(one["formula"]), when(one["created_at"]))
        for one in found
    ]
    columns = [("id", ""), ("kind", ""), ("name", ""), ("dataset", "wide"), ("AP", "right"), ("policy", "wide"), ("created (UTC)", "wide")]
    nothing = "No result yet. Searches and distillations leave theirs here when they end."
    listed(columns, rows, none_passes("result") if filtered else nothing)


def datasets(found: Sequence[Dataset]) -> None:
    def count(number: int | None) -> str:
        return "-" if number is None else str(number)

    rows = [
        (
            one["name"],
            "built in" if one["builtin"] else "registered" if one["state"] == "READY" else state(one["state"]),
            str(len(one["classes"])) if one["classes"] else "-",
            count(one["train_images"]),
            count(one["val_images"]),
            (one["digest"] or ("made on first use" if one["builtin"] else "-"))[:20],
        )
        for one in found
    ]
    columns = [("name", ""), ("kind", ""), ("classes", "right"), ("train images", "right"), ("val images", "right"), ("digest", "")]
    listed(columns, rows, "No dataset.")


def dataset(one: Dataset) -> None:
    """A dataset, how far its check is, and what is wrong with it."""
    datasets([one])
    if one["progress"] is not None:
        print(checking_line(one))
    for problem in one["problems"]:
        print(f"{dotted(problem['pointer'])}: {problem['message']}")


def checking_line(one: Dataset) -> str:
    """How far a check is, in a line."""
    progress = one["progress"]
    if progress is None:
        return f"{one['name']}: {'waits for its check' if one['state'] == 'CHECKING' else one['state']}"
    return f"{one['name']}: {progress['message']}" + (f", {progress['done']:,} of {progress['total']:,}" if progress["total"] else "")


def checkpoints(found: Sequence[Checkpoint]) -> None:
    columns = [("id", ""), ("name", ""), ("state", ""), ("MiB", ""), ("classes", ""), ("detector", "wide"), ("brought", "wide")]
    rows = [
        (
            one["id"],
            one["name"],
            state(one["state"]),
            f"{one['size'] / 2**20:.1f}",
            str(len(one["classes"])) if one["classes"] else "-",
            one["detector"] or "-",
            when(one["created_at"]),
        )
        for one in found
    ]
    listed(columns, rows, "No checkpoint. Send one: detkds checkpoints upload teacher.safetensors")


def checkpoint(one: Checkpoint) -> None:
    """A checkpoint, and why it is not READY."""
    checkpoints([one])
    if one["reason"]:
        print(one["reason"])
    elif one["received"] is not None and one["state"] == "UPLOADING":
        print(f"{len(one['received'])} of {one['parts']} parts are there; the same `detkds checkpoints upload` again sends the rest")


def keys(found: Sequence[Key]) -> None:
    def day(text: str | None) -> str:
        return text[:16].replace("T", " ") if text else "-"

    columns = [("id", ""), ("name", ""), ("owner", ""), ("scope", ""), ("valid until", ""), ("last used", "wide")]
    rows = [
        (
            one["id"],
            one["name"],
            one["owner"],
            one["scope"],
            "revoked " + day(one["revoked_at"]) if one["revoked_at"] else day(one["expires_at"]),
            day(one["last_used_at"]),
        )
        for one in found
    ]
    listed(columns, rows, "No key.")


def policies(found: Sequence[NamedPolicy]) -> None:
    """A line each; a wide screen also shows the source, what it was designed for, and which pairs of the catalogue can run it."""
    columns = [("name", ""), ("formula", ""), ("source", "wide"), ("expected use", "wide"), ("pairs", "wide")]
    rows = [(one["name"], readable(one["formula"]), one["source"], one["expected_use"], pairs_text(one["pairs"])) for one in found]
    listed(columns, rows, "No policy.")


def pairs_text(names: Sequence[str]) -> str:
    """Pairs as one string; many as their number."""
    return ", ".join(names) if len(names) <= 4 else f"{len(names)} pairs"


def preview(bought: Mapping[str, Any]) -> None:
    """What a search would do and cost."""
    plan(bought.get("spec") or {})
    looks = f", {bought['look_iterations']:,} of them for looks before a training" if bought.get("look_iterations") else ""
    print(f"about {counted(bought['proposed'], 'candidate')} for {counted(bought['iterations'], 'student iteration')}{looks}")
    rows = [(f"{rung['iterations']:,}", str(rung["candidates"])) for rung in bought["rungs"]]
    listed([("iterations of a rung", "right"), ("candidates", "right")], rows, "")
    if trunks := bought.get("trunk_iterations"):
        print(f"the trunks that these rungs fork from take {trunks:,} more, unless they are kept from before")
    print(f"the confirmation takes {bought['confirmation_iterations']:,} more")
    formulas = ", ".join(f"{knowledge} {count:,}" for knowledge, count in bought["formulas"].items())
    print(f"different formulas: {formulas}")
    if beside := bought.get("evaluated"):
        references = ", ".join(map(readable, beside["references"])) or "none"
        print(f"hand-designed policies among the candidates, measured on the selection images as these are: {references}")
        against = ", ".join(beside["distillers"]) or "no distiller"
        seeds, finalists = beside["seeds"], beside["finalists"]
        one_more = beside["students"] // seeds > finalists + 1 + len(beside["distillers"])
        other = ", and the best of the other hand-designed policies" if one_more else ""
        met = f"{counted(finalists, 'finalist')}, no distillation and {against}{other}"
        print(f"then on the report images, with {counted(seeds, 'new seed')}: {met}")
    for knowledge, why in bought["excluded"].items():
        print(f"{knowledge} is left out: {why}")
    if warm := bought.get("warm_start"):
        earlier = counted(warm["policies"], "policy", "policies")
        print(f"begins with {earlier} of earlier searches; {sum(warm['left_out'].values())} cannot be used")
        for why, count in warm["left_out"].items():
            print(f"  {count}: {why}")
    seconds = bought["seconds"]
    print(f"expected on one device: {seconds / 60:.0f} min" if seconds else "nothing of this pair was measured yet, so no time is expected")
    if clock := bought.get("clock_seconds"):
        print(f"by the clock, with the workers that are there ({bought['workers']}): {clock / 60:.0f} min")
    if disk := bought.get("disk"):
        print(f"on disk about {disk['bytes'] / 1e6:,.0f} MB ({disk['free'] / 1e9:,.1f} GB are free)")


def unit_of(one: Search) -> str:
    """What a search's progress is counted in."""
    return "students confirmed" if one["progress"]["step"] == "confirming" else "student iterations"


def candidates(found: Sequence[Candidate], top: int = 10) -> None:
    """The best measured candidates, and the references among all of them."""
    measured = sorted(
        (one for one in found if one["ap"] is not None), key=lambda one: (-(one["rung"] or 0), -(one["ap"] or 0.0), one["index"])
    )
    rows = [
        (
            str(one["index"]),
            str(one["rung"]),
            ap(one["ap"]),
            ap(one["ap50"]),
            one["island"] or one["stage"],
            one["operator"],
            readable(one["resolved"] or one["formula"]),
        )
        for one in measured[:top]
    ]
    columns = [("#", "right"), ("rung", "right"), ("AP", "right"), ("AP50", "right"), ("island", ""), ("made by", ""), ("policy", "")]
    listed(columns, rows, "No candidate is measured yet.")
    refused = Counter(one["rejected"]["gate"] for one in found if one["rejected"] and one["same_as"] is None)
    doubles = sum(one["same_as"] is not None for one in found)
    if refused or doubles:
        gates = ", ".join(f"{count} by {gate}" for gate, count in sorted(refused.items()))
        print(f"\n{len(found)} proposed; refused by a gate: {gates or 'none'}; {doubles} double{'' if doubles == 1 else 's'} of others")
    if failed := [(one["index"], one["failure"]) for one in found if one["failure"]]:
        reasons = "; ".join(f"{index}: {failure['detail']}" for index, failure in failed[:3])
        print(f"\n{len(failed)} infeasible ({reasons}{'; ...' if len(failed) > 3 else ''})")


def none_passes(what: str) -> str:
    """What a list says that its filters have emptied: there may be others."""
    return f"No {what} passes these options; without them all are listed."


def listed(columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str | Text]], nothing: str) -> None:
    if rows:
        put(table(columns, rows, console().width))
    else:
        print(nothing)


def facts(pairs: Sequence[tuple[str, str | Text]]) -> None:
    """Labels and values, one a line."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in pairs:
        grid.add_row(label, plain(value))
    put(grid)


def labels(one: Search | Distillation) -> list[tuple[str, str]]:
    """What people wrote beside it, and whose request it repeats."""
    found = [("cloned from", one["cloned_from"]), ("tags", ", ".join(one["tags"])), ("notes", one["notes"])]
    return [(label, text) for label, text in found if text]


def waiting(one: Search | Distillation | Job) -> list[tuple[str, str | Text]]:
    """Why something waits, as a fact; none for what does not."""
    return [("waiting", one["waiting"])] if one["waiting"] else []


def recipe_line(spec: Mapping[str, Any]) -> str | None:
    """Which recipe a specification has, and where it is from; None for one that this version does not know."""
    try:
        recipe = Recipe.from_json(spec["recipe"])
    except (KeyError, TypeError, ValueError):
        return None
    words = recipe_words(recipe, spec.get("dataset", {}).get("train", {}).get("count"))
    origin = spec.get("recipe_from")
    if not origin:
        return words
    if {*recipe.to_json()} <= {*origin["given"]}:
        return f"{words}; given whole"
    return f"{words}; from {origin['base']}" + (f", but for your {', '.join(origin['given'])}" if origin["given"] else "")


def recipe_words(recipe: Recipe, images: int | None = None) -> str:
    """Length, images and rate of a recipe. images: of the training, where they are known."""
    ran, _ = recipe.resolved(images or 0)
    length = counted(ran.iterations, "iteration")
    if recipe.epochs is not None:
        length = f"{recipe.epochs:g} epoch{'' if recipe.epochs == 1 else 's'}" + (f" ({length})" if images else "")
    forwards = f" in {recipe.accumulate} forwards" if recipe.accumulate > 1 else ""
    size = f"{recipe.image_size}{f' x {recipe.short_side}' if recipe.short_side else ''} px"
    if recipe.train_short_sides:
        size += f" (shorter sides of {recipe.train_short_sides[0]} to {recipe.train_short_sides[-1]} px in training)"
    learning = f"{recipe.optimizer} at lr {ran.lr:g}, {recipe.schedule}"
    return f"{length} of {counted(recipe.images_per_step, 'image')}{forwards} at {size}, {learning}"


def plan_facts(spec: Mapping[str, Any], told: bool = False) -> list[tuple[str, str | Text]]:
    """The recipe of a specification, and what has to be said of it. told: a result is there, which says that too."""
    line = recipe_line(spec)
    return [*([("recipe", line)] if line else []), *[("note", text) for text in (not told and spec.get("warnings")) or []]]


def plan(spec: Mapping[str, Any]) -> None:
    for label, text in plan_facts(spec):
        print(f"{label}: {text}")


def search(one: Search) -> None:
    best = one["best"]
    at = f" at {best['rung']:,} iterations" if best and best.get("rung") is not None else ""
    facts(
        [
            ("search", f"{one['name']}  {one['id']}"),
            ("state", state(one["state"])),
            *waiting(one),
            *([("priority", str(one["priority"]))] if one["priority"] else []),
            *([("reason", one["reason"])] if one["reason"] else []),
            *([("continues", one["spec"]["continues"])] if one["spec"].get("continues") else []),
            *labels(one),
            ("pair", f"{one['teacher']} teaches {one['student']} on {one['dataset']}"),
            *plan_facts(one["spec"], told=bool(one["result_id"])),
            ("done", f"{one['progress']['done']:,} of {one['progress']['total']:,} {unit_of(one)}"),
            *(
                [("best", f"AP {best['ap']:.1f}{at} on selection images, candidate {best['index']}: {readable(best['formula'])}")]
                if best
                else []
            ),
            *([("result", one["result_id"])] if one["result_id"] else []),
        ]
    )


def distillation(one: Distillation) -> None:
    facts(
        [
            ("distillation", f"{one['name']}  {one['id']}"),
            ("state", state(one["state"])),
            *waiting(one),
            *([("priority", str(one["priority"]))] if one["priority"] else []),
            *([("reason", one["reason"])] if one["reason"] else []),
            ("pair", f"{one['teacher']} teaches {one['student']} on {one['dataset']}"),
            ("policy", readable(one["formula"])),
            *plan_facts(one["spec"], told=bool(one["result_id"])),
            *labels(one),
            *([("result", one["result_id"])] if one["result_id"] else []),
        ]
    )


def result(one: Result) -> None:
    metrics = one["metrics"]
    facts(
        [
            ("result", f"{one['name']}  {one['id']}  ({one['kind']})"),
            ("dataset", one["dataset"]),
            *([("verdict", str(metrics["verdict"]))] if metrics.get("verdict") else []),
            ("policy", readable(one["formula"])),
            ("AP", f"{ap(one['ap'])} ({measured_on(one)})"),
            *([("teacher AP", f"{ap(metrics['teacher']['ap'])} (on the same images)")] if metrics.get("teacher") else []),
            *[("losses", text) for text in loss_lines(one["evidence"].get("curve") or [])],
            *[("warning", text) for text in metrics.get("warnings") or []],
            *audit(one["evidence"].get("summary") or {}),
            *cost(one["evidence"].get("cost") or {}),
            *(weights(one) if one["checkpoint"] else []),
        ]
    )
    if metrics.get("evaluations"):
        print()
        evaluations(metrics["evaluations"], metrics["student"].get("iteration"), one["evidence"].get("seed"))
    if metrics.get("rows"):
        print()
        entrants(metrics)
    if (one["evidence"].get("summary") or {}).get("funnel"):
        gates(one["evidence"]["summary"]["funnel"])


def weights(one: Result) -> list[tuple[str, str]]:
    """Which weights of a training its checkpoint has, and how to get them."""
    iteration, found = one["metrics"].get("student", {}).get("iteration"), one["metrics"].get("evaluations") or []
    command = f"detkds results {one['id']} --checkpoint student.safetensors"
    if iteration is None:
        return [("checkpoint", command)]
    if len(found) < 2:
        return [("student", f"the weights of iteration {iteration:,}, the last"), ("checkpoint", command)]
    best, end = f"the best of {len(found)} by AP on {found[0]['images']:,} selection images", found[-1]["iteration"]
    if iteration != end:
        command += f"\n--last last.safetensors fetches those of iteration {end:,}, the last"
    return [("student", f"the weights of iteration {iteration:,}, {best}"), ("checkpoint", command)]


def evaluations(found: Sequence[Mapping[str, Any]], best: int | None, seed: int | None) -> None:
    """What a student was measured at on its way; of many every so many, and always the best and the last."""
    every = -(-len(found) // MOST_EVALUATIONS)
    masks = "segm" in found[0]
    thinned = f" (every {ordinal(every)} of {len(found)}, and the best; --json has all)" if every > 1 else ""
    print(f"measured on its way, seed {'unknown' if seed is None else seed}, on {found[0]['images']:,} selection images{thinned}")
    rows = [
        (
            Text(f"{one['iteration']:,}", style="bold" if one["iteration"] == best else ""),
            ap(one["ap"]),
            ap(one["ap50"]),
            ap(one["ap75"]),
            *([ap(one["segm"]["ap"])] if masks else []),
            "the best: exported" if one["iteration"] == best else "",
        )
        for place, one in enumerate(found, start=1)
        if (len(found) - place) % every == 0 or one["iteration"] == best
    ]
    headings = ("iteration", "AP", "AP50", "AP75", *(["mask AP"] if masks else []))
    listed([*((heading, "right") for heading in headings), ("", "")], rows, "")


def ordinal(number: int) -> str:
    """`2nd`, `3rd`, `11th`."""
    last = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{last}"


def measured_on(one: Result) -> str:
    """`mean of seeds 1, 2, 3 on 300 report images; 95 % interval 22.6 to 43.1`: what the AP of a result rests on."""
    evidence, interval = one["evidence"], bounds(one["metrics"].get("interval"))
    found = evidence.get("seeds")
    seeds = [evidence["seed"]] if evidence.get("seed") is not None else (found.get("confirmation") or []) if isinstance(found, dict) else []
    images = evidence["images"].get("report") if isinstance(evidence.get("images"), dict) else None
    said = f"{'mean of seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds)) or 'unknown'}"
    said += f" on {'an unknown number of' if images is None else f'{images:,}'} report image{'' if images == 1 else 's'}"
    return said + (f"; 95 % interval {interval}" if interval != "-" else "")


def audit(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How often the gates of a search refused a good candidate, as a fact; none where there is no funnel."""
    # Imported here: the report draws pictures, and every command would wait for its libraries.
    from detkds_core.report import false_rejects

    return [("false-reject rate of the gates", false_rejects(summary["funnel"]))] if summary.get("funnel") else []


def gates(funnel: Mapping[str, Any]) -> None:
    """Each gate of a search with its count, its audit and its cost; nothing of searches from before they were told apart."""
    from detkds_core.report import GATE_HEADINGS, gate_lines  # as in `audit`

    if lines := gate_lines(funnel):
        print()
        columns = [(heading, "right" if place else "") for place, heading in enumerate(GATE_HEADINGS)]
        put(table(columns, [["-" if cell == "–" else cell for cell in line] for line in lines]))


def cost(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the trainings of a result took, `4,260 student iterations (60 of trunks), 7:51`; none where it is not known."""
    if found.get("iterations") is None:
        return []
    trunks = f" ({found['trunk_iterations']:,} of trunks)" if found.get("trunk_iterations") else ""
    return [("cost", f"{counted(found['iterations'], 'student iteration')}{trunks}, {duration(found.get('seconds'))}")]


def entrants(metrics: Mapping[str, Any]) -> None:
    """Whom a search was measured against, the best first: AP with its interval, each against no distillation, and what it is."""
    alone = {one["first"]: one for one in metrics.get("comparisons", ()) if one["second"] == "none"}
    rows = []
    for one in sorted(metrics["rows"], key=lambda one: (one["mean_ap"] is None, -(one["mean_ap"] or 0.0), one["entrant"])):
        gain = alone.get(one["name"])
        chosen = one["entrant"] == metrics["winner"]["entrant"]
        rows.append(
            (
                Text(f"{one['name']} (the result)" if chosen else one["name"], style="bold" if chosen else ""),
                ap(one["mean_ap"]),
                bounds(one["interval"]),
                "-" if gain is None else f"{gain['mean']:+.1f}",
                "-" if gain is None else bounds(gain["interval"]),
                "-" if gain is None or gain["p"] is None else f"{gain['p']:.3f}",
                str(len(one["seeds"])),
                str(one["images"] or "-"),
                readable(one["formula"]),
            )
        )
    columns = [("policy", ""), ("AP", "right"), ("95 % interval", "right"), ("against none", "right"), ("95 % interval", "right")]
    put(table([*columns, ("p (Holm)", "right"), ("seeds", "right"), ("images", "right"), ("formula", "")], rows))


def bounds(interval: Sequence[float | None] | None) -> str:
    """`21.0 to 23.4`; `-` for one seed."""
    if interval is None or interval[0] is None or interval[1] is None:
        return "-"
    return f"{interval[0]:.1f} to {interval[1]:.1f}"


def loss_lines(curve: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a training's losses were at its start and its end, a line each, and the ratio of distillation to task."""
    if not curve:
        return []
    first, last = curve[0], curve[-1]
    terms = [name for name in dict.fromkeys(name for point in curve for name in point) if name.startswith("distill/")]

    def way(begin: float, end: float, digits: int) -> str:
        """From the start to the end; of a run so short that only one point was kept, that."""
        return f"{begin:.{digits}g} to {end:.{digits}g}" if len(curve) > 1 else f"{begin:.{digits}g}"

    lines = [f"{name}: {way(first.get(name, 0.0), last.get(name, 0.0), 4)}" for name in ("task", *terms)]
    if terms:
        ratios = [sum(point.get(name, 0.0) for name in terms) / point["task"] if point["task"] else 0.0 for point in (first, last)]
        lines.append(f"distillation to task: {way(ratios[0], ratios[1], 2)}")
    return lines
