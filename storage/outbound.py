"""The one guarded door to user-supplied addresses: pictures come in by GET, webhooks go out by POST.

What `ssrfguard` does right is used as it is: one lookup whose every answer is checked, and a connection to the very
address that was checked. Its `requests` session is not: `requests` reads the whole body of a redirect, and its
time-outs start anew with every received byte. So the exchange is made here with `http.client`, under one deadline for
everything.
"""

from __future__ import annotations

import io
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse
from ipaddress import IPv4Network, IPv6Network
from threading import BoundedSemaphore, Thread
from typing import Any, Final, cast

import certifi
import ssrfguard
import urllib3
from ssrfguard import BlockedAddressError, Target

from storage.outbound_rules import AddressRules, OutboundRefused, Place, joined, not_public

__all__ = ["Answer", "Fetched", "OutboundDoor", "OutboundFailed", "OutboundReason", "OutboundRefused"]

MAX_REDIRECTS: Final = 3
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_MAX_ANSWER_BYTES: Final = 1 << 20
_CHUNK_BYTES: Final = 1 << 16
_MAX_ADDRESSES: Final = 4
_MAX_LOOKUPS: Final = 64
_USER_AGENT: Final = "inpaintd"


class OutboundReason(StrEnum):
    UNRESOLVED = "unresolved"
    UNREACHABLE = "unreachable"
    TIMED_OUT = "timed_out"
    TOO_LARGE = "too_large"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    BAD_STATUS = "bad_status"


_SENTENCES: Final = {
    OutboundReason.UNRESOLVED: "the address's host name does not resolve",
    OutboundReason.UNREACHABLE: "the address cannot be reached",
    OutboundReason.TIMED_OUT: "the address did not answer in time",
    OutboundReason.TOO_LARGE: "the address answered with too many bytes",
    OutboundReason.TOO_MANY_REDIRECTS: f"the address redirects more than {MAX_REDIRECTS} times",
    OutboundReason.BAD_STATUS: "the address answered with status",
}


class OutboundFailed(Exception):
    """The address was called and did not give what was asked. The text is safe to show.

    `status` is the HTTP status where one had come by then.
    """

    def __init__(self, reason: OutboundReason, *, status: int | None = None, detail: str = "") -> None:
        sentence = _SENTENCES[reason]
        if reason is OutboundReason.BAD_STATUS:
            sentence += f" {status}"
        super().__init__(f"{sentence}: {detail}" if detail else sentence)
        self.reason = reason
        self.status = status


