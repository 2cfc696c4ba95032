"""Bombs: bodies, documents and images that cost far more than they weigh. (tests/api/test_gate.py has sizes and chunks of bodies.)"""

import gzip
import json
import socket
import struct
import time
import zlib
from urllib.parse import urlsplit

import psutil
import pytest

MIB = 1 << 20
JSON = {"Content-Type": "application/json"}


def test_a_chunked_body_without_end_is_ended(service) -> None:
    """No length is announced and no last chunk comes: after 64 MiB the connection is closed, and nothing of it is kept."""
    place = urlsplit(service.url)
    before = psutil.Process().memory_info().rss
    sent = 0
    with socket.create_connection((place.hostname, place.port), timeout=30) as raw:
        raw.sendall(b"POST /searches HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"100000\r\n" + b"x" * MIB + b"\r\n"
        try:
            while sent < 200:
                raw.sendall(chunk)
                sent += 1
        except OSError:
            pass
    assert 64 <= sent < 200
    assert psutil.Process().memory_info().rss - before < 40 * MIB
    assert service.http.get("/health").status_code == 200


def test_a_compressed_body_is_never_unpacked(service, refused) -> None:
    bomb = gzip.compress(b" " * (400 * MIB), 9)
    assert len(bomb) < MIB
    before = psutil.Process().memory_info().rss
    refused(service.http.post("/searches", content=bomb, headers={**JSON, "Content-Encoding": "gzip"}), 400)
    assert psutil.Process().memory_info().rss - before < 50 * MIB


@pytest.mark.parametrize("depth", [100, 900, 5000, 200_000])
@pytest.mark.parametrize("around", [(b'{"a":', b"1", b"}"), (b"[", b"", b"]")], ids=["objects", "lists"])
@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("/distill", b'{"pair":"nothing","policy":%s}'),
        ("/distill", b'{"pair":"nothing","recipe":%s,"policy":"none"}'),
        ("/distill", b"%s"),
        ("/distill/0198a3c2-7d1e-7c43-9a51-2f60c1c3d9aa/clone", b'{"policy":%s}'),
        ("/searches", b'{"pair":"nothing","candidates":12,"references":[%s]}'),
        ("/searches", b'{"pair":"nothing","candidates":12,"confirmation":{"distillers":[%s]}}'),
    ],
)
def test_depth_is_refused_at_once(service, refused, depth, around, path, where) -> None:
    opening, middle, closing = around
    body = where % (opening * depth + middle + closing * depth)
    began = time.monotonic()
    refused(service.http.post(path, content=body[: MIB - 1], headers=JSON), 400, 422)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("depth", [20, 21])
def test_a_policy_that_is_nested_too_deep_is_told_so(service, wanted, refused, depth) -> None:
    policy = json.loads('{"a":' * depth + "1" + "}" * depth)
    training = {name: wanted[name] for name in ("dataset", "teacher", "student", "recipe")}
    for path, body, where in (
        ("/distill", {**training, "policy": policy}, "/policy"),
        ("/searches", {**wanted, "references": [policy]}, "/references/0"),
    ):
        answer = service.http.post(path, json=body)
        refused(answer)
        told = {error["pointer"]: error["message"] for error in answer.json()["errors"]}
        assert (told.get(where) == "is nested more than 20 deep; a policy is an object of options and terms") is (depth > 20)


WIDE = {
    "fields": {f"field{number}": 1 for number in range(50_000)},
    "fields of the recipe": {"pair": "digits_gfl", "recipe": {f"field{number}": 1 for number in range(50_000)}},
    "references": {"pair": "digits_gfl", "references": ["x"] * 200_000},
    "warm starts": {"pair": "digits_gfl", "warm_start": ["x"] * 200_000},
    "rungs": {"pair": "digits_gfl", "rungs": [1] * 300_000},
    "knowledge": {"pair": "digits_gfl", "knowledge": ["global"] * 90_000},
    "distillers": {"pair": "digits_gfl", "confirmation": {"distillers": [{"a": 1}] * 90_000}},
}


