"""`detkds results` and `compare`: what came out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detkds_client import show, show_tables
from detkds_client.options import Json, Limit, Refusal, Url, connected, only_lists


def results(
    result_id: Annotated[str | None, typer.Argument(help="One result; without it, the newest results.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Write its student here: .safetensors, or .pth for MMDetection with a .py beside it.")
    ] = None,
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
    """List results, show one, or take its checkpoint and its report."""
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
            if checkpoint is not None:
                raise Refusal("--checkpoint needs the result's id: detkds results ID --checkpoint student.safetensors")
            if report is not None:
                raise Refusal("--report needs the result's id: detkds results ID --report report.html")
            found = client.results(limit=limit, **asked)
            show.as_json(found) if as_json else show.results(found)
            return
        only_lists(asked)
        one = client.result(result_id)
        if checkpoint is not None:
            if checkpoint.suffix not in (".safetensors", ".pth"):
                raise Refusal(f"{checkpoint} is neither .safetensors nor .pth")
            try:
                client.download_checkpoint(result_id, checkpoint, "pth" if checkpoint.suffix == ".pth" else "safetensors")
                if checkpoint.suffix == ".pth":
                    client.download_checkpoint(result_id, checkpoint.with_suffix(".py"), "config")
            except OSError as error:
                raise Refusal(f"{checkpoint} cannot be written: {error.strerror}") from error
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
        if checkpoint is not None:
            with_it = f", its MMDetection configuration in {checkpoint.with_suffix('.py')}" if checkpoint.suffix == ".pth" else ""
            print(f"The student is in {checkpoint}{with_it}.")


def compare(
    result_ids: Annotated[list[str], typer.Argument(metavar="ID ID ...", help="Results: 2 to 20.")],
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show several results side by side; those that were measured on other images stand apart, with the reason."""
    with connected(url) as client:
        found = client.compare(result_ids)
    show.as_json(found) if as_json else show_tables.comparison(found)
