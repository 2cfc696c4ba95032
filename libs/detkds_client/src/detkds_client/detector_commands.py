"""`detkds detectors`: what teachers and students can be, and how an operator brings one of his own."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from detkds_client import show
from detkds_client.options import Json, Refusal, Url, connected
from detkds_core.catalogue import BUILT_IN, DetectorEntry
from detkds_core.catalogue.own import FOLDER, entry_to_json, name_faults, write_file

detectors_app = typer.Typer(invoke_without_command=True, no_args_is_help=False)


@detectors_app.callback()
def detectors(context: typer.Context, url: Url = None, as_json: Json = False) -> None:
    """List the detectors that teachers and students can be built from."""
    if context.invoked_subcommand is not None:
        return
    with connected(url) as client:
        found = client.detectors()["detectors"]
    if as_json:
        show.as_json(found)
        return
    rows = [(one["name"], one["family"], " ".join(map(str, one["strides"])), "yes" if one["own"] else "", one["title"]) for one in found]
    show.listed([("detector", ""), ("family", ""), ("strides", "wide"), ("own", ""), ("what it is", "")], rows, "No detector.")


@detectors_app.command("add")
def add(
    config: Annotated[Path, typer.Argument(help="A configuration of MMDetection (.py). It is a program, and runs: it must be yours.")],
    name: Annotated[str, typer.Option(help="What requests will call it: a-z, 0-9 and _.")],
    title: Annotated[str | None, typer.Option(help="What it is, in a line; default: its family and the file's name.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where its file shall lie; default: DETKDS_DETECTORS.")] = None,
    gpus: Annotated[
        int | None,
        typer.Option(min=1, help="GPUs that it is trained on, batch_size images each; default: auto_scale_lr says how many images."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the file's content.")] = False,
) -> None:
    """Make a detector of your own known.

    On the service's machine, or where its folder is copied from. Needs torch, and no service.

    The model of the configuration is built and looked at; what it needs of that is written to NAME.json, as data, with the recipe that the
    configuration trains it by. Services read the folder when they start.
    """
    if folder is None and not os.environ.get(FOLDER):
        raise Refusal(f"--folder is missing, and {FOLDER} is not set: the services read the folder that {FOLDER} names")
    place = (folder or Path(os.environ[FOLDER])).expanduser()
    if wrong := name_faults(name, BUILT_IN):
        raise Refusal("; ".join(wrong).replace("name:", "--name:"))
    if (place / f"{name}.json").exists():
        raise Refusal(f"{place / name}.json is there already, and jobs may name it; remove it first, or choose another --name")
    # Imported here: torch takes seconds, and no other command of this file needs it.
    from detkds_core.detectors.survey import SurveyError, model_of, read_file, survey, training_of

    try:
        content = read_file(config)
        model = model_of(content)
        entry = survey(model, name, title or f"{model['type']}, from {config.name}")
        training, notes = training_of(content, gpus)
        entry = replace(entry, training=training)
    except SurveyError as error:
        raise Refusal(str(error)) from error
    try:
        place.mkdir(parents=True, exist_ok=True)
        path = write_file(entry, place)
    except OSError as error:
        raise Refusal(f"{place}: {error.strerror}; give a folder that can be written with --folder") from error
    except ValueError as error:
        raise Refusal(f"{config}: {error}") from error
    if as_json:
        show.as_json(entry_to_json(entry))
        return
    show.facts([*facts(entry), *[("note", note) for note in notes]])
    print(f"\n{path}: services and workers whose {FOLDER} is this folder know {name} once they are started anew")


def facts(entry: DetectorEntry) -> list[tuple[str, str | Text]]:
    """What a person checks against what he knows of his detector."""
    inputs = entry.inputs
    scales, ratios = (", ".join(f"{value:g}" for value in values) for values in (entry.anchor_scales, entry.anchor_ratios))
    boxes = f"; anchor boxes of scales {scales} and ratios {ratios}" if entry.anchor_scales else ""
    said = {"classes": "a score a class", "objectness": "one objectness", "queries": "from queries, not at cells"}[entry.scores]
    order = "red first" if inputs.rgb else "blue first"
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (inputs.mean, inputs.std))
    return [
        ("detector", f"{entry.name}: {entry.title}"),
        ("family", f"{entry.family}, {'two stages' if entry.stages == 2 else 'one stage'}{', masks' if entry.masks else ''}"),
        ("pyramid", f"strides {' '.join(map(str, entry.strides))}, {entry.channels} channels each"),
        ("predictions", said if not entry.anchors else f"{entry.anchors} a cell, {said}{boxes}"),
        ("edges", f"distributions of {entry.reg_max + 1} bins" if entry.reg_max is not None else "no distributions"),
        ("images", f"{order}, mean {mean}, std {std}; sides to multiples of {inputs.pad}, filled with {inputs.fill:g}"),
        ("training", show.recipe_words(entry.training) if entry.training else "not known"),
    ]