@dataclass(frozen=True)
class Fetched:
    data: bytes
    content_type: str
    """The media type alone, in lower case; empty where the server names none."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    """Names are found in any case."""


@dataclass(frozen=True)
class _Deadline:
    at: float

    def left(self) -> float:
        seconds = self.at - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("the deadline has passed")
        return seconds


class OutboundDoor:
    """Opens addresses that strangers name, where they are public or in `allowed_private_networks`: see AddressRules.

    `look_up` stands in for `socket.getaddrinfo`; what it answers is checked all the same. Safe to share between
    threads; every call opens and closes its own connection. No proxy, no netrc, no cookie is ever used.
    """

    def __init__(
        self,
        *,
        allowed_private_networks: Sequence[IPv4Network | IPv6Network] = (),
        look_up: Callable[..., Any] = socket.getaddrinfo,
    ) -> None:
        self._rules = AddressRules(allowed_private_networks)
        self._look_up = look_up
        self._lookups = BoundedSemaphore(_MAX_LOOKUPS)
        self._tls = ssl.create_default_context()
        self._tls.load_verify_locations(certifi.where())

    def check(self, url: str) -> None:
        """Raise `OutboundRefused` for what the address itself gives away. No I/O: where a name leads is seen later."""
        self._rules.read(url)

    def get(self, url: str, *, max_bytes: int, timeout_seconds: float) -> Fetched:
        """The decoded body of a 2xx answer, after at most `MAX_REDIRECTS` redirects, each checked like the first.

        `timeout_seconds` is for everything together: names, connections, redirects and the last byte.
        Raises `OutboundRefused` and `OutboundFailed`.
        """
        deadline = _Deadline(time.monotonic() + timeout_seconds)
        headers = {"accept": "image/*, */*;q=0.5"}
        for _ in range(MAX_REDIRECTS + 1):
            with self._exchange("GET", url, None, headers, deadline) as answer:
                location = answer.getheader("location")
                if answer.status in _REDIRECTS and location:
                    url = joined(url, location)
                    continue
                if not 200 <= answer.status < 300:  # noqa: PLR2004 - the class of successes
                    raise OutboundFailed(OutboundReason.BAD_STATUS, status=answer.status)
                media_type = (answer.getheader("content-type") or "").partition(";")[0].strip().lower()
                return Fetched(data=_body(answer, max_bytes), content_type=media_type)
        raise OutboundFailed(OutboundReason.TOO_MANY_REDIRECTS)

    def post(self, url: str, *, body: bytes, headers: Mapping[str, str], timeout_seconds: float) -> Answer:
        """Send `body` and return the status and headers, whatever they are; a redirect is an answer like others.

        The answer's body is read, up to 1 MiB, and dropped. Raises `OutboundRefused` and `OutboundFailed`.
        """
        deadline = _Deadline(time.monotonic() + timeout_seconds)
        with self._exchange("POST", url, body, headers, deadline) as answer:
            # Who hangs up over a body that nobody wants has answered all the same.
            with suppress(urllib3.exceptions.ProtocolError, urllib3.exceptions.DecodeError):
                _body(answer, _MAX_ANSWER_BYTES)
            return Answer(status=answer.status, headers=_headers(answer))

    @contextmanager
    def _exchange(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], deadline: _Deadline
    ) -> Iterator[HTTPResponse]:
        """One request and the head of its answer; the connection is closed at the end of the block."""
        place = self._rules.read(url)
        status = None
        try:
            with closing(self._connect(place.target, deadline)) as connected:
                answer = _ask(connected, method, place, body, headers, deadline=deadline)
                status = answer.status
                yield answer
        except (TimeoutError, urllib3.exceptions.ReadTimeoutError) as error:
            raise OutboundFailed(OutboundReason.TIMED_OUT, status=status) from error
        except ssl.SSLCertVerificationError as error:
            detail = f"its certificate is not accepted ({error.verify_message})"
            raise OutboundFailed(OutboundReason.UNREACHABLE, detail=detail) from error
        except (OSError, HTTPException, urllib3.exceptions.HTTPError) as error:
            raise OutboundFailed(OutboundReason.UNREACHABLE, status=status) from error

    def _connect(self, target: Target, deadline: _Deadline) -> socket.socket:
        """Connect to an address of the one lookup; the certificate is held against the name, not the address."""
        addresses = self._resolve(target, deadline)[:_MAX_ADDRESSES]
        for tried, address in enumerate(addresses):
            share_seconds = deadline.left() / (len(addresses) - tried)
            try:
                connected = ssrfguard.connect((address,), policy=self._rules.policy, timeout=share_seconds)
                break
            except BlockedAddressError:
                raise not_public() from None
            except OSError:
                if tried + 1 == len(addresses):
                    raise
        if target.scheme == "http":
            return connected
        try:
            connected.settimeout(deadline.left())
            return self._tls.wrap_socket(connected, server_hostname=target.host.rstrip("."))
        except BaseException:
            connected.close()
            raise

    def _resolve(self, target: Target, deadline: _Deadline) -> tuple[ssrfguard.Address, ...]:
        look_up = socket.getaddrinfo if target.is_literal_address else partial(self._look_up_until, deadline)
        try:
            addresses = ssrfguard.resolve(target, policy=self._rules.policy, resolver=look_up)
        except BlockedAddressError:
            raise not_public() from None
        except (socket.gaierror, UnicodeError) as error:
            raise OutboundFailed(OutboundReason.UNRESOLVED) from error
        for address in addresses:
            self._rules.check_port(target.port, address.ip)
        return addresses

    def _look_up_until(self, deadline: _Deadline, *question: object) -> Any:
        """The system's lookup takes no deadline, so it is waited for in a thread that may outlive the call.

        It ends by itself (glibc gives up within half a minute or so); how many there are at a time is bounded.
        """
        if not self._lookups.acquire(timeout=deadline.left()):
            raise TimeoutError("too many lookups hang")
        answer: Future[Any] = Future()

        def look_up() -> None:
            try:
                answer.set_result(list(self._look_up(*question)))
            except Exception as error:  # noqa: BLE001 - raised again where it is waited for
                answer.set_exception(error)
            finally:
                self._lookups.release()

        Thread(target=look_up, name="look-up", daemon=True).start()
        return answer.result(timeout=deadline.left())


class _TimedReader(io.RawIOBase):
    """A socket's bytes under one deadline: a server that sends a byte now and then gains nothing by it."""

    def __init__(self, connected: socket.socket, deadline: _Deadline) -> None:
        self._connected = connected
        self._deadline = deadline

    def makefile(self, mode: str) -> io.BufferedReader:
        """All that `HTTPResponse` asks of a socket."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connected.settimeout(self._deadline.left())
        return self._connected.recv_into(buffer)


def _ask(
    connected: socket.socket,
    method: str,
    place: Place,
    body: bytes | None,
    headers: Mapping[str, str],
    *,
    deadline: _Deadline,
) -> HTTPResponse:
    own = {
        "host": place.host_header,
        "user-agent": _USER_AGENT,
        "accept-encoding": "identity",
        "connection": "close",
    }
    connected.settimeout(deadline.left())
    connection = HTTPConnection(place.target.host, place.target.port)
    connection.sock = connected
    # A server may answer, and stop listening, before it has the whole body.
    with suppress(BrokenPipeError, ConnectionResetError):
        connection.request(method, place.path, body, {**{name.lower(): headers[name] for name in headers}, **own})
    answer = HTTPResponse(cast("socket.socket", _TimedReader(connected, deadline)), method=method)
    answer.begin()
    return answer


def _body(answer: HTTPResponse, max_bytes: int) -> bytes:
    """The body, decoded where the server compressed it unasked; never more than `max_bytes` of it in memory."""
    too_large = OutboundFailed(OutboundReason.TOO_LARGE, status=answer.status)
    if answer.length is not None and answer.length > max_bytes:
        raise too_large
    reader = urllib3.HTTPResponse(body=answer, headers=_headers(answer), status=answer.status, preload_content=False)
    data = bytearray()
    while chunk := reader.read(_CHUNK_BYTES):
        data += chunk
        if len(data) > max_bytes:
            raise too_large
    return bytes(data)


def _headers(answer: HTTPResponse) -> urllib3.HTTPHeaderDict:
    return urllib3.HTTPHeaderDict(answer.headers.items())
