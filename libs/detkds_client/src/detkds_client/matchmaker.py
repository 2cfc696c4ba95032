"""`detkds doctor --pair`: what a teacher can pass to a student, and why not the rest. Needs neither weights nor torch.

And no service, unless a detector is not built in: then the service that knows it is asked, where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, NamedTuple

from rich.text import Text

from detkds_client.client import Client
from detkds_client.connection import ProblemError, ServiceUnreachable
from detkds_client.show import console, put, table
from detkds_core.catalogue import (
    BUILT_IN,
    DETECTORS,
    PAIRS,
    DetectorEntry,
    Exchange,
    Inputs,
    Pair,
    Recipe,
    exchange,
    lacking_regions,
    pair_facts,
)
from detkds_core.catalogue.entry import FAMILIES
from detkds_core.names import meant
from detkds_core.policy import SearchSpace, named_policies
from detkds_core.policy.named import cannot_run
from detkds_core.policy.vocabulary import BREADTHS, KNOWLEDGE

CLASSES = {"digits": 10, "trees": 1, "coco": 80}  # of the catalogue's datasets
DEFAULT_CLASSES, DEFAULT_BATCH = 80, 8
SERVICE_SECONDS = 10.0
FACTS = frozenset(one.name for one in fields(DetectorEntry)) - {"source", "width", "config"}  # that a service tells of a detector
LATER = frozenset({"overlaps", "training"})  # of these, what services of before do not tell
SIGNALS: Mapping[str, str] = {
    "edges": "edge distributions (kl_edges)",
    "points": "point sets (points)",
    "assigned": "cells that the student's loss takes for objects",
    "valuable": "cells that nearly were (LD)",
    "towers": "features inside the dense heads (crosskd)",
}
SCORES: Mapping[str, str] = {
    "classes": "a score a class",
    "objectness": "one objectness",
    "queries": "from queries, not at cells",
}


OWN_WAY = "the teacher sees the same\npixels its own way"


class UnknownNameError(Exception):
    """A name that the catalogue does not have, and what it may have been meant for; or that only a service of another version has."""


class Question(NamedTuple):
    """Two detectors and how they would be trained. images: of a batch on one device; pair: the catalogue's, when it was named."""

    teacher: DetectorEntry
    student: DetectorEntry
    resize: bool
    classes: int
    images: int
    pair: Pair | None


