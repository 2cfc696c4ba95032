"""The operator's own detectors: a folder with a file `NAME.json` each, an entry of the catalogue with MMDetection's configuration as data.

`detkds detectors add` writes such a file from a configuration in Python, which runs there and nowhere else. What is read here is data:
no part of it is code to anybody who builds from it, and nothing in it fetches anything.
"""

import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from detkds_core.catalogue.entry import BY_OVERLAP, FAMILIES, DetectorEntry, Family, Inputs
from detkds_core.catalogue.recipe import Recipe, recipe_faults

FOLDER = "DETKDS_DETECTORS"  # environment variable
NAME = re.compile(r"[a-z0-9][a-z0-9_]{0,63}")
TYPE = re.compile(r"[A-Za-z_]\w*", re.ASCII)

# What MMEngine would read as code, as another file, or as another package's.
FORBIDDEN_KEYS = ("_base_", "_delete_", "_scope_", "custom_imports")
OF_BUILT_IN = ("source", "width", "own")  # what an entry has and a file has not
OPTIONAL = ("training",)  # what files of earlier versions have not


class OwnDetectorError(ValueError):
    """A file that is no detector. faults: all that is wrong, `field: what, and what would be right`."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


def entry_to_json(entry: DetectorEntry) -> dict[str, Any]:
    """The content of an entry's file; its configuration must be plain data."""
    data = {key: value for key, value in asdict(entry).items() if key not in OF_BUILT_IN}
    return data | {"training": entry.training and entry.training.to_json()}


def entry_from_json(data: Any) -> DetectorEntry:
    """The entry of a file's content. Raises OwnDetectorError with all that is wrong."""
    if not isinstance(data, Mapping):
        raise OwnDetectorError([f"is a {type(data).__name__}, not an object with the fields of a detector"])
    known = [one.name for one in fields(DetectorEntry) if one.name not in OF_BUILT_IN]
    if "overlaps" not in data:
        data = {**data, "overlaps": _by_overlap(data)}
    faults = [f"{key}: is no field; the fields are {', '.join(known)}" for key in data if key not in known]
    faults += [f"{key}: is missing" for key in known if key not in data and key not in OPTIONAL]
    if not faults:
        faults = [*_fact_faults(data), *_input_faults(data["inputs"]), *_training_faults(data), *config_faults(data["config"])]
    if faults:
        raise OwnDetectorError(faults)
    facts: dict[str, Any] = {key: tuple(data[key]) if key == "strides" else data[key] for key in known if key in data}
    facts |= {key: tuple(map(float, data[key])) for key in ("anchor_scales", "anchor_ratios")}
    inputs: dict[str, Any] = {key: tuple(map(float, value)) if isinstance(value, list) else value for key, value in data["inputs"].items()}
    training = data.get("training")
    facts |= {"inputs": Inputs(**inputs), "own": True, "training": Recipe.from_json(training) if training is not None else None}
    return DetectorEntry(**facts)


def _by_overlap(data: Mapping[str, Any]) -> bool:
    """`overlaps` of a file that was added before it was a field: as its configuration names the assigner."""
    node: Any = data.get("config")
    for key in ("train_cfg", *(["rpn"] if data.get("stages") == 2 else []), "assigner", "type"):
        node = node.get(key) if isinstance(node, Mapping) else None
    return bool(data.get("anchor_scales")) and node in BY_OVERLAP


