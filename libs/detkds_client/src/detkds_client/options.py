"""What the commands of `detkds` have in common: their options, the service that they speak to, and how they refuse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated

import typer

from detkds_client.client import Client

Url = Annotated[str | None, typer.Option(help="Address of the service; else DETKDS_URL, else what `detkds serve` left in DETKDS_HOME.")]
Json = Annotated[bool, typer.Option("--json", help="Print the service's documents as JSON.")]
Pair = Annotated[str | None, typer.Option(help="A pair of the catalogue: dataset, teacher, student and recipe at once.")]
DatasetName = Annotated[str | None, typer.Option("--dataset", help="A dataset's name (`detkds datasets`).")]
Teacher = Annotated[
    str | None,
    typer.Option(
        help="DETECTOR:CHECKPOINT; the checkpoint is a built-in name, the id of an uploaded one, or a path on the service's machine."
    ),
]
Student = Annotated[str | None, typer.Option(help="DETECTOR, or DETECTOR:CHECKPOINT to start from weights.")]
RecipeFields = Annotated[
    list[str] | None,
    typer.Option(
        "--recipe",
        metavar="FIELD=VALUE",
        help="A field of the recipe, e.g. --recipe epochs=24 --recipe milestones=16,22; repeatable. "
        "The rest is the pair's; without a pair, of the student's configuration.",
    ),
]
Inherit = Annotated[
    bool | None, typer.Option("--inherit/--no-inherit", help="Start from the teacher's neck and head; default: as the pair says.")
]
Resize = Annotated[
    bool, typer.Option("--resize", help="Match levels of different strides too; the teacher's maps take the student's sizes.")
]
Priority = Annotated[int | None, typer.Option(help="Jobs of a higher one are begun first; above 0 with an admin's key only.")]
DeviceMemory = Annotated[int | None, typer.Option("--device-memory", help="GiB that a GPU must have for it.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Show progress until the end, or return at once.")]
Name = Annotated[str | None, typer.Option(help="A name to find it again by.")]
Notes = Annotated[str | None, typer.Option(help="What is worth remembering of it.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", metavar="TAG", help="A word to find it again by; repeatable.")]
Classes = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME,...",
        help="Class names in the order of training, when the checkpoint does not name them, with commas between or repeated.",
    ),
]
RunId = Annotated[str, typer.Argument(metavar="ID", help="A search or a distillation.")]
Limit = Annotated[int, typer.Option(min=1, help="How many at most.")]


class Refusal(Exception):
    """What the user asked for is not possible; the text says why and what would be."""


@contextmanager
def connected(url: str | None) -> Iterator[Client]:
    with Client(url) as client:
        yield client


def is_filtered(asked: Mapping[str, object]) -> bool:
    """Whether a list was asked for in part; an order leaves nothing out."""
    return any(value is not None for name, value in asked.items() if name != "sort")


def only_lists(asked: Mapping[str, object]) -> None:
    """Raises Refusal for filters and orders where one is shown."""
    if given := [f"--{name.replace('_', '-')}" for name, value in asked.items() if value is not None]:
        raise Refusal(f"{', '.join(given)}: for lists; leave the id out, or the option")
