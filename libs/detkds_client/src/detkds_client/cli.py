"""The `detkds` command: a client of the service, the service itself, and a doctor for the machine."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from detkds_client import show
from detkds_client.client import FINAL_STATES, Client, ProblemError, ServiceUnreachable, given
from detkds_client.key_commands import keys_app
from detkds_client.options import (
    DatasetName,
    Inherit,
    Json,
    Name,
    Pair,
    RecipeFields,
    Refusal,
    Resize,
    Student,
    Teacher,
    Url,
    Wait,
    connected,
)
from detkds_client.types import DetectorChoice

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
datasets_app = typer.Typer(invoke_without_command=True, no_args_is_help=False)
app.add_typer(datasets_app, name="datasets", help="List datasets; `detkds datasets add` registers one of yours.")
app.add_typer(keys_app, name="keys", help="List API keys; `detkds keys create` makes one, `detkds keys revoke` ends one.")


@app.command()
def search(
    pair: Pair = None,
    dataset: DatasetName = None,
    teacher: Teacher = None,
    student: Student = None,
    candidates: Annotated[int | None, typer.Option(help="How many policies to propose at most. Default: 48.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Budget in student iterations.")] = None,
    hours: Annotated[float | None, typer.Option(help="Budget in hours of one device, by what an iteration took before.")] = None,
    wall_clock_hours: Annotated[
        float | None, typer.Option(help="Budget in hours by the clock, confirmation included, with the workers that are there.")
    ] = None,
    algorithm: Annotated[
        str, typer.Option(help="detkds; for comparison: random, random_halving, evolution, genetic, tpe, nsga2.")
    ] = "detkds",
    weights: Annotated[str, typer.Option(help="balanced: by the ratio of gradients; published: DetKDS' own numbers.")] = "balanced",
    mode: Annotated[str, typer.Option(help="strict: the same policies every time; logged: never waits for a slow job.")] = "strict",
    preview: Annotated[bool, typer.Option("--preview", help="Only say what the search would do and cost.")] = False,
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = 0,
    knowledge: Annotated[list[str] | None, typer.Option(help="Search only these kinds of knowledge; repeatable.")] = None,
    space: Annotated[str, typer.Option(help="published: the names that DetKDS can reach; full: all that the language has.")] = "published",
    reference: Annotated[list[str] | None, typer.Option(help="Named policies measured beside; repeatable. Default: none, pkd.")] = None,
    rungs: Annotated[str | None, typer.Option(help="Iterations of the short trainings, comma separated, rising.")] = None,
    group: Annotated[int | None, typer.Option(help="Candidates that are trained together.")] = None,
    parallelism: Annotated[int | None, typer.Option(help="Jobs that may be under way at once.")] = None,
    finalists: Annotated[int | None, typer.Option(help="Candidates that are confirmed.")] = None,
    confirm_seeds: Annotated[int | None, typer.Option(help="Fresh seeds of the confirmation.")] = None,
    confirm_iterations: Annotated[int | None, typer.Option(help="Its iterations; default: those of the recipe.")] = None,
    distillers: Annotated[
        str | None, typer.Option(help="Hand-designed policies to compare with, comma separated; all: every one that suits the pair.")
    ] = None,
    warm_start: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Begin with the best policies of an earlier search; repeatable.")
    ] = None,
    recipe: RecipeFields = None,
    inherit: Inherit = None,
    resize: Resize = False,
    name: Name = None,
    wait: Wait = True,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Search the policy that suits a teacher and a student on your data."""
    if candidates is None and iterations is None and hours is None and wall_clock_hours is None:
        candidates = 48
    confirmation = given(finalists=finalists, seeds=confirm_seeds, iterations=confirm_iterations, distillers=distillers_of(distillers))
    with connected(url) as client:
        wanted: dict[str, Any] = {
            "pair": pair,
            "dataset": dataset,
            "teacher": teacher_choice(teacher),
            "student": choice(student),
            "candidates": candidates,
            "iterations": iterations,
            "hours": hours,
            "wall_clock_hours": wall_clock_hours,
            "algorithm": algorithm,
            "weights": weights,
            "mode": mode,
            "seed": seed,
            "knowledge": knowledge,
            "space": space,
            "references": reference,
            "rungs": numbers("--rungs", rungs),
            "group": group,
            "parallelism": parallelism,
            "confirmation": confirmation or None,
            "warm_start": warm_start,
            "recipe": fields(recipe),
            "inherit": inherit,
            "resize": resize or None,
            "name": name,
        }
        if preview:
            bought = client.preview_search(**wanted)
            show.as_json(bought) if as_json else show.preview(bought)
            return
        started = client.search(**wanted)
        if not wait:
            show.as_json(started) if as_json else show.search(started)
            return
        follow(client, started["id"], as_json)