@pytest.mark.parametrize("kind", WIDE)
def test_width_is_answered_in_few_words(service, refused, kind) -> None:
    """60,000 wrong fields once came back as an answer of 18 MiB."""
    body = json.dumps(WIDE[kind])
    assert len(body) <= MIB
    began = time.monotonic()
    answer = service.http.post("/searches", content=body, headers=JSON)
    refused(answer)
    assert len(answer.content) < 200_000
    assert time.monotonic() - began < 10


def test_how_many_are_wrong_is_told_though_not_all_are_named(service, refused) -> None:
    answer = service.http.post("/searches", json={f"field{number}": 1 for number in range(1000)})
    assert refused(answer).endswith("; and 995 more")
    assert len(answer.json()["errors"]) == 200


@pytest.mark.parametrize("policy", ["l2(" * 1300, "+".join(["l2(global)"] * 390), "9" * 3999, "(" * 3999])
def test_a_formula_is_read_in_little_time(service, refused, wanted, policy) -> None:
    body = {name: wanted[name] for name in ("dataset", "teacher", "student", "recipe")} | {"policy": policy}
    began = time.monotonic()
    refused(service.http.post("/distill", json=body))
    assert time.monotonic() - began < 5


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG that says it is so large, with these chunks before its end."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


FLOOD = zlib.compress(b"\0" * (100 * MIB), 9)
IMAGES = {
    "too many pixels": (png(2**31 - 1, 2**31 - 1, chunk(b"IDAT", b"")), "pixels; cut it into tiles"),
    "more than the limit, less than twice": (png(11_000, 11_000, chunk(b"IDAT", b"")), "pixels, more than"),
    "a text that unpacks to 100 MiB": (png(64, 64, chunk(b"zTXt", b"k\0\0" + FLOOD)), "cannot be read"),
    "a colour profile that does": (png(64, 64, chunk(b"iCCP", b"k\0\0" + FLOOD)), "cannot be read"),
    "an SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", "neither JPEG nor PNG"),
    "a GIF": (b"GIF89a" + b"\xff" * 40, "neither JPEG nor PNG"),
    "a TIFF": (b"II*\0" + b"\xff" * 60, "neither JPEG nor PNG"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", "neither JPEG nor PNG"),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_that_is_a_bomb_or_no_image_is_refused_by_its_header(service, written, refused_dataset, tmp_path_factory, kind) -> None:
    content, words = IMAGES[kind]
    place = service.roots / tmp_path_factory.mktemp("bomb", numbered=True).name
    train, val = written(place / "train", 3, shade=70), written(place / "val", 3, shade=80)
    (place / "train/images/001.png").write_bytes(content)
    before = psutil.Process().memory_info().rss
    assert words in refused_dataset(service.http, {"name": "bomb", "train": train, "val": val})
    assert psutil.Process().memory_info().rss - before < 80 * MIB


@pytest.mark.parametrize(
    "text", ["[" * 500_000, '{"images":' * 100_000, '{"images": [' + "[]," * 5 + "[]]" + "}", '{"images": 1e999999}', "\x00" * 1000]
)
def test_annotations_that_are_a_bomb_are_a_problem(service, refused_dataset, text) -> None:
    path = service.roots / "bomb.json"
    path.write_text(text)
    split = {"annotations": str(path), "images": str(service.roots / "train/images")}
    assert refused_dataset(service.http, {"name": "bomb", "train": split, "val": split})


@pytest.mark.parametrize("length", [2**63 - 1, 1 << 40, 17 << 20, 0])
def test_a_checkpoint_whose_header_says_it_is_huge_is_not_read(service, wanted, refused, length) -> None:
    path = service.roots / "bomb.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{" * 5000)
    body = {**wanted, "teacher": {"detector": wanted["teacher"]["detector"], "checkpoint": str(path)}}
    assert "is not a safetensors file" in refused(service.http.post("/searches", json=body))
