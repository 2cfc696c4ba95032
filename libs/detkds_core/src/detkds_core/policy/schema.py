"""Policies as JSON: reading with errors that name every place at fault, writing without what goes without saying, and the schema."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from detkds_core.policy.canonical import canonical
from detkds_core.policy.distillers import DISTILLERS, FORMERLY
from detkds_core.policy.rules import check, distiller_legality, legality, shortened
from detkds_core.policy.terms import Distiller, Policy, PolicyError, Term
from detkds_core.policy.vocabulary import (
    DISTANCES,
    KNOWLEDGE,
    MAX_BACKGROUND,
    MAX_TEMPERATURE,
    MAX_TERMS,
    MAX_WARM_UP,
    MAX_WEIGHT,
    MIN_TEMPERATURE,
    REDUCTIONS,
    REGIONS,
    SLOTS,
)

KEYS = ("terms", "distillers")
SCHEDULE = ("warm_up", "stop", "decay")  # of a term and of a distiller
DISTILLER_OPTIONS = ("weight", "balanced", *SCHEDULE)
DISTILLER_KEYS = ("name", "settings", *DISTILLER_OPTIONS)
REQUIRED = ("knowledge", "transforms", "distance", "weight")
OPTIONS: Mapping[str, Any] = {field.name: field.default for field in fields(Term) if field.name not in REQUIRED}
OF_DISTILLERS: Mapping[str, Any] = {field.name: field.default for field in fields(Distiller) if field.name in DISTILLER_OPTIONS}


def to_json(policy: Policy) -> dict[str, Any]:
    """Plain JSON values; options at their default and empty lists but `terms` are left out. `from_json` gives an equal policy back."""
    data: dict[str, Any] = {"terms": [_term_to_json(term) for term in policy.terms]}
    if policy.distillers:
        data["distillers"] = [_distiller_to_json(distiller) for distiller in policy.distillers]
    return data


def _term_to_json(term: Term) -> dict[str, Any]:
    plain = {"knowledge": term.knowledge, "transforms": list(term.transforms), "distance": term.distance, "weight": term.weight}
    return plain | {name: getattr(term, name) for name, default in OPTIONS.items() if getattr(term, name) != default}


def _distiller_to_json(distiller: Distiller) -> dict[str, Any]:
    plain: dict[str, Any] = {"name": distiller.name} | ({"settings": dict(distiller.settings)} if distiller.settings else {})
    return plain | {name: getattr(distiller, name) for name, default in OF_DISTILLERS.items() if getattr(distiller, name) != default}


def canonical_json(policy: Policy) -> str:
    """The text that is equal for equal policies: canonical form, keys sorted, no spaces, shortest floats that read back the same."""
    return json.dumps(to_json(canonical(policy)), sort_keys=True, separators=(",", ":"), allow_nan=False)


def from_json(data: object) -> Policy:
    """Read a legal policy. Raises PolicyError with every place at fault, such as `policy.terms[1].transforms[2]`."""
    if not isinstance(data, Mapping):
        raise PolicyError([("policy", f'{_short(data)} is not an object; {{"terms": [...]}}')])
    errors = [
        (f"policy.{_short(key, quote=False)}", f"not a key of a policy; its keys are {', '.join(KEYS)}") for key in data if key not in KEYS
    ]
    if "terms" not in data:
        errors.append(("policy.terms", "missing; a list of terms, empty for training without distillation"))
    rows = _rows(data, "terms", MAX_TERMS, errors)
    others = _rows(data, "distillers", len(DISTILLERS), errors)
    if errors:
        raise PolicyError(errors)
    terms: list[Term] = []
    for place, row in enumerate(rows):
        faults = _shape_faults(row)
        if not faults:
            terms.append(_read_term(row))
            faults = [(f".{reason.field}", reason.message) for reason in legality(terms[-1])]
        errors += [(f"policy.terms[{place}]{path}", message) for path, message in faults]
    distillers: list[Distiller] = []
    for place, row in enumerate(others):
        faults = _distiller_faults(row)
        if not faults:
            distillers.append(_read_distiller(row))
            faults = [(f".{reason.field}", reason.message) for reason in distiller_legality(distillers[-1])]
        errors += [(f"policy.distillers[{place}]{path}", message) for path, message in faults]
    policy = Policy(tuple(terms), tuple(distillers))
    if errors := errors or check(policy):  # check adds what only the whole policy shows
        raise PolicyError(errors)
    return policy


def _rows(data: Mapping[str, Any], key: str, most: int, errors: list[tuple[str, str]]) -> Sequence[Any]:
    """The list under a key, empty with what is wrong added to `errors` where there is none."""
    rows = data.get(key, ())
    if not isinstance(rows, list | tuple):
        errors.append((f"policy.{key}", f"{_short(rows)} is not a list of {key}"))
        return ()
    if len(rows) > most:  # before any of them is looked at
        errors.append((f"policy.{key}", f"{len(rows)} {key}; at most {most}"))
        return ()
    return rows


def _distiller_faults(row: object) -> list[tuple[str, str]]:
    """What keeps a row from being read as a Distiller at all, as (path below the row, message)."""
    if not isinstance(row, Mapping):
        return [("", f'{_short(row)} is not an object with name, and settings where they differ; {{"name": "fgd"}}')]
    faults = [
        (f".{_short(key, quote=False)}", f"not a key of a distiller; its keys are {', '.join(DISTILLER_KEYS)}")
        for key in row
        if key not in DISTILLER_KEYS
    ]
    if "name" not in row:
        faults.append((".name", f"missing; one of {', '.join(DISTILLERS)}"))
    elif not isinstance(row["name"], str):
        faults.append((".name", f"{_short(row['name'])} is not one of {', '.join(DISTILLERS)}"))
    faults += [
        (f".{key}", f"{_short(row[key])} is not {WANTED[key]}") for key in DISTILLER_OPTIONS if key in row and not _has_type(key, row[key])
    ]
    settings = row.get("settings", {})
    if not isinstance(settings, Mapping):
        faults.append((".settings", f"{_short(settings)} is not an object of numbers by name"))
    else:
        for name, value in settings.items():
            if not _is_number(value):
                faults.append((f".settings.{_short(name, quote=False)}", f"{_short(value)} is not a number"))
    return faults


def _shape_faults(row: object) -> list[tuple[str, str]]:
    """What keeps a row from being read as a Term at all, as (path below the row, message)."""
    if not isinstance(row, Mapping):
        return [("", f"{_short(row)} is not an object with {', '.join(REQUIRED)}")]
    known = (*REQUIRED, *OPTIONS)
    faults = [(f".{_short(key, quote=False)}", f"not a key of a term; one of {', '.join(known)}") for key in row if key not in known]
    faults += [(f".{key}", f"missing; {WANTED[key]}") for key in REQUIRED if key not in row]
    for key, value in row.items():
        if key in known and not _has_type(key, value):
            faults.append((f".{key}", f"{_short(value)} is not {WANTED[key]}"))
    return faults


WANTED: Mapping[str, str] = {
    "knowledge": f"one of {', '.join(KNOWLEDGE)}",
    "transforms": "a list of names, innermost first",
    "distance": "the name of a distance",
    "weight": f"a number above 0 and at most {MAX_WEIGHT:g}",
    "temperature": f"a number from {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}",
    "shared_attention": "true or false",
    "background": f"a number from 0 to {MAX_BACKGROUND:g}",
    "warm_up": f"a whole number of steps from 0 to {MAX_WARM_UP}",
    "stop": "a share of the training, above 0 and at most 1",
    "decay": "a share of the weight from 0 to 1",
    "region": "the name of a region",
    "reduction": f"one of {', '.join(REDUCTIONS)}",
    "auto": "true or false",
    "balanced": "true or false",
}


def _has_type(key: str, value: object) -> bool:
    if key in ("knowledge", "distance", "region", "reduction"):
        return isinstance(value, str)
    if key == "transforms":
        return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
    if key in ("shared_attention", "auto", "balanced"):
        return isinstance(value, bool)
    if key == "warm_up":
        return isinstance(value, int) and not isinstance(value, bool)
    return _is_number(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read_term(row: Mapping[str, Any]) -> Term:
    options = _options(row, OPTIONS)
    return Term(row["knowledge"], tuple(row["transforms"]), row["distance"], _to_float(row["weight"]), **options)


def _read_distiller(row: Mapping[str, Any]) -> Distiller:
    formerly = FORMERLY.get(row["name"], {})
    settings = tuple(sorted((formerly.get(name, name), _to_float(value)) for name, value in row.get("settings", {}).items()))
    return Distiller(row["name"], settings, **_options(row, OF_DISTILLERS))


def _options(row: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The known options of a row, at their default where it has none; numbers that need not be whole as floats."""
    return {
        name: _to_float(row[name]) if name in row and isinstance(default, float) else row.get(name, default)
        for name, default in known.items()
    }