def question(
    pair: str | None,
    teacher: str | None,
    student: str | None,
    *,
    resize: bool = False,
    classes: int | None = None,
    batch: int | None = None,
    url: str | None = None,
) -> Question:
    """What was asked for by name; a detector beside a pair takes the place of the pair's.

    url: of the service that knows the detectors that are not built in; None: looked for. Raises UnknownNameError, and where `url` is given
    what a request raises.
    """
    chosen = _named("pair", pair, PAIRS) if pair is not None else None
    teacher, student = teacher or (chosen.teacher if chosen else None), student or (chosen.student if chosen else None)
    if teacher is None or student is None:
        raise UnknownNameError(f"--{'teacher' if teacher is None else 'student'} is missing: give both, or --pair")
    names = [text.partition(":")[0] for text in (teacher, student)]
    known, why_not = _detectors(names, url)
    teaching, learning = (_named("detector", name, known, why_not) for name in names)
    recipe = chosen.full if chosen else learning.training
    return Question(
        teaching,
        learning,
        resize,
        classes or (CLASSES.get(chosen.dataset) if chosen else None) or DEFAULT_CLASSES,
        batch or (recipe.batch // recipe.devices if recipe else DEFAULT_BATCH),
        chosen,
    )


def _detectors(names: Sequence[str], url: str | None) -> tuple[Mapping[str, DetectorEntry], str]:
    """The detectors that this machine knows and, where a name is not built in, those of the service; and why no service was asked.

    Raises UnknownNameError where the service tells of a detector of these names what this version cannot read.
    """
    if all(name in BUILT_IN for name in names):
        return DETECTORS, ""
    try:
        with Client(url, timeout=SERVICE_SECONDS, retries=0) as client:
            listed = client.detectors()["detectors"]
    except (ServiceUnreachable, ProblemError) as error:
        if url is not None:
            raise
        return DETECTORS, str(error)
    known = dict(DETECTORS)
    for one in listed:
        if one["own"]:
            try:
                known[one["name"]] = entry_of(one)
            except (TypeError, ValueError) as error:
                if one["name"] in names:
                    other = f"{one['name']!r} is a detector of the service, which is of another version of DetKDS than this command"
                    raise UnknownNameError(f"{other}: {error}") from error
    return known, ""


def entry_of(listed: Mapping[str, Any]) -> DetectorEntry:
    """A detector as `GET /detectors` lists it; it lacks the configuration that it is built from.

    Services of before took every detector with anchor boxes for one that assigns by overlap, and knew no recipe of it.
    Raises TypeError or ValueError for one that another version lists, in which this one cannot read it.
    """

    def plain(facts: Mapping[str, Any]) -> dict[str, Any]:
        return {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}

    if missing := FACTS - LATER - listed.keys():
        raise ValueError(f"{', '.join(sorted(missing))}: not told")
    if listed["family"] not in FAMILIES:
        raise ValueError(f"family: {listed['family']!r} is not known here")
    facts = {"overlaps": bool(listed["anchor_scales"]), **plain({name: listed[name] for name in FACTS & listed.keys()})}
    training = listed.get("training")
    facts |= {"inputs": Inputs(**plain(listed["inputs"])), "training": None if training is None else Recipe.from_json(training)}
    return DetectorEntry(**facts)


def _named(what: str, name: str, known: Mapping[str, Any], why_not: str = "") -> Any:
    """What is called so. why_not: why there may be others, which nobody was asked about."""
    if name in known:
        return known[name]
    others = f"\nA {what} of your own is known to the service, which was not asked: {why_not}" if why_not else ""
    raise UnknownNameError(f"{name!r} is not a {what} of the catalogue; {meant(name, known)}{others}")


def examine(asked: Question) -> dict[str, Any]:
    """The whole answer as plain JSON values."""
    teacher, student = asked.teacher, asked.student
    offer = exchange(teacher, student, asked.resize)
    facts = pair_facts(offer, student, asked.classes, asked.images)
    spaces = {breadth: SearchSpace.of(facts, knowledge=offer.knowledge or KNOWLEDGE, breadth=breadth) for breadth in BREADTHS}
    return {
        "pair": asked.pair.name if asked.pair else None,
        "own_policies": list(asked.pair.policies) if asked.pair else [],
        "teacher": _facts(teacher),
        "student": _facts(student),
        "classes": asked.classes,
        "images_per_batch": asked.images,
        "resize": asked.resize,
        "levels": [{"teacher": teacher.strides[t], "student": student.strides[s]} for t, s in offer.levels],
        "left_over": {
            "teacher": [stride for place, stride in enumerate(teacher.strides) if place not in {t for t, _ in offer.levels}],
            "student": [stride for place, stride in enumerate(student.strides) if place not in {s for _, s in offer.levels}],
        },
        "adapters": len(offer.levels) if teacher.channels != student.channels else 0,
        "knowledge": [
            {
                "name": kind,
                "excluded": offer.excluded.get(kind),
                "formulas": {breadth: spaces[breadth].size(kind) if kind in offer.knowledge else 0 for breadth in BREADTHS},
                "regions": list(offer.regions.get(kind, ())),
                "lacking": lacking_regions(kind, offer),
            }
            for kind in KNOWLEDGE
        ],
        "signals": dict(_signals(offer)),
        "policies": [
            {"name": name, "cannot_run": [f"{path}: {why}" for path, why in found]}
            for name, one in named_policies().items()
            for found in [cannot_run(one.policy, offer, facts, (teacher.family, student.family))]
        ],
    }


def _facts(entry: DetectorEntry) -> dict[str, Any]:
    return {
        **{name: getattr(entry, name) for name in ("name", "title", "family", "stages")},
        **{name: getattr(entry, name) for name in ("channels", "scores", "anchors", "masks")},
        "strides": list(entry.strides),
        "edge_bins": entry.bins,
        "inputs": {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(entry.inputs).items()},
    }


def _signals(offer: Exchange) -> Iterator[tuple[str, str | None]]:
    """Each signal with the reason why the pair lacks it, None where it has it."""
    no_levels = None if offer.levels else next(iter(offer.excluded.values()))
    for name in ("edges", "points", "assigned", "valuable", "towers"):
        yield name, no_levels or offer.lacking.get(name)


def report(asked: Question, found: Mapping[str, Any]) -> None:
    """The answer for people."""
    heading(asked)
    _levels(found)
    _heads(found)
    _knowledge(found)
    _policies(found)


def heading(asked: Question) -> None:
    """Who teaches whom, and how they would be trained."""
    print(f"{asked.teacher.title} teaches {asked.student.title}")
    print(f"  {asked.classes} class{'es' * (asked.classes > 1)}, {asked.images} image{'s' * (asked.images > 1)} a batch on a device")


def _section(title: str, columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str | Text]]) -> None:
    console().print(Text(f"\n{title}", style="bold"))
    shown = table([("  ", ""), *columns], [("", *row) for row in rows], console().width)
    shown.show_header = any(heading for heading, _ in columns)
    put(shown)