@app.command()
def extend(
    search_id: Annotated[str, typer.Argument(metavar="ID", help="A search that has SUCCEEDED.")],
    iterations: Annotated[int | None, typer.Option(help="Further student iterations.")] = None,
    candidates: Annotated[int | None, typer.Option(help="Further policies at most.")] = None,
    hours: Annotated[float | None, typer.Option(help="Further hours of one device, by what an iteration took before.")] = None,
    name: Name = None,
    wait: Wait = True,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Go on where a search ended, as a new one: nothing is measured again, and the old result stays."""
    if iterations is None and candidates is None and hours is None:
        raise Refusal("how much more? Give one of --iterations, --candidates and --hours")
    with connected(url) as client:
        started = client.extend_search(search_id, iterations=iterations, candidates=candidates, hours=hours, name=name)
        if not wait:
            show.as_json(started) if as_json else show.search(started)
            return
        follow(client, started["id"], as_json)


@app.command()
def distill(
    policy: Annotated[str, typer.Option(help="A policy's name or formula, `@file.json`, or `search:ID` for a search's winner.")],
    pair: Pair = None,
    dataset: DatasetName = None,
    teacher: Teacher = None,
    student: Student = None,
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = 0,
    recipe: RecipeFields = None,
    inherit: Inherit = None,
    resize: Resize = False,
    name: Name = None,
    wait: Wait = True,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Train the student under a policy; leaves a plain MMDetection checkpoint."""
    with connected(url) as client:
        started = client.distill(
            policy=policy_of(policy),
            pair=pair,
            dataset=dataset,
            teacher=teacher_choice(teacher),
            student=choice(student),
            seed=seed,
            recipe=fields(recipe),
            inherit=inherit,
            resize=resize or None,
            name=name,
        )
        if not wait:
            show.as_json(started) if as_json else show.distillation(started)
            return
        follow(client, started["id"], as_json)


@app.command()
def searches(
    search_id: Annotated[str | None, typer.Argument(help="One search, with its best candidates; without it, the newest searches.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """List searches, or show one with its best candidates."""
    with connected(url) as client:
        if search_id is None:
            found = client.searches()
            show.as_json(found) if as_json else show.searches(found)
            return
        one, measured = client.get_search(search_id), client.candidates(search_id)
        if as_json:
            show.as_json({**one, "candidates": measured})
            return
        show.search(one)
        print()
        show.candidates(measured)


@app.command()
def distillations(url: Url = None, as_json: Json = False) -> None:
    """List distillations."""
    with connected(url) as client:
        found = client.distillations()
    show.as_json(found) if as_json else show.distillations(found)


@app.command()
def watch(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="A search or a distillation.")], url: Url = None, as_json: Json = False
) -> None:
    """Follow a search or a distillation until it ends."""
    with connected(url) as client:
        follow(client, job_id, as_json)


@app.command()
def pause(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="A search or a distillation.")], url: Url = None, as_json: Json = False
) -> None:
    """Hold a search or a distillation: its trainers end within seconds and give their devices back. `detkds resume` lets it go on."""
    changed(job_id, "pause", url, as_json)


@app.command()
def resume(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="A search or a distillation.")], url: Url = None, as_json: Json = False
) -> None:
    """Let a paused search or distillation go on where it was."""
    changed(job_id, "resume", url, as_json)


@app.command()
def cancel(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="A search or a distillation.")], url: Url = None, as_json: Json = False
) -> None:
    """Stop a search or a distillation; its trainer ends within seconds, what is measured stays."""
    changed(job_id, "cancel", url, as_json)


@app.command()
def results(
    result_id: Annotated[str | None, typer.Argument(help="One result; without it, the newest results.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Write its student here: .safetensors, or .pth for MMDetection with a .py beside it.")
    ] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """List results, show one, or take its checkpoint."""
    with connected(url) as client:
        if result_id is None:
            if checkpoint is not None:
                raise Refusal("--checkpoint needs the result's id: detkds results ID --checkpoint student.safetensors")
            found = client.results()
            show.as_json(found) if as_json else show.results(found)
            return
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
        if as_json:
            show.as_json(one)
            return
        show.result(one)
        if checkpoint is not None:
            with_it = f", its MMDetection configuration in {checkpoint.with_suffix('.py')}" if checkpoint.suffix == ".pth" else ""
            print(f"The student is in {checkpoint}{with_it}.")


@datasets_app.callback()
def datasets(context: typer.Context, url: Url = None, as_json: Json = False) -> None:
    """List datasets."""
    if context.invoked_subcommand is None:
        with connected(url) as client:
            found = client.datasets()
        show.as_json(found) if as_json else show.datasets(found)


@datasets_app.command("add")
def add_dataset(
    name: Annotated[str, typer.Argument(help="What searches will call it.")],
    train_annotations: Annotated[str, typer.Option(help="COCO JSON file on the service's machine, below DETKDS_DATA_ROOTS.")],
    train_images: Annotated[str, typer.Option(help="Folder of its images.")],
    val_annotations: Annotated[str, typer.Option(help="The same for validation.")],
    val_images: Annotated[str, typer.Option(help="The same for validation.")],
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Check a COCO-format dataset and register it."""
    with connected(url) as client:
        added = client.register_dataset(
            name,
            train_annotations=train_annotations,
            train_images=train_images,
            val_annotations=val_annotations,
            val_images=val_images,
        )
    show.as_json(added) if as_json else show.datasets([added])


@app.command()
def policies(url: Url = None, as_json: Json = False) -> None:
    """List the named policies: no distillation, hand-designed distillers, published searches."""
    with connected(url) as client:
        found = client.policies()
    show.as_json(found) if as_json else show.policies(found)


@app.command()
def census(
    images: Annotated[int, typer.Option(min=1, help="Images of a batch on one device.")] = 8,
    knowledge: Annotated[list[str] | None, typer.Option(help="Count only these kinds of knowledge; repeatable.")] = None,
    numerical: Annotated[
        bool, typer.Option("--numerical", help="Also compute every formula on toy tensors (needs torch, minutes).")
    ] = False,
) -> None:
    """How many formulas the search space has, how many are legal and different, and what refuses the others. Needs no service."""
    from detkds_client.census import CensusError, numbers, report

    try:
        report(images, tuple(knowledge or ()))
        if numerical:
            numbers(tuple(knowledge or ()))
    except CensusError as error:
        raise Refusal(str(error)) from error


@app.command()
def pairs(url: Url = None, as_json: Json = False) -> None:
    """List the pairs and detectors of the catalogue."""
    with connected(url) as client:
        catalogue = client.detectors()
    if as_json:
        show.as_json(catalogue)
        return
    rows = [(one["name"], one["dataset"], "yes" if one["ready"] else "no", one["title"]) for one in catalogue["pairs"]]
    show.listed([("pair", ""), ("dataset", ""), ("teacher ships", ""), ("what it is", "")], rows, "No pair.")
    print()
    show.listed([("detector", ""), ("what it is", "")], [(one["name"], one["title"]) for one in catalogue["detectors"]], "No detector.")


@app.command()
def serve(
    home: Annotated[Path | None, typer.Option(help="Folder of everything that is remembered; else DETKDS_HOME, else ~/.detkds.")] = None,
    host: Annotated[str, typer.Option(envvar="DETKDS_HOST", help="Beyond loopback only with DETKDS_API_KEY.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="DETKDS_PORT", help="0 takes a free one.", min=0, max=65535)] = 8350,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Jobs trained at once, each by a trainer of DETKDS_THREADS threads.")] = 1,
) -> None:
    """Run the service on this machine: api, evolver and workers, until Ctrl-C."""
    from detkds_client.serve import ServeError
    from detkds_client.serve import serve as run

    try:
        run(home or Path(os.environ.get("DETKDS_HOME", "~/.detkds")), host, port, workers=workers)
    except ServeError as error:
        raise Refusal(str(error)) from error


@app.command()
def doctor(
    pair: Annotated[str | None, typer.Option(help="Examine a pair of the catalogue instead of this machine.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Examine two detectors: this one teaches ...")] = None,
    student: Annotated[str | None, typer.Option(help="... this one.")] = None,
    resize: Annotated[bool, typer.Option("--resize", help="Match levels of different strides too.")] = False,
    classes: Annotated[int | None, typer.Option(min=1, help="Of the dataset; else the pair's, else 80.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images a step on one device; else the pair's, else 8.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check this machine: Python, packages, operations, threads, GPU, disk, database, broker. Or a pair: what can pass, and why not."""
    if pair or teacher or student:
        from detkds_client import matchmaker

        try:
            asked = matchmaker.question(pair, teacher, student, resize=resize, classes=classes, batch=batch)
        except matchmaker.UnknownNameError as error:
            raise Refusal(str(error)) from error
        answer = matchmaker.examine(asked)
        show.as_json(answer) if as_json else matchmaker.report(asked, answer)
        return
    if resize or classes or batch:
        raise Refusal("--resize, --classes and --batch belong to a pair: give --pair, or --teacher and --student")
    from detkds_client.doctor import examine, report

    findings = examine()
    show.as_json([finding._asdict() for finding in findings]) if as_json else report(findings)
    if any(finding.level == "fail" for finding in findings):
        raise typer.Exit(1)


@app.command()
def demo(
    dataset: Annotated[str, typer.Option(help="digits, or trees.")] = "digits",
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = 0,
    train_teacher: Annotated[
        bool, typer.Option("--train-teacher", help="Train the teacher anew instead of taking the one that ships.")
    ] = False,
) -> None:
    """The whole way once on real images: search, distil, and show what came out."""
    from detkds_client import demo as story

    story.run(dataset=dataset, seed=seed, train_teacher=train_teacher)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A PyTorch checkpoint (.pth) of a detector.")],
    target: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    classes: Annotated[str | None, typer.Option(help="Class names, comma separated, when the checkpoint does not name them.")] = None,
) -> None:
    """Make a teacher's checkpoint ready for the service: tensors only, with its class names in the header."""
    from detkds_client.convert import ConvertError
    from detkds_client.convert import convert as run

    try:
        names = run(source, target, tuple(part.strip() for part in classes.split(",")) if classes else None)
    except ConvertError as error:
        raise Refusal(str(error)) from error
    print(f"{target}: {len(names)} classes ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})")


def choice(text: str | None) -> DetectorChoice | None:
    """`DETECTOR` or `DETECTOR:CHECKPOINT` as the API's object."""
    if text is None:
        return None
    name, colon, checkpoint = text.partition(":")
    return {"detector": name, "checkpoint": checkpoint} if colon else {"detector": name}


def teacher_choice(text: str | None) -> DetectorChoice | None:
    """A teacher without weights teaches nothing."""
    if text is not None and ":" not in text:
        raise Refusal(f"--teacher {text}: write it as DETECTOR:CHECKPOINT, for example --teacher {text}:/data/teacher.safetensors")
    return choice(text)


def fields(texts: list[str] | None) -> dict[str, Any] | None:
    """`FIELD=VALUE` texts as a dictionary; a value that is JSON is read as such (3, 0.1, null), another is text."""
    if not texts:
        return None
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise Refusal(f"--recipe {text}: write it as FIELD=VALUE, for example --recipe iterations=200")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def numbers(option: str, text: str | None) -> list[int] | None:
    """`15,30,60` as numbers; none for an empty text."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")] if text.strip() else []
    except ValueError:
        raise Refusal(f"{option} {text}: write it as numbers with commas between, for example {option} 15,30,60") from None


def distillers_of(text: str | None) -> str | list[str] | None:
    """`all`, or names and formulas with commas between; a formula's own commas stand in brackets."""
    if text is None or text == "all":
        return text
    return [part.strip() for part in re.split(r",(?![^\[]*\])", text) if part.strip()]


def policy_of(text: str) -> str | dict[str, Any]:
    """The API's policy of a command line's: `@file.json`, `search:ID`, or a name or formula as it is."""
    if text.startswith("@"):
        try:
            document = json.loads(Path(text[1:]).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise Refusal(f"{text[1:]} cannot be read as JSON: {error}") from error
        if not isinstance(document, dict):
            raise Refusal(f'{text[1:]} does not hold a policy: {{"terms": [...]}}')
        return document
    if text.startswith("search:"):
        return {"search": text.removeprefix("search:")}
    return text


def find_job(client: Client, job_id: str) -> tuple[str, Any]:
    """("search" | "distillation", its document). Raises Refusal when it is neither."""
    for kind, get in (("search", client.get_search), ("distillation", client.get_distillation)):
        try:
            return kind, get(job_id)
        except ProblemError as error:
            if error.status != 404:
                raise
    raise Refusal(f"{job_id} is neither a search nor a distillation; `detkds searches` and `detkds distillations` list them")


def changed(job_id: str, verb: str, url: str | None, as_json: bool) -> None:
    """Pause, resume or cancel a search or a distillation, and show where it stands."""
    with connected(url) as client:
        kind, _ = find_job(client, job_id)
        if kind == "search":
            search = client.change_search(job_id, verb)
            show.as_json(search) if as_json else show.search(search)
        else:
            distillation = client.change_distillation(job_id, verb)
            show.as_json(distillation) if as_json else show.distillation(distillation)


def follow(client: Client, job_id: str, as_json: bool) -> None:
    """Show progress until the end, then the outcome. Ctrl-C leaves the work running and says how to come back."""
    kind, document = find_job(client, job_id)
    wait: Callable[..., Any] = client.wait_search if kind == "search" else client.wait_distillation
    if not as_json:
        print(f"{kind} {document['name']} {job_id}", flush=True)
    try:
        if as_json:
            document = wait(job_id)
        else:
            with show.following() as on_progress:
                document = wait(job_id, on_progress)
    except KeyboardInterrupt:
        print(f"\nThe {kind} goes on. Come back with: detkds watch {job_id}\nStop it with:       detkds cancel {job_id}", file=sys.stderr)
        raise typer.Exit(130) from None
    result = client.result(document["result_id"]) if document["result_id"] else None
    if as_json:
        show.as_json({**document, "result": result})
    else:
        show.search(document) if kind == "search" else show.distillation(document)
        if result is not None:
            show.result(result)
            if kind == "search":
                print(f"\nTrain the student with it: detkds distill --policy search:{job_id}")
    if document["state"] in FINAL_STATES and document["state"] != "SUCCEEDED":
        raise typer.Exit(1)


def explain(text: str) -> None:
    """Standard error: a paragraph a problem, as one line where nobody looks at a terminal."""
    if sys.stderr.isatty():
        Console(stderr=True, highlight=False).print(text, style="red", markup=False)
    else:
        print(text, file=sys.stderr)


def main() -> None:
    """Run the command; whatever fails is told without a stack trace, with exit code 1 (2 for a wrong command line)."""
    try:
        app()
    except ProblemError as error:
        explain(str(error))
        sys.exit(1)
    except (ServiceUnreachable, Refusal, TimeoutError) as error:
        explain(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of a pipe (`| head`) has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