def _to_float(number: int | float) -> float:
    """A float; infinity for a whole number that none can hold, which the rules then refuse."""
    try:
        return float(number)
    except OverflowError:
        return float("inf")


def _short(value: object, quote: bool = True) -> str:
    """A value as an error repeats it."""
    if isinstance(value, str):
        return repr(shortened(value)) if quote else shortened(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float) and abs(value) < 1e15:
        return repr(value)
    return {dict: "an object", list: "a list", int: "a huge number", float: "a huge number"}.get(type(value), f"a {type(value).__name__}")


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a policy: names, types and bounds. Which combinations have a meaning, `legality` knows."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Distillation policy",
        "description": "The sum of its terms and distillers; without any, training without distillation.",
        "type": "object",
        "properties": {
            "terms": {"type": "array", "maxItems": MAX_TERMS, "items": {"oneOf": [_term_schema(kind) for kind in KNOWLEDGE]}},
            "distillers": {
                "type": "array",
                "description": "Losses with learned parts, each at most once.",
                "maxItems": len(DISTILLERS),
                "items": {"oneOf": [_distiller_schema(name) for name in DISTILLERS]},
                "allOf": [
                    {"contains": {"properties": {"name": {"const": name}}, "required": ["name"]}, "minContains": 0, "maxContains": 1}
                    for name in DISTILLERS
                ],
            },
        },
        "required": ["terms"],
        "additionalProperties": False,
    }


