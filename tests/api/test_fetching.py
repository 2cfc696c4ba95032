"""Checkpoints from an address: a real HTTPS server of this machine that is allowed, and everything that it might lead to."""

import datetime
import hashlib
import http.server
import ipaddress
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from safetensors.numpy import load_file, save

from detkds_api.fetching import FetchError, address_of, allowed, fetch
from detkds_api.settings import Settings

from .conftest import serving

WEIGHTS = save({"w": np.arange(500, dtype=np.float32)}, metadata={"classes": json.dumps(["circle", "square"])})
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()


class Mirror(NamedTuple):
    """A server. asked: the paths that it was asked for."""

    port: int
    asked: list[str]
    certificate: Path

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, path: str) -> str:
        return f"https://{self.host}{path}"


def certificate(folder: Path) -> Path:
    """Of 127.0.0.1 and localhost, signed by itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mirror")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "mirror.pem"
    path.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirror]:
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
            length = {"/cut": len(WEIGHTS) + 9, "/long": 1 << 40}.get(path, len(WEIGHTS))
            self.send_response(302 if path in ("/to", "/loop") else 404 if path == "/nowhere" else 200)
            if path in ("/to", "/loop"):
                self.send_header("Location", query["there"][0] if path == "/to" else self.path)
            if path != "/endless":
                self.send_header("Content-Length", str(length if path not in ("/to", "/loop") else 0))
            self.end_headers()
            if path not in ("/to", "/loop"):
                self.wfile.write(WEIGHTS)

        def log_message(self, *_: object) -> None:
            pass

    pem = certificate(tmp_path_factory.mktemp("mirror"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Mirror(server.server_address[1], asked, pem)
    server.shutdown()


@pytest.fixture
def trusted(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    """The server, whose authority this machine knows."""
    monkeypatch.setenv("SSL_CERT_FILE", str(mirror.certificate))
    mirror.asked.clear()
    return mirror


def refused(url: str, target: Path, mirror: Mirror, most: int = 1 << 20) -> str:
    with pytest.raises(FetchError) as caught:
        fetch(url, target, hosts={mirror.host}, most=most)
    return str(caught.value)


def test_an_allowed_host_is_asked_once_and_may_lead_on_to_itself(trusted, tmp_path):
    assert fetch(trusted.url("/w.safetensors?revision=1"), tmp_path / "w", hosts={trusted.host}, most=1 << 20) == len(WEIGHTS)
    assert (tmp_path / "w").read_bytes() == WEIGHTS
    assert fetch(trusted.url("/to?there=/endless"), tmp_path / "w", hosts={trusted.host}, most=len(WEIGHTS)) == len(WEIGHTS)
    assert trusted.asked == ["/w.safetensors?revision=1", "/to?there=/endless", "/endless"]


@pytest.mark.parametrize(
    ("there", "why"),
    [
        ("http://169.254.169.254/latest/meta-data/", "not an address that begins with https://"),
        ("https://169.254.169.254/latest/meta-data/", "'169.254.169.254' is no host that checkpoints may come from"),
        ("https://elsewhere.example/w", "'elsewhere.example' is no host"),
        ("file:///etc/passwd", "not an address that begins with https://"),
        ("https://user:secret@127.0.0.1/w", "with a user's name or password"),
    ],
)
def test_where_a_host_leads_is_judged_anew(trusted, tmp_path, there, why):
    assert why in refused(trusted.url(f"/to?there={there}"), tmp_path / "w", trusted)
    assert len(trusted.asked) == 1


def test_what_goes_round_is_too_long_or_breaks_off_is_not_taken(trusted, tmp_path):
    assert "leads on more than 5 times" in refused(trusted.url("/loop"), tmp_path / "w", trusted)
    assert len(trusted.asked) == 6
    assert f"has {1 << 40} bytes; at most 100 are" in refused(trusted.url("/long"), tmp_path / "w", trusted, most=100)
    assert "has more than 100 bytes" in refused(trusted.url("/endless"), tmp_path / "w", trusted, most=100)
    assert f"broke off after {len(WEIGHTS)} of {len(WEIGHTS) + 9}" in refused(trusted.url("/cut"), tmp_path / "w", trusted)
    assert "answers 404 Not Found" in refused(trusted.url("/nowhere"), tmp_path / "w", trusted)


def test_a_host_that_nobody_vouches_for_is_not_believed(mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", "/dev/null")
    mirror.asked.clear()
    assert "CERTIFICATE_VERIFY_FAILED" in refused(mirror.url("/w"), tmp_path / "w", mirror)
    assert mirror.asked == []


def test_a_name_for_an_address_of_ones_own_is_not_followed(trusted, tmp_path):
    """Only who lists the address itself wants it; the certificate would be right."""
    with pytest.raises(FetchError, match=r"localhost stands for .*, which is not of the open network; list that address itself"):
        fetch(f"https://localhost:{trusted.port}/w", tmp_path / "w", hosts={f"localhost:{trusted.port}"}, most=1 << 20)
    assert trusted.asked == []


@pytest.mark.parametrize(
    ("stands_for", "well"),
    [
        (["93.184.216.34"], True),
        (["2606:2800:220:1::1"], True),
        (["93.184.216.34", "10.0.0.7"], False),
        (["169.254.169.254"], False),
        (["100.64.0.1"], False),
        (["0.0.0.0"], False),
        (["224.0.0.1"], False),
        (["::1"], False),
        (["fd00:ec2::254"], False),
        (["fe80::1%eth0"], False),
        (["::ffff:93.184.216.34"], False),
        (["64:ff9b::a00:1"], False),
        (["2002:a00:1::"], False),
    ],
)
def test_every_address_of_a_name_has_to_be_of_the_open_network(monkeypatch, stands_for, well):
    """Names are not looked up in a test: what the resolver says is given."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_more: [(0, 0, 0, "", (one, 443)) for one in stands_for])
    if well:
        assert address_of("download.example", 443) == stands_for[0]
    else:
        with pytest.raises(FetchError, match="not of the open network"):
            address_of("download.example", 443)