def name_faults(name: Any, built_in: Collection[str]) -> list[str]:
    """What is wrong with the name of a detector of one's own."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return [f"name: {name!r} is not a name; use 1 to 64 of a-z, 0-9 and '_', beginning with a letter or digit"]
    return [f"name: {name!r} is a built-in detector; choose another name"] if name in built_in else []


def read_folder(folder: str | Path | None, built_in: Collection[str]) -> tuple[dict[str, DetectorEntry], tuple[str, ...]]:
    """The detectors of a folder by name, and what is wrong with other files of it, a sentence each; nothing of None and ''.

    One file that is wrong takes nothing from the others: whoever starts is to tell of it (`OWN_FAULTS`).
    """
    if not folder:
        return {}, ()
    place = Path(folder).expanduser()
    if not place.is_dir():
        return {}, (f"{FOLDER}: {place} is no folder; make it, or leave {FOLDER} unset",)
    found, faults = {}, []
    for path in sorted(place.glob("*.json")):
        try:
            entry = read_file(path)
            if wrong := name_faults(entry.name, built_in):
                raise OwnDetectorError(wrong)
            found[entry.name] = entry
        except OwnDetectorError as error:
            faults += [f"{path}: {fault}" for fault in error.faults]
    return found, tuple(faults)


def read_file(path: Path) -> DetectorEntry:
    """The entry of a file that is named as the detector is. Raises OwnDetectorError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise OwnDetectorError([f"cannot be read: {error.strerror}"]) from error
    except (ValueError, RecursionError) as error:
        raise OwnDetectorError([f"is not JSON: {error}"]) from error
    entry = entry_from_json(data)
    if entry.name != path.stem:
        raise OwnDetectorError([f"name: {entry.name!r} is not the file's; call the file {entry.name}.json, or the detector {path.stem!r}"])
    return entry


def write_file(entry: DetectorEntry, folder: Path) -> Path:
    """Write an entry as `NAME.json`, so that a reader finds all of it or nothing. Raises OwnDetectorError if it could not be read back."""
    text = json.dumps(entry_to_json(entry), indent=1, allow_nan=False) + "\n"
    entry_from_json(json.loads(text))
    path = folder / f"{entry.name}.json"
    part = path.with_suffix(".partial")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
    return path


def config_faults(config: Any, path: str = "config") -> Iterator[str]:
    """What in a model's configuration is no plain data of MMDetection's own, or would fetch something; `path` is what to call it."""
    if not isinstance(config, Mapping):
        yield f"{path}: is a {type(config).__name__}, not MMDetection's configuration of a model"
        return
    for part in ("backbone", "data_preprocessor"):
        if not isinstance(config.get(part), Mapping):
            yield f"{path}.{part}: is missing, or no object"
    yield from _node_faults(config, path)


def _node_faults(node: Any, path: str) -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _key_faults(key, value, f"{path}.{key}")
            yield from _node_faults(value, f"{path}.{key}")
    elif isinstance(node, list | tuple):
        for place, value in enumerate(node):
            yield from _node_faults(value, f"{path}[{place}]")
    elif isinstance(node, str):
        if "{{" in node:
            yield f"{path}: {node!r} holds '{{{{', which MMEngine replaces by the environment or another file; write what it stands for"
        elif "://" in node:
            yield f"{path}: {node!r} would be fetched, and no job fetches anything; leave it out, and give weights by request"
    elif not isinstance(node, bool | int | float | None):
        yield f"{path}: is a {type(node).__name__}, which no JSON holds"
    elif isinstance(node, float) and not math.isfinite(node):
        yield f"{path}: {node} is not a finite number"


def _key_faults(key: Any, value: Any, path: str) -> Iterator[str]:
    if not isinstance(key, str):
        yield f"{path}: the key {key!r} is no text"
    elif key in FORBIDDEN_KEYS or "{{" in key:
        yield f"{path}: is not allowed; give the whole configuration of a detector of MMDetection, as `detkds detectors add` writes it"
    elif key == "type" and not (isinstance(value, str) and TYPE.fullmatch(value)):
        yield f"{path}: {value!r} is not a name in MMDetection's registry"  # MMEngine imports and calls whatever has a dot
    elif key == "pretrained" and value is not None:
        yield f"{path}: weights come by request (`student.checkpoint`); null is right"
    elif key == "checkpoint" and value is not None:
        yield f"{path}: weights come by request (`student.checkpoint`); leave this init_cfg out"


