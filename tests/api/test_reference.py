"""`/docs`: the API as a page, without scripts and without anything from elsewhere."""

import json
import re
from html import unescape

import httpx2

from detkds_api.reference import Field, curl, fields, kind


def test_the_page_shows_every_operation_and_loads_nothing_from_elsewhere(service):
    answer = service.http.get("/docs")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    document = service.http.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method in methods:
            assert f"<code>{method.upper()} {path}</code></h2>" in answer.text
    assert "<script" not in answer.text
    assert all(link.startswith(("/", "#")) for link in re.findall(r'(?:href|src)="([^"]+)"', answer.text))


def test_links_of_the_page_lead_to_its_sections(service):
    text = service.http.get("/docs").text
    wanted, there = re.findall(r'href="#([^"]+)"', text), re.findall(r'<h2 id="([^"]+)"', text)
    assert wanted == there
    assert len(set(there)) == len(there)


def test_an_example_is_the_documents_on_this_services_address(service):
    shown = unescape(re.search(r"<pre>(curl.*?)</pre>", service.http.get("/docs").text, re.DOTALL)[1])
    url, header, body = re.fullmatch(r"curl '(.*?)' -H '(.*?)' \\\n     -d '(.*?)'", shown).groups()
    assert (url, header) == (f"{service.url}/searches", "Content-Type: application/json")
    operation = service.http.get("/openapi.json").json()["paths"]["/searches"]["post"]
    assert json.loads(body) == operation["requestBody"]["content"]["application/json"]["example"]


def test_the_page_needs_no_key_for_it_shows_no_data(locked):
    assert httpx2.get(f"{locked}/docs", trust_env=False).status_code == 200


SCHEMAS = {
    "Inner": {"type": "object", "required": ["lr"], "properties": {"lr": {"type": "number", "exclusiveMinimum": 0.0, "maximum": 0.5}}},
    "Outer": {
        "type": "object",
        "properties": {
            "n": {"type": "integer", "minimum": 1.0, "maximum": 2147483647.0, "default": 4, "description": "how `many`"},
            "inner": {"anyOf": [{"$ref": "#/components/schemas/Inner"}, {"type": "null"}]},
            "kinds": {"type": "array", "items": {"enum": ["a", "b"]}},
        },
    },
}


def test_fields_are_told_with_their_bounds_and_those_of_inner_objects():
    document = {"components": {"schemas": SCHEMAS}}
    assert list(fields({"$ref": "#/components/schemas/Outer"}, document)) == [
        Field("n", "integer, 1 to 2147483647", "how `many`; default 4"),
        Field("inner", "object", ""),
        Field("inner.lr", "number, above 0, at most 0.5", "required"),
        Field("kinds", 'list of "a" or "b"', ""),
    ]
    assert kind({"type": "integer", "minimum": 4}, document) == "integer, at least 4"


def test_a_command_line_leaves_the_id_to_the_reader():
    assert curl("post", "http://h/searches/{search_id}/cancel", None) == "curl -X POST 'http://h/searches/ID/cancel'"
    assert curl("get", "http://h/results", None) == "curl 'http://h/results'"
