"""`detkds doctor`: whether this machine, a pair, or a policy on a pair is as it should be."""

from __future__ import annotations

from typing import Annotated

import typer

from detkds_client import doctor as machine
from detkds_client import matchmaker, show, trainable
from detkds_client.options import Refusal, Url
from detkds_core.catalogue import OWN_FAULTS


def doctor(
    pair: Annotated[str | None, typer.Option(help="Examine a pair of the catalogue instead of this machine.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Examine two detectors: this one teaches ...")] = None,
    student: Annotated[str | None, typer.Option(help="... this one.")] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="Can they train with it? A policy's name or formula, `@file.json`, or `search:ID`. Exit code 1: they cannot."),
    ] = None,
    resize: Annotated[bool, typer.Option("--resize", help="Match levels of different strides too.")] = False,
    classes: Annotated[int | None, typer.Option(min=1, help="Of the dataset; else the pair's, else 80.")] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Images a step on one device; else the pair's, else that of the student's configuration, else 8."),
    ] = None,
    url: Url = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check this machine, a pair, or a policy on a pair.

    Of the machine: Python, packages, operations, threads, GPU, folders, disk, database, broker, service. Of a pair: what can pass from
    teacher to student, and why not the rest. With --policy: each part of it, legal or refused with the reason. Nothing is queued, and no
    service is needed but for detectors of one's own and `search:ID`.
    """
    if not (pair or teacher or student):
        if policy or resize or classes or batch:
            raise Refusal("--policy, --resize, --classes and --batch belong to a pair: give --pair, or --teacher and --student")
        findings = machine.examine(url=url)
        show.as_json([finding._asdict() for finding in findings]) if as_json else machine.report(findings)
        if any(finding.level == "fail" for finding in findings):
            raise typer.Exit(1)
        return
    if OWN_FAULTS:
        raise Refusal("\n".join(OWN_FAULTS))
    try:
        asked = matchmaker.question(pair, teacher, student, resize=resize, classes=classes, batch=batch, url=url)
    except matchmaker.UnknownNameError as error:
        raise Refusal(str(error)) from error
    if policy is None:
        answer = matchmaker.examine(asked)
        show.as_json(answer) if as_json else matchmaker.report(asked, answer)
        return
    verdict = trainable.examine(asked, trainable.read_policy(policy, url))
    show.as_json(verdict) if as_json else trainable.report(asked, verdict)
    if not verdict["can_train"]:
        raise typer.Exit(1)