def test_how_an_address_is_written():
    hosts = {"download.example", "download.example:8443", "[2606:2800::1]:8443"}
    assert allowed("https://Download.Example/a/b.pth?x=1#part", hosts) == ("download.example", 443, "/a/b.pth?x=1")
    assert allowed("https://download.example:443", hosts).target == "/"
    assert allowed("https://download.example:8443/w", hosts).port == 8443
    assert allowed("https://[2606:2800::1]:8443/w", hosts).host == "2606:2800::1"
    for url, why in [
        ("https://download.example.evil.org/w", "no host that checkpoints"),
        ("https://download.example:444/w", "'download.example:444' is no host"),
        ("https://download.example@evil.org/w", "with a user's name"),
        ("https://evil.org\\@download.example/w", "with a user's name"),
        ("https://download.example./w", "no host that checkpoints"),
        ("https://download.example\n/w", "begins with https"),
        ("https://döwnload.example/w", "begins with https"),
        ("https://download.example:port/w", "is no address"),
        ("https:///w", "begins with https"),
        ("//download.example/w", "begins with https"),
    ]:
        with pytest.raises(FetchError, match=why):
            allowed(url, hosts)
    with pytest.raises(FetchError, match="none is allowed \\(DETKDS_CHECKPOINT_HOSTS\\)"):
        allowed("https://download.example/w", ())


def test_hosts_are_hosts(tmp_path):
    assert Settings(home=tmp_path, checkpoint_hosts="A.example:443, b.example:8443").checkpoint_hosts == ("a.example", "b.example:8443")
    for wrong in ("https://a.example", "*.example", "user@a.example"):
        with pytest.raises(ValueError, match=r"DETKDS_CHECKPOINT_HOSTS: .* is no host; write download.example.org"):
            Settings(home=tmp_path, checkpoint_hosts=wrong)


@pytest.fixture
def fetching_service(tmp_path_factory, trusted):
    with serving(tmp_path_factory, checkpoint_hosts=trusted.host) as one:
        yield one


def test_a_checkpoint_is_fetched_checked_and_ready(fetching_service, trusted):
    body = {"name": "far.safetensors", "url": trusted.url("/w"), "sha256": DIGEST}
    done = fetching_service.http.post("/checkpoints", json=body)
    assert (done.status_code, done.json()["state"], done.json()["size"]) == (201, "READY", len(WEIGHTS))
    stored = Path(fetching_service.settings.artifacts_place) / "checkpoints" / done.json()["id"] / "weights.safetensors"
    assert load_file(stored)["w"].tolist() == list(range(500))
    again = fetching_service.http.post("/checkpoints", json=body)
    assert (again.status_code, again.json()["id"]) == (200, done.json()["id"])
    assert trusted.asked == ["/w"], "what is there is not fetched again"
    other = fetching_service.http.post("/checkpoints", json={**body, "sha256": "0" * 64})
    assert other.status_code == 422
    assert f"sha256: expected {'0' * 64}; what '{body['url']}' has now is {DIGEST}" in other.json()["detail"]
    assert len(fetching_service.http.get("/checkpoints").json()["items"]) == 1, "nothing is kept of what is not as it should be"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"url": "https://elsewhere.example/w", "sha256": DIGEST}, "url: 'elsewhere.example' is no host that checkpoints may come from"),
        ({"url": "MIRROR/w"}, "sha256: is required for a file that is fetched"),
        ({"url": "MIRROR/w", "sha256": DIGEST, "size": 5}, "url: is fetched; size is of a file that is sent"),
        ({"url": "MIRROR/w", "sha256": DIGEST, "path": "/w"}, "path: is a file of the service's machine; url, size and sha256"),
        ({"url": "MIRROR/nowhere", "sha256": DIGEST}, "url: 127.0.0.1"),
    ],
)
def test_a_request_that_cannot_be_says_which_field_and_why(fetching_service, trusted, body, why):
    body = {key: value.replace("MIRROR", trusted.url("")) if isinstance(value, str) else value for key, value in body.items()}
    answer = fetching_service.http.post("/checkpoints", json={"name": "far", **body})
    assert (answer.status_code, why in answer.json()["detail"]) == (422, True), answer.text
