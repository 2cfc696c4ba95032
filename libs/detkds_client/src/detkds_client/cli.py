"""The `detkds` command: a client of the service, the service itself, and a doctor for the machine."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from detkds_client import result_commands, run_commands, show, start_commands
from detkds_client.checkpoint_commands import checkpoints_app
from detkds_client.connection import DigestError, ProblemError, ServiceUnreachable
from detkds_client.detector_commands import detectors_app
from detkds_client.doctor_command import doctor
from detkds_client.key_commands import keys_app
from detkds_client.options import Classes, Json, Refusal, Url, connected
from detkds_client.show_progress import checking
from detkds_client.spelling import in_commands, names
from detkds_client.worker_commands import job, logs, workers_app
from detkds_core.names import counted

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
datasets_app = typer.Typer(invoke_without_command=True, no_args_is_help=False)
app.add_typer(
    datasets_app,
    name="datasets",
    help="List datasets; `add`, `show` and `delete` are for one.",
)
app.add_typer(detectors_app, name="detectors", help="List detectors; `add` makes one of yours known.")
app.add_typer(checkpoints_app, name="checkpoints", help="List checkpoints; `upload` sends one, `show` tells of it.")
app.add_typer(keys_app, name="keys", help="List API keys; `create` makes one, `revoke` ends one.")
app.add_typer(workers_app, name="workers", help="List workers and their jobs; `drain` gives one no more.")


COMMANDS = (
    *(start_commands.search, start_commands.extend, start_commands.distill, start_commands.clone),
    *(run_commands.searches, run_commands.distillations, run_commands.candidates, run_commands.label),
    *(run_commands.watch, run_commands.pause, run_commands.resume, run_commands.cancel),
    *(result_commands.results, result_commands.compare, job, logs),
)


def tell_version(wanted: bool) -> None:
    """Print it, if it is asked for, and end."""
    if wanted:
        print(f"detkds {version('detkds_client')}")
        raise typer.Exit


@app.callback()
def detkds(
    _: Annotated[bool, typer.Option("--version", callback=tell_version, is_eager=True, help="Print the version and end.")] = False,
) -> None:
    """Make a small detector better by letting it imitate a strong one: search the policy that suits the pair, and train with it.

    Most commands ask a service: `detkds serve` runs one here. `detkds COMMAND --help` says more.
    """


for command in COMMANDS:
    app.command()(command)


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
    """Check a COCO-format dataset and register it. Ctrl-C leaves the check running; `detkds datasets show NAME` says how far it is."""
    with connected(url) as client, checking(quiet=as_json) as on_progress:
        added = client.register_dataset(
            name,
            train_annotations=train_annotations,
            train_images=train_images,
            val_annotations=val_annotations,
            val_images=val_images,
            on_progress=on_progress,
        )
    show.as_json(added) if as_json else show.datasets([added])


@datasets_app.command("show")
def show_dataset(
    name: Annotated[str, typer.Argument(help="Of `detkds datasets`.")],
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show a dataset. What it has, how far its check is, or what is wrong with it."""
    with connected(url) as client:
        found = client.dataset(name)
    show.as_json(found) if as_json else show.dataset(found)


@datasets_app.command("delete")
def delete_dataset(
    name: Annotated[str, typer.Argument(help="Of `detkds datasets`.")],
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Remove a dataset that was REFUSED, or whose check shall end. Its files stay where they are; one that is READY is kept."""
    with connected(url) as client:
        done = client.delete_dataset(name)
    show.as_json(done) if as_json else print(f"{done['name']} is deleted")


@app.command()
def policies(url: Url = None, as_json: Json = False) -> None:
    """List the named policies. No distillation, hand-designed distillers, published searches."""
    with connected(url) as client:
        found = client.policies()
    show.as_json(found) if as_json else show.policies(found)


@app.command()
def census(
    images: Annotated[int, typer.Option(min=1, help="Images of a batch on one device.")] = 8,
    knowledge: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Count only these kinds of knowledge; repeatable.")] = None,
    numerical: Annotated[
        bool, typer.Option("--numerical", help="Also compute every formula on toy tensors (needs torch, minutes).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Count the search space. How many formulas it has, how many are legal and different, and what refuses the others. Needs no service."""
    from detkds_client.census import CensusError, censuses, numbers
    from detkds_core.policy.census import census_table

    if as_json and numerical:
        raise Refusal("--json has no place for what --numerical prints; give one of them")
    try:
        found = censuses(images, tuple(knowledge or ()))
        show.as_json([asdict(one) for one in found]) if as_json else print(census_table(found))
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
    show.listed([("pair", ""), ("dataset", "wide"), ("teacher ships", ""), ("what it is", "")], rows, "No pair.")
    print()
    show.listed([("detector", ""), ("what it is", "")], [(one["name"], one["title"]) for one in catalogue["detectors"]], "No detector.")


@app.command()
def serve(
    home: Annotated[Path | None, typer.Option(help="Folder of everything that is remembered; else DETKDS_HOME, else ~/.detkds.")] = None,
    host: Annotated[str, typer.Option(envvar="DETKDS_HOST", help="Beyond loopback only with DETKDS_API_KEY.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="DETKDS_PORT", help="0 takes a free one.", min=0, max=65535)] = 8350,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Jobs trained at once, each by a trainer of DETKDS_THREADS threads.")] = 1,
) -> None:
    """Run the service on this machine. Api, evolver and workers, until Ctrl-C."""
    from detkds_client.serve import ServeError
    from detkds_client.serve import serve as run

    try:
        run(home or Path(os.environ.get("DETKDS_HOME", "~/.detkds")), host, port, workers=workers)
    except ServeError as error:
        raise Refusal(str(error)) from error


app.command()(doctor)


@app.command()
def demo(
    dataset: Annotated[str, typer.Option(help="digits, or trees.")] = "digits",
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = 0,
    train_teacher: Annotated[
        bool, typer.Option("--train-teacher", help="Train the teacher anew instead of taking the one that ships.")
    ] = False,
) -> None:
    """The whole way once on real images. Search, distil, and show what came out."""
    from detkds_client import demo as story

    story.run(dataset=dataset, seed=seed, train_teacher=train_teacher)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A PyTorch checkpoint (.pth) of a detector, as MMDetection trains or publishes it.")],
    target: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    classes: Classes = None,
    backbone: Annotated[bool, typer.Option("--backbone", help="Only the backbone, of a detector or a published classifier.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there already.")] = False,
) -> None:
    """Make a checkpoint ready for the service. A teacher's, with its class names in the header, or the backbone a student begins with."""
    from detkds_client.convert import ConvertError
    from detkds_client.convert import convert as run

    try:
        found = run(source, target, names(classes), backbone=backbone, force=force)
    except ConvertError as error:
        raise Refusal(str(error)) from error
    if backbone:
        print(f"{target}: a backbone; give it as a student's checkpoint (--student DETECTOR:{target})")
        return
    print(f"{target}: {counted(len(found), 'class', 'classes')} ({', '.join(found[:5])}{', ...' if len(found) > 5 else ''})")


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
        explain(in_commands(str(error)))
        sys.exit(1)
    except (ServiceUnreachable, DigestError, Refusal, TimeoutError) as error:
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
