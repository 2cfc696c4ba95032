"""A compose file as docker compose would read it, as far as ours needs it: merged YAML, `${...}` and `$$` replaced."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]

VARIABLE = re.compile(r"\$\$|\$\{(?P<name>\w+)(?:(?P<how>:\?|:-)(?P<rest>[^}]*))?\}|\$")


class UniqueKeys(yaml.SafeLoader):
    """YAML without the silence on a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = {key for key in keys if keys.count(key) > 1}
        # A merged mapping is flattened in place on first use, so its own keys stand before what it overrides; only the first look counts.
        if twice and not getattr(node, "looked_at", False):
            raise yaml.YAMLError(f"{sorted(twice)} stand twice {node.start_mark}")
        node.looked_at = True  # type: ignore[attr-defined]
        return super().construct_mapping(node, deep)


def interpolate(value: Any, environment: Mapping[str, str]) -> Any:
    """Replace variables in all strings. Raises KeyError with the variable's name for a `${X:?}` that is unset or empty."""
    if isinstance(value, dict):
        return {key: interpolate(item, environment) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolate(item, environment) for item in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        name, how, rest = match["name"], match["how"], match["rest"]
        if name is None:
            raise ValueError(f"a lone $ in {value!r}")
        if environment.get(name):
            return environment[name]
        if how == ":-":
            return str(rest)
        raise KeyError(name)

    return VARIABLE.sub(replace, value)


def read(path: Path) -> dict[str, Any]:
    """The file, merged, not interpolated."""
    document = yaml.load(path.read_text(), UniqueKeys)
    assert isinstance(document, dict)
    return document


def merge(first: Any, second: Any) -> Any:
    """What two files make of one place: mappings merge, lists are joined (a command is replaced), anything else is the second's."""
    if isinstance(first, dict) and isinstance(second, dict):
        replaced = ("command", "entrypoint", "test")
        return first | {key: merge(first[key], value) if key in first and key not in replaced else value for key, value in second.items()}
    if isinstance(first, list) and isinstance(second, list):
        return first + [item for item in second if item not in first]
    return second


def project(environment: Mapping[str, str], root: Path = ROOT) -> dict[str, Any]:
    """The services that `docker compose up` starts in this folder with this `.env`, by its COMPOSE_FILE and COMPOSE_PROFILES."""
    document: dict[str, Any] = {}
    for name in environment.get("COMPOSE_FILE", "docker-compose.yml").split(":"):
        document = merge(document, interpolate(read(root / name), environment))
    wanted = set(environment.get("COMPOSE_PROFILES", "").split(","))
    services = document["services"]
    return {name: service for name, service in services.items() if not service.get("profiles") or wanted & set(service["profiles"])}


def variables(path: Path) -> dict[str, str]:
    """Every variable that a file names, with how: ":?" must be set, ":-" has a default."""
    text = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
    return {match["name"]: match["how"] for match in VARIABLE.finditer(text) if match["name"]}


def env_file(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)
