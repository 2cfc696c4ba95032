"""Weights from another host: over HTTPS alone, from hosts that the operator allows, and from nowhere they lead to without being allowed.

A service that fetches what it is told to fetch can be made to ask whom its sender cannot reach. So the host is one of a list; the address
that its name stands for is looked at once and then kept, and must be one of the open network's; every redirect is judged anew.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

REDIRECTS = 5
SILENCE_SECONDS = 30.0  # without a byte
FETCH_SECONDS = 1500.0  # that a file may take; a request of the client library waits for 1800
PIECE = 1 << 20  # bytes
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
LEADS_ON = (301, 302, 303, 307, 308)


class FetchError(ValueError):
    """Why nothing is fetched from an address, and what would be right."""


class Place(NamedTuple):
    """An address that may be asked. host: without brackets; target: path and query."""

    host: str
    port: int
    target: str

    @property
    def name(self) -> str:
        """As the operator lists it: `host`, or `host:port` where that is not 443; an IPv6 address in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == 443 else f"{host}:{self.port}"


def allowed(url: str, hosts: Collection[str]) -> Place:
    """Where an address leads. hosts: `host` or `host:port` of those that may be asked. Raises FetchError."""
    try:
        parts = urlsplit(url)
        port = parts.port or 443
    except ValueError as error:
        raise FetchError(f"{url!r} is no address: {error}") from None
    if parts.scheme != "https" or not parts.hostname or not url.isascii() or any(letter.isspace() for letter in url):
        raise FetchError(f"{url!r} is not an address that begins with https://")
    if parts.username is not None or parts.password is not None:
        raise FetchError("an address with a user's name or password in it is not followed; it would be stored")
    place = Place(parts.hostname.lower(), port, (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
    if place.name not in hosts:
        listed = f"allowed are {', '.join(sorted(hosts))}" if hosts else "none is allowed"
        raise FetchError(f"{place.name!r} is no host that checkpoints may come from; {listed} (DETKDS_CHECKPOINT_HOSTS)")
    return place


def fetch(url: str, target: Path, *, hosts: Collection[str], most: int) -> int:
    """Write what an address has to `target`; its bytes, at most `most`. Raises FetchError."""
    deadline = time.monotonic() + FETCH_SECONDS
    for _ in range(REDIRECTS + 1):
        place = allowed(url, hosts)
        connection = Pinned(place)
        try:
            connection.request("GET", place.target, headers={"Accept-Encoding": "identity", "User-Agent": "detkds"})
            answer = connection.getresponse()
            if answer.status in LEADS_ON and (there := answer.getheader("Location")):
                url = urljoin(url, there)
                continue
            if answer.status != 200:
                raise FetchError(f"{place.name} answers {answer.status} {answer.reason}")
            return written(answer, target, most, deadline)
        except (OSError, http.client.HTTPException) as error:
            raise FetchError(f"{place.name} cannot be read from: {str(error) or type(error).__name__}") from None
        finally:
            connection.close()
    raise FetchError(f"it leads on more than {REDIRECTS} times, at last to {url!r}")


def written(answer: http.client.HTTPResponse, target: Path, most: int, deadline: float) -> int:
    """Bytes of an answer's body, written to `target`. Raises FetchError for one that is too long, too slow or cut short."""
    announced = answer.length  # as the head says; http.client counts it down to 0
    if announced is not None and announced > most:
        raise FetchError(f"the file has {announced} bytes; at most {most} are taken")
    count = 0
    with target.open("wb") as file:
        while piece := answer.read1(PIECE):  # what is there: a whole piece may take longer than the deadline
            count += len(piece)
            if count > most:
                raise FetchError(f"the file has more than {most} bytes")
            if time.monotonic() > deadline:
                raise FetchError(f"{count} bytes came in {FETCH_SECONDS:.0f} s; bring it in parts (detkds checkpoints upload)")
            file.write(piece)
    if announced is not None and count != announced:
        raise FetchError(f"it broke off after {count} of {announced} bytes")
    return count


class Pinned(http.client.HTTPSConnection):
    """A connection to the very address that was looked at; a name that stands for another one a moment later gains nothing."""

    def __init__(self, place: Place) -> None:
        super().__init__(place.host, place.port, timeout=SILENCE_SECONDS)
        self._verified = ssl.create_default_context()  # the machine's authorities, or those of SSL_CERT_FILE

    def connect(self) -> None:
        """Raises OSError, FetchError."""
        plain = socket.create_connection((address_of(self.host, self.port), self.port), timeout=SILENCE_SECONDS)
        try:
            self.sock = self._verified.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise


def address_of(host: str, port: int) -> str:
    """The first address of a host, all of which have to be the open network's; one that the operator lists as an address is what it is.

    Raises FetchError, OSError.
    """
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for address in found:
        one = ipaddress.ip_address(address.partition("%")[0])
        if not one.is_global or one.is_multicast or (isinstance(one, ipaddress.IPv6Address) and inner(one)):
            raise FetchError(f"{host} stands for {address}, which is not of the open network; list that address itself to allow it")
    return found[0]


def inner(address: ipaddress.IPv6Address) -> bool:
    """Whether it is an IPv4 address in other clothes, which may lead anywhere."""
    return address in NAT64 or any(one is not None for one in (address.ipv4_mapped, address.sixtofour, address.teredo))
