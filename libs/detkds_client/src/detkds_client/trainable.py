"""`detkds doctor --pair NAME --policy FORMULA`: whether a pair can train with a policy, part by part. Nothing is queued."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.text import Text

from detkds_client import matchmaker, show
from detkds_client.client import Client
from detkds_client.matchmaker import Question
from detkds_client.options import Refusal
from detkds_client.spelling import policy_of
from detkds_core.catalogue import exchange, pair_facts
from detkds_core.names import meant
from detkds_core.policy import Policy, PolicyError, canonical, check, formula, from_json, named_policies, readable, to_json
from detkds_core.policy.distillers import DISTILLERS, learns_first
from detkds_core.policy.formula import read_formula
from detkds_core.policy.named import cannot_run, name_of
from detkds_core.policy.signals import needs


def read_policy(text: str, url: str | None = None) -> Policy:
    """The policy of a name, a formula, `@file.json`, or `search:ID`, for which the service is asked; of a formula also an illegal one.

    Raises Refusal for what cannot be read.
    """
    wanted = policy_of(text)
    if isinstance(wanted, dict) and "search" in wanted:
        wanted = _winner(wanted["search"], url)
    named = named_policies()
    if isinstance(wanted, str) and wanted in named:
        return named[wanted].policy
    if isinstance(wanted, str) and wanted.isidentifier() and wanted not in DISTILLERS:
        raise Refusal(f"--policy: {wanted!r} is not a named policy; {meant(wanted, named)}")
    try:
        return read_formula(wanted) if isinstance(wanted, str) else from_json(wanted)
    except PolicyError as error:
        raise Refusal(
            "\n".join(f"--policy: {path.removeprefix('policy').lstrip('.')}: {message}" for path, message in error.errors)
        ) from error


def _winner(search_id: str, url: str | None) -> dict[str, Any]:
    with Client(url) as client:
        search = client.get_search(search_id)
        if search["result_id"] is None:
            raise Refusal(f"--policy: search {search_id} is {search['state']}, and has no winner")
        return client.result_policy(search["result_id"])["policy"]


def examine(asked: Question, policy: Policy) -> dict[str, Any]:
    """The whole answer as plain JSON values. canonical, policy, signals: null where a part is illegal on any pair."""
    legal, parts = not check(policy), list(_parts(asked, policy))
    return {
        "pair": asked.pair.name if asked.pair else None,
        "teacher": asked.teacher.name,
        "student": asked.student.name,
        "classes": asked.classes,
        "images_per_batch": asked.images,
        "resize": asked.resize,
        "can_train": not any(part["faults"] for part in parts),
        "formula": formula(policy),
        "name": name_of(policy) if legal else None,
        "canonical": formula(canonical(policy)) if legal else None,
        "policy": to_json(canonical(policy)) if legal else None,
        "signals": sorted(needs(policy)) if legal else None,
        "parts": parts,
        "notes": list(_notes(asked, policy)) if legal else [],
    }


def _parts(asked: Question, policy: Policy) -> Iterator[dict[str, Any]]:
    """Terms, then distillers: what each is computed from, and what is wrong with it on any pair, else on this one."""
    offer = exchange(asked.teacher, asked.student, asked.resize)
    facts = pair_facts(offer, asked.student, asked.classes, asked.images)
    families = (asked.teacher.family, asked.student.family)
    wrong = check(policy)
    alone = [("terms", place, Policy((term,))) for place, term in enumerate(policy.terms)]
    alone += [("distillers", place, Policy((), (one,))) for place, one in enumerate(policy.distillers)]
    for kind, place, part in alone:
        path = f"policy.{kind}[{place}]"
        illegal = [(where.removeprefix(path), why) for where, why in wrong if where.startswith(f"{path}.")]
        faults = illegal or [(where.removeprefix(f"policy.{kind}[0]"), why) for where, why in cannot_run(part, offer, facts, families)]
        yield {
            "path": path.removeprefix("policy."),
            "formula": formula(part),
            "signals": sorted(needs(part)) if not illegal else None,
            "faults": [{"field": where.removeprefix("."), "message": why} for where, why in faults],
        }


def _notes(asked: Question, policy: Policy) -> Iterator[str]:
    """What the dataset decides, which is not known here."""
    for one in policy.distillers:
        if learns_first(one) and asked.teacher.masks:
            yield f"{one.name} first learns with the teacher, which learns masks too: the dataset must have segmentations"


def report(asked: Question, found: Mapping[str, Any]) -> None:
    """The answer for people."""
    matchmaker.heading(asked)
    print()
    rows = [(part["path"], readable(part["formula"]), ", ".join(part["signals"] or "-"), _verdict(part)) for part in found["parts"]]
    columns = [("part", ""), ("formula", ""), ("needs", "wide"), ("on this pair", "")]
    show.listed(columns, rows, "No part: the student trains without a teacher.")
    print()
    refused = sum(bool(part["faults"]) for part in found["parts"])
    no = f"no: {refused} of {len(rows)} part{'s' * (len(rows) > 1)} {'is' if refused == 1 else 'are'} refused"
    show.facts(
        [
            *([("name", found["name"])] if found["name"] else []),
            *([("canonical form", found["canonical"]), ("signals", ", ".join(found["signals"]) or "none")] if found["canonical"] else []),
            *(("note", note) for note in found["notes"]),
            ("can train", Text("yes", style="green") if found["can_train"] else Text(no, style="red")),
        ]
    )


def _verdict(part: Mapping[str, Any]) -> Text:
    if not part["faults"]:
        return Text("legal", style="green")
    told = (f"{one['field']}: {one['message']}" if one["field"] else one["message"] for one in part["faults"])
    return Text("\n".join(told), style="red")