def _levels(found: Mapping[str, Any]) -> None:
    rows: list[tuple[str | Text, ...]] = []
    for level in found["levels"]:
        theirs, ours = level["teacher"], level["student"]
        note = _good("same cells") if theirs == ours else _fair("the teacher's maps take the student's size")
        rows.append((f"{theirs}", f"{ours}", note))
    rows += [(f"{stride}", "-", _none("the teacher alone")) for stride in found["left_over"]["teacher"]]
    rows += [("-", f"{stride}", _none("the student alone")) for stride in found["left_over"]["student"]]
    rows.sort(key=lambda row: int(str(row[1] if str(row[1]) != "-" else row[0])))
    _section("Pyramid levels, by pixels a cell", [("teacher", "right"), ("student", "right"), ("", "")], rows)


def _heads(found: Mapping[str, Any]) -> None:
    teacher, student = found["teacher"], found["student"]

    def dense(one: Mapping[str, Any]) -> str:
        return SCORES[one["scores"]] if one["scores"] == "queries" else f"{SCORES[one['scores']]}, {one['anchors']} a cell"

    adapters, same_inputs = found["adapters"], teacher["inputs"] == student["inputs"]
    note = _fair(f"{adapters} adapters (1x1)") if adapters else _good("no adapters")
    rows: list[tuple[str | Text, ...]] = [
        ("family", teacher["family"], student["family"], ""),
        ("channels", str(teacher["channels"]), str(student["channels"]), note if found["levels"] else ""),
        ("dense head scores", dense(teacher), dense(student), ""),
        ("bins an edge", str(teacher["edge_bins"] or "-"), str(student["edge_bins"] or "-"), ""),
        ("proposals, masks", _second(teacher), _second(student), ""),
        ("images", _inputs(teacher["inputs"]), _inputs(student["inputs"]), _good("the same") if same_inputs else _fair(OWN_WAY)),
    ]
    _section("Detectors", [("", ""), ("teacher", ""), ("student", ""), ("", "")], rows)


def _second(one: Mapping[str, Any]) -> str:
    return ("proposals and masks" if one["masks"] else "proposals") if one["stages"] == 2 else "-"


def _inputs(one: Mapping[str, Any]) -> str:
    """How a detector wants its images: colours in order, what is subtracted and divided by, what sides are multiples of."""
    mean, std = (" ".join(f"{value:g}" for value in one[name]) for name in ("mean", "std"))
    pixels = f"less {mean}\nover {std}" if any(one["mean"]) else "pixels as they are"
    return f"{'RGB' if one['rgb'] else 'BGR'} {pixels}\nsides of {one['pad']}"


def _knowledge(found: Mapping[str, Any]) -> None:
    rows: list[tuple[str | Text, ...]] = []
    for one in found["knowledge"]:
        sizes = [f"{one['formulas'][breadth]:,}" if one["excluded"] is None else "-" for breadth in BREADTHS]
        rows.append((one["name"], *sizes, _bad(one["excluded"]) if one["excluded"] else _good(", ".join(one["regions"]))))
    headings = [(f"{breadth} space", "right") for breadth in BREADTHS]
    _section("Knowledge: formulas to search, and where it can be looked for", [("", ""), *headings, ("regions", "")], rows)
    refused: dict[str, list[str]] = {}
    for one in found["knowledge"]:
        for region, why in one["lacking"].items():
            refused.setdefault(why, []).append(f"{one['name']} at {region}")
    for name, why in found["signals"].items():
        if why is not None:
            refused.setdefault(why, []).append(SIGNALS[name])
    if refused:
        _section("Not for this pair", [("", ""), ("because", "")], [("\n".join(what), _none(why)) for why, what in refused.items()])


def _policies(found: Mapping[str, Any]) -> None:
    runs = [one["name"] for one in found["policies"] if not one["cannot_run"]]
    own = [name for name in found["own_policies"] if name in runs]
    rows: list[tuple[str | Text, ...]] = [(_good(f"{', '.join(own)}: published for this pair"),)] if own else []
    others = ", ".join(name for name in runs if name not in own)
    _section("Named policies that this pair can run", [("", "")], [*rows, (_good(others or "-"),)])
    refused: dict[str, list[str]] = {}
    for one in found["policies"]:
        if one["cannot_run"]:
            first, *rest = (fault.partition(": ")[2] for fault in one["cannot_run"])
            more = f" (and {len(rest)} more reason{'s' * (len(rest) > 1)}, see --json)" if rest else ""
            refused.setdefault(first + more, []).append(one["name"])
    if refused:
        named = [(_bad("\n".join(names)), _none(why)) for why, names in refused.items()]
        _section("... and those that it cannot", [("", ""), ("because", "")], named)


def _good(text: str) -> Text:
    return Text(text, style="green")


def _fair(text: str) -> Text:
    return Text(text, style="yellow")


def _bad(text: str) -> Text:
    return Text(text, style="red")


def _none(text: str) -> Text:
    return Text(text, style="dim")
