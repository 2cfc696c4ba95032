"""`detkds results` and `compare`: what came out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detkds_client import show, show_tables
from detkds_client.client import Client, Format
from detkds_client.options import Json, Limit, Refusal, Url, connected, is_filtered, only_lists


def results(
    result_id: Annotated[str | None, typer.Argument(metavar="ID", help="One result; without it, the newest.")] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Write its student here: .safetensors, or .pth for MMDetection with a .py beside it. Measured on its way, the best one."
        ),
    ] = None,
    last: Annotated[Path | None, typer.Option(help="Write the weights of the end of its training here, likewise.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write its report here, one HTML file that stands alone.")] = None,
    name: Annotated[str | None, typer.Option(help="Those whose name contains this.")] = None,
    tag: Annotated[str | None, typer.Option(help="Those of searches and distillations with this tag.")] = None,
    kind: Annotated[str | None, typer.Option(help="Those of searches, or of distillations: search, distill.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Those on this dataset.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Those with this teacher, a detector.")] = None,
    student: Annotated[str | None, typer.Option(help="Those with this student, a detector.")] = None,
    term: Annotated[str | None, typer.Option(help="Those whose policy has this knowledge, transform, distance or distiller.")] = None,
    ap_at_least: Annotated[float | None, typer.Option(help="Those with this AP (percent) or more.")] = None,
    ap_at_most: Annotated[float | None, typer.Option(help="Those with this AP (percent) or less.")] = None,
    sort: Annotated[
        str | None, typer.Option(help="created_at or ap; with - before it from the highest down. Default: -created_at.")
    ] = None,
    limit: Limit = 50,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """List results, or show one.

    Of one, also fetch the student, which needs MMDetection alone, and the report.
    """
    asked: dict[str, str | float | None] = {
        "name": name,
        "tag": tag,
        "kind": kind,
        "dataset": dataset,
        "teacher": teacher,
        "student": student,
        "term": term,
        "ap_at_least": ap_at_least,
        "ap_at_most": ap_at_most,
        "sort": sort,
    }
    with connected(url) as client:
        if result_id is None:
            for option, path, example in (
                ("--checkpoint", checkpoint, "student.safetensors"),
                ("--last", last, "last.safetensors"),
                ("--report", report, "report.html"),
            ):
                if path is not None:
                    raise Refusal(f"{option} needs the result's id: detkds results ID {option} {example}")
            found = client.results(limit=limit, **asked)
            show.as_json(found) if as_json else show.results(found, filtered=is_filtered(asked))
            return
        only_lists(asked)
        if checkpoint is not None and checkpoint == last:
            raise Refusal(f"--checkpoint and --last are both {last}; give two names")
        for path in (checkpoint, last):
            if path is not None and path.suffix not in (".safetensors", ".pth"):
                raise Refusal(f"{path} is neither .safetensors nor .pth")
        one = client.result(result_id)
        if checkpoint is not None:
            fetch(client, result_id, checkpoint, last=False)
        if last is not None:
            fetch(client, result_id, last, last=True)
        if report is not None:
            page = client.report(result_id)
            try:
                report.write_text(page, encoding="utf-8")
            except OSError as error:
                raise Refusal(f"{report} cannot be written: {error.strerror}") from error
        if as_json:
            show.as_json(one)
            return
        show.result(one)
        if report is not None:
            print(f"The report is in {report}.")
        for what, path in (("student is", checkpoint), ("weights of the end of its training are", last)):
            if path is not None:
                with_it = f", its MMDetection configuration in {path.with_suffix('.py')}" if path.suffix == ".pth" else ""
                print(f"The {what} in {path}{with_it}.")


def fetch(client: Client, result_id: str, path: Path, *, last: bool) -> None:
    """Write the best weights or the last ones to `path`; with a .pth goes its configuration, in a .py of the same name. Raises Refusal."""
    formats: tuple[Format, Format] = ("last", "last_pth") if last else ("safetensors", "pth")
    try:
        client.download_checkpoint(result_id, path, formats[path.suffix == ".pth"])
        if path.suffix == ".pth":
            client.download_checkpoint(result_id, path.with_suffix(".py"), "config")
    except OSError as error:
        raise Refusal(f"{path} cannot be written: {error.strerror}") from error


def compare(
    result_ids: Annotated[list[str], typer.Argument(metavar="ID", help="Results: 2 to 20.")],
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show several results side by side. Those that were measured on other images stand apart, with the reason."""
    if len(result_ids) < 2:
        raise Refusal("one result alone; give 2 to 20: detkds compare ID ID")
    with connected(url) as client:
        found = client.compare(result_ids)
    show.as_json(found) if as_json else show_tables.comparison(found)