def _fact_faults(data: Mapping[str, Any]) -> Iterator[str]:
    name, title, family = data["name"], data["title"], data["family"]
    yield from name_faults(name, ())
    if not isinstance(title, str) or not 1 <= len(title) <= 200 or not title.isprintable():
        yield f"title: {title!r} is not a line of 1 to 200 characters"
    if not isinstance(family, str) or family not in FAMILIES:
        yield f"family: {family!r} is not a known family; one of {', '.join(FAMILIES)}"
        return
    common = FAMILIES[family]
    for key, right in (("stages", common.stages), ("scores", common.scores), ("masks", common.masks)):
        if data[key] != right or type(data[key]) is not type(right):
            yield f"{key}: {_shown(data[key])} is not that of a {family}; {_shown(right)} is"
    strides = data["strides"]
    if not _is_list(strides, _whole) or not strides or sorted(set(strides)) != strides:
        yield f"strides: {_shown(strides)} is not a list of growing whole numbers, pixels a cell, such as [8, 16, 32]"
    if not _whole(data["channels"]):
        yield f"channels: {_shown(data['channels'])} is not a whole number from 1 on"
    if common.edges != (data["reg_max"] is not None) or not (data["reg_max"] is None or _whole(data["reg_max"])):
        right = "the last bin of its edge distributions, a whole number from 1 on" if common.edges else "null"
        yield f"reg_max: {_shown(data['reg_max'])} is not that of a {family}; {right} is"
    yield from _anchor_faults(data, family, common)


def _anchor_faults(data: Mapping[str, Any], family: str, common: Family) -> Iterator[str]:
    anchors, scales, ratios = data["anchors"], data["anchor_scales"], data["anchor_ratios"]
    for key, values in (("anchor_scales", scales), ("anchor_ratios", ratios)):
        if not _is_list(values, _positive):
            yield f"{key}: {_shown(values)} is not a list of numbers above 0"
            return
        if bool(values) != common.anchored:
            yield f"{key}: {_shown(values)}, but a {family} has {'anchor boxes' if common.anchored else 'none, so that [] is right'}"
            return
    if data["overlaps"] not in (choices := (True, False) if common.anchored else (False,)) or not isinstance(data["overlaps"], bool):
        yield f"overlaps: {_shown(data['overlaps'])} is not that of a {family}; {' or '.join(map(_shown, choices))} is"
    right = len(scales) * len(ratios) if common.anchored else 0 if common.scores == "queries" else 1
    if isinstance(anchors, bool) or anchors != right:
        of = f", a scale and a ratio each ({len(scales)} times {len(ratios)})" if common.anchored else f", as of every {family}"
        yield f"anchors: {_shown(anchors)} is not the number of predictions a cell; {right} is{of}"


def _input_faults(inputs: Any) -> Iterator[str]:
    known = [one.name for one in fields(Inputs)]
    if not isinstance(inputs, Mapping) or set(inputs) != set(known):
        yield f"inputs: {_shown(inputs)} is not an object of {', '.join(known)}"
        return
    tests: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
        ("mean", lambda value: _is_list(value, _finite) and len(value) == 3, "a list of three numbers, a channel each"),
        ("std", lambda value: _is_list(value, _positive) and len(value) == 3, "a list of three numbers above 0, a channel each"),
        ("rgb", lambda value: isinstance(value, bool), "true (red comes first) or false (blue does)"),
        ("pad", _whole, "a whole number of pixels from 1 on"),
        ("fill", _finite, "a number"),
    )
    for key, holds, right in tests:
        if not holds(inputs[key]):
            yield f"inputs.{key}: {_shown(inputs[key])} is not {right}"


def _training_faults(data: Mapping[str, Any]) -> Iterator[str]:
    training = data.get("training")
    if training is None:
        return
    if not isinstance(training, Mapping):
        yield f"training: {_shown(training)} is not a recipe (an object), or null"
        return
    try:
        Recipe.from_json(training)
    except ValueError as error:
        yield from (fault.replace("recipe.", "training.", 1) for fault in recipe_faults(error))


def _is_list(value: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(holds, value))


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65_536


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _positive(value: Any) -> bool:
    return _finite(value) and value > 0


def _shown(value: Any) -> str:
    """As JSON has it, not at any length."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")
