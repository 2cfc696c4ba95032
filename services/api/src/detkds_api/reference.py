"""`/docs`: the OpenAPI document as a page that people read.

The usual pages load their scripts from elsewhere, which the content policy forbids and a machine without internet cannot do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, NamedTuple

Schema = Mapping[str, Any]

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>DetKDS API</title>
<link rel="icon" href="/pages/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="/pages/dashboard.css">
</head>
<body>
<header>
  <a class="brand" href="/"><img src="/pages/icon.svg" alt="" width="28" height="28"> DetKDS</a>
  <p class="what">API, version {version}</p>
</header>
<main>
<h1>What the service does over HTTP</h1>
{description}
<ul>
{contents}
</ul>
{operations}
</main>
<footer><a href="/">Dashboard</a><a href="/openapi.json">The same as OpenAPI</a></footer>
</body>
</html>
"""


class Field(NamedTuple):
    """One line of a table of fields. name: dotted (`recipe.lr`); meaning: its default and description."""

    name: str
    kind: str
    meaning: str


def page(document: Mapping[str, Any], url: str) -> str:
    """The whole page of an OpenAPI document. url: where the service is, for the examples, without a slash at its end."""
    operations = [(method, path, one) for path, methods in document["paths"].items() for method, one in methods.items()]
    return PAGE.format(
        version=escape(document["info"]["version"]),
        description=prose(document["info"]["description"]),
        contents="\n".join(
            f'<li><a href="#{anchor(method, path)}"><code>{method.upper()} {escape(path)}</code></a></li>' for method, path, _ in operations
        ),
        operations="\n".join(section(method, path, one, document, url) for method, path, one in operations),
    )


def section(method: str, path: str, operation: Mapping[str, Any], document: Mapping[str, Any], url: str) -> str:
    """One operation: what it does, what it takes, an example of both ways."""
    asked = [
        Field(one["name"], kind(one["schema"], document), meaning({**one["schema"], **one}, one.get("required", False)))
        for one in operation.get("parameters", ())
    ]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    status, answer = next((status, one) for status, one in operation["responses"].items() if status.startswith("2"))
    shown = answer.get("content", {}).get("application/json", {}).get("example")
    parts = [
        f'<h2 id="{anchor(method, path)}"><code>{method.upper()} {escape(path)}</code></h2>',
        prose(operation.get("description", "")),
        table("Parameter", asked),
        table("Body", list(fields(body["schema"], document))) if body else "",
        f"<pre>{escape(curl(method, url + path, body.get('example')))}</pre>",
    ]
    if shown is not None:
        text = json.dumps(shown, indent=1, ensure_ascii=False)
        parts.append(f"<details><summary>Answer {status}</summary><pre>{escape(text)}</pre></details>")
    return "\n".join(part for part in parts if part)


def curl(method: str, url: str, body: object | None) -> str:
    """The operation as a command line; ID is the reader's to fill in."""
    command = f"curl {'-X POST ' if method == 'post' and body is None else ''}'{re.sub(r'{.*?}', 'ID', url)}'"
    if body is None:
        return command
    return f"{command} -H 'Content-Type: application/json' \\\n     -d '{json.dumps(body, ensure_ascii=False)}'"


def fields(schema: Schema, document: Mapping[str, Any], prefix: str = "") -> Iterator[Field]:
    """The fields of a body, those of the objects in it included."""
    schema = resolved(schema, document)
    for name, one in schema.get("properties", {}).items():
        yield Field(prefix + name, kind(one, document), meaning(one, name in schema.get("required", ())))
        for alternative in alternatives(one):
            yield from fields(alternative, document, f"{prefix}{name}.")


def alternatives(schema: Schema) -> list[Schema]:
    """What a value may be: the parts of an `anyOf`, else itself."""
    return list(schema.get("anyOf", [schema]))


def resolved(schema: Schema, document: Mapping[str, Any]) -> Schema:
    """The schema that a `$ref` names."""
    if "$ref" not in schema:
        return schema
    found: Schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return found


def kind(schema: Schema, document: Mapping[str, Any]) -> str:
    """`integer, 1 to 64`, `"safetensors" or "pth"`, `list of string`; null is left out, for every optional field may be null."""
    words = []
    for one in alternatives(schema):
        one = resolved(one, document)
        if one.get("type") == "null":
            continue
        if "enum" in one:
            words.append(" or ".join(json.dumps(value) for value in one["enum"]))
        elif one.get("type") == "array":
            words.append(f"list of {kind(one.get('items', {}), document)}")
        else:
            words.append(str(one.get("type", "anything")) + bounds(one))
    return " or ".join(words)


def bounds(schema: Schema) -> str:
    """`, 1 to 64`, `, at least 4`, `, above 0, at most 10`, or nothing."""
    low, above, high = (number(schema.get(name)) for name in ("minimum", "exclusiveMinimum", "maximum"))
    if low and high:
        return f", {low} to {high}"
    return (f", at least {low}" if low else "") + (f", above {above}" if above else "") + (f", at most {high}" if high else "")


def number(value: float | None) -> str:
    """A bound as it was written: the schema has `4.0` for 4."""
    return "" if value is None else str(int(value)) if value == int(value) else str(value)


def meaning(schema: Schema, required: bool) -> str:
    default = schema.get("default")
    plain = "" if default is None or isinstance(default, dict) else f"default {json.dumps(default)}"
    return "; ".join(part for part in ("required" if required else "", schema.get("description", ""), plain) if part)


def table(title: str, rows: list[Field]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{one}</th>" for one in (title, "type", "meaning"))
    lines = "".join(
        f'<tr><td class="mono">{escape(row.name)}</td><td data-label="type">{escape(row.kind)}</td><td>{inline(row.meaning)}</td></tr>'
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def prose(text: str) -> str:
    """Paragraphs of a docstring, whose lines end where the source's did."""
    return "\n".join(f"<p>{inline(' '.join(part.split()))}</p>" for part in text.split("\n\n") if part.strip())


def inline(text: str) -> str:
    """Escaped, with `code` as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def anchor(method: str, path: str) -> str:
    return re.sub(r"[^a-z]+", "-", f"{method}{path.lower()}").strip("-")