OPTION_SCHEMAS: Mapping[str, dict[str, Any]] = {  # of terms and distillers alike
    "weight": {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_WEIGHT},
    "balanced": {"type": "boolean"},
    "warm_up": {"type": "integer", "minimum": 0, "maximum": MAX_WARM_UP},
    "stop": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "decay": {"type": "number", "minimum": 0, "maximum": 1},
}


def _distiller_schema(name: str) -> dict[str, Any]:
    settings = {
        key: {
            "type": "integer" if one.whole else "number",  # 2.0 is an integer of JSON Schema
            "minimum": one.low,
            "maximum": one.high,
            "default": one.default,
            "description": one.meaning,
        }
        for key, one in DISTILLERS[name].settings.items()
    }
    properties = {
        "name": {"const": name},
        "settings": {"type": "object", "properties": settings, "additionalProperties": False},
        **{option: {**OPTION_SCHEMAS[option], "default": default} for option, default in OF_DISTILLERS.items()},
    }
    return {"title": name, "type": "object", "properties": properties, "required": ["name"], "additionalProperties": False}


def _term_schema(kind: str) -> dict[str, Any]:
    slots = SLOTS[kind]
    properties: dict[str, Any] = {
        "knowledge": {"const": kind},
        "transforms": {
            "type": "array",
            "description": "In the order they act: " + ", ".join(slot for slot, _ in slots),
            "prefixItems": [{"enum": list(choices)} for _, choices in slots],
            "minItems": len(slots),
            "maxItems": len(slots),
        },
        "distance": {"enum": list(DISTANCES[kind])},
        "weight": OPTION_SCHEMAS["weight"],
        "temperature": {"type": "number", "minimum": MIN_TEMPERATURE, "maximum": MAX_TEMPERATURE},
        "shared_attention": {"type": "boolean"},
        "background": {"type": "number", "minimum": 0, "maximum": MAX_BACKGROUND},
        **{name: OPTION_SCHEMAS[name] for name in SCHEDULE},
        "region": {"enum": list(REGIONS[kind])},
        "reduction": {"enum": list(REDUCTIONS)},
        "auto": {"type": "boolean"},
        "balanced": OPTION_SCHEMAS["balanced"],
    }
    for name, default in OPTIONS.items():
        properties[name] = properties[name] | {"default": default}
    return {"title": kind, "type": "object", "properties": properties, "required": list(REQUIRED), "additionalProperties": False}
