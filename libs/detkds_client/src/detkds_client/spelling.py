"""What a command line says in one word, as the API's objects: `DETECTOR:CHECKPOINT`, `FIELD=VALUE`, `search:ID`, numbers with commas.

And what the API says of itself, in the words of the command line.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from detkds_client.options import Refusal
from detkds_client.types import DetectorChoice
from detkds_core.catalogue.recipe import LISTS

EXAMPLES = {"--recipe": "iterations=200", "--set": "confirmation.seeds=3"}
COMMANDS = {"GET /distill": "distillations", "GET /jobs": "logs SEARCH", "POST /datasets": "datasets add", "POST /distill": "distill"}
LISTED = ("searches", "results", "datasets", "detectors", "policies", "workers", "checkpoints", "keys")
COMMANDS |= {"POST /searches": "search"} | {f"GET /{name}": name for name in LISTED}
ADDRESS = re.compile(r"((?:GET|POST) /[a-z]+)(?:/(\w(?:[\w.-]*\w)?))?(?![\w/?-])")
SHOWN = ("GET /datasets", "GET /checkpoints")  # of whose members a command tells
PARAMETER = re.compile(r"^\?(\w+):", re.MULTILINE)


def in_commands(text: str) -> str:
    """What a service says, with commands and options in place of its addresses and parameters.

    >>> in_commands("there is no result x; GET /results lists them")
    'there is no result x; `detkds results` lists them'
    """

    def command(found: re.Match[str]) -> str:
        address, member = found.groups()
        name = COMMANDS.get(address)
        if name is None or (member and address not in SHOWN):
            return found.group()
        return f"`detkds {name} show {member}`" if member else f"`detkds {name}`"

    def option(found: re.Match[str]) -> str:
        return f"--{found[1].replace('_', '-')}:"

    return PARAMETER.sub(option, ADDRESS.sub(command, text))


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


def fields(texts: list[str] | None, option: str = "--recipe") -> dict[str, Any] | None:
    """`FIELD=VALUE` texts as a dictionary; a value that is JSON is read as such (3, 0.1, null), numbers with commas between as a list,
    another is text."""
    if not texts:
        return None
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise Refusal(f"{option} {text}: write it as FIELD=VALUE, for example {option} {EXAMPLES[option]}")
        found[name] = whole_numbers(value) if re.fullmatch(r"\d+(\s*,\s*\d+)+", value) else from_json(value)
        if name.rpartition(".")[2] in LISTS and isinstance(found[name], int) and not isinstance(found[name], bool):
            found[name] = [found[name]]
    return found


def from_json(text: str) -> Any:
    """What a text is as JSON, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def whole_numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def joined(texts: list[str] | None) -> str | None:
    """An option that was given several times, as if it had been given once, with commas between."""
    return None if texts is None else ",".join(texts)


def names(texts: list[str] | None) -> tuple[str, ...] | None:
    """`cat,dog` as names; None where the option is not given, or empty."""
    text = joined(texts)
    return tuple(part.strip() for part in text.split(",")) if text else None


def numbers(option: str, texts: list[str] | None) -> list[int] | None:
    """`15,30,60` as numbers; none for an empty text."""
    text = joined(texts)
    if text is None:
        return None
    try:
        return whole_numbers(text) if text.strip() else []
    except ValueError:
        raise Refusal(f"{option} {text}: write it as numbers with commas between, for example {option} 15,30,60") from None


def distillers_of(texts: list[str] | None) -> str | list[str] | None:
    """`all`, or names and formulas with commas between; a formula's own commas stand in brackets."""
    text = joined(texts)
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


def changes(texts: list[str] | None) -> dict[str, Any]:
    """`FIELD=VALUE` texts as the body of a clone; a dot leads into an object: `confirmation.seeds=3`, `candidates=null`."""
    found: dict[str, Any] = {}
    for name, value in (fields(texts, "--set") or {}).items():
        *parents, last = name.split(".")
        place = found
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise Refusal(f"--set {name}: {parent} is given whole already; set its fields, or all of it at once")
        place[last] = value
    return found
