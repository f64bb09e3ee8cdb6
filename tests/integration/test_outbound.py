"""The door against real servers: hostile web servers, a hostile name server, certificates that do not fit."""

from __future__ import annotations

import gzip
import socket
import ssl
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address, ip_network
from pathlib import Path

import pytest
import trustme
from ssrfguard.resolvers import UdpResolver

from storage.outbound import Answer, Fetched, OutboundDoor, OutboundFailed, OutboundReason, OutboundRefused

LOOPBACK = [IPv4Network("127.0.0.0/8")]
PICTURE = b"\x89PNG and so on"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n" % len(PICTURE) + PICTURE

Behaviour = Callable[[socket.socket, bytes], None]


class WebServer:
    """A TCP server on a free port that does to each connection whatever the test wants, once the head is read."""

    def __init__(self, behave: Behaviour, *, tls: ssl.SSLContext | None = None, reads_bodies: bool = True) -> None:
        self._behave = behave
        self._reads_bodies = reads_bodies
        self._tls = tls
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self.heads: list[bytes] = []
        self.closed = threading.Event()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def stop(self) -> None:
        self._over.set()
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def pause(self, seconds: float) -> bool:
        """False once the server is being stopped."""
        return not self._over.wait(seconds)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._converse, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _converse(self, plain: socket.socket) -> None:
        plain.settimeout(10)
        with suppress(OSError), ExitStack() as stack:
            connection = stack.enter_context(plain)
            if self._tls is not None:
                connection = stack.enter_context(self._tls.wrap_socket(connection, server_side=True))
            head = b""
            while b"\r\n\r\n" not in head:
                part = connection.recv(65536)
                if not part:
                    return
                head += part
            if self._reads_bodies:
                head += _rest_of_body(connection, head)
            self.heads.append(head)
            self._behave(connection, head)
        self.closed.set()


def _rest_of_body(connection: socket.socket, request: bytes) -> bytes:
    head, _, body = request.partition(b"\r\n\r\n")
    lengths = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    rest = b""
    while lengths and len(body) + len(rest) < lengths[0]:
        rest += connection.recv(65536)
    return rest


def answering(answer: bytes) -> Behaviour:
    return lambda connection, head: connection.sendall(answer)


_answer_ok = answering(OK)


@pytest.fixture
def serve() -> Iterator[Callable[..., WebServer]]:
    servers: list[WebServer] = []

    def start(behave: Behaviour = _answer_ok, **options: object) -> WebServer:
        servers.append(WebServer(behave, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def door() -> OutboundDoor:
    return OutboundDoor(allowed_private_networks=LOOPBACK)


def get(door: OutboundDoor, url: str, *, max_bytes: int = 10_000, timeout_seconds: float = 5) -> Fetched:
    return door.get(url, max_bytes=max_bytes, timeout_seconds=timeout_seconds)


def post(door: OutboundDoor, url: str, *, body: bytes = b"{}", timeout_seconds: float = 5) -> Answer:
    headers = {"Content-Type": "application/json", "Webhook-Id": "msg_1"}
    return door.post(url, body=body, headers=headers, timeout_seconds=timeout_seconds)


def fails(call: Callable[[], object]) -> OutboundFailed:
    with pytest.raises(OutboundFailed) as caught:
        call()
    return caught.value


# ---- plain exchanges


def test_a_picture_is_fetched_from_an_allowed_network(door: OutboundDoor, serve: Callable[..., WebServer]) -> None:
    server = serve()
    assert get(door, f"{server.url}/a/b.png?signature=x%2Fy&z=ä b".replace(" ", "%20")) == Fetched(
        data=PICTURE, content_type="image/png"
    )
    head = server.heads[0].decode().lower()
    assert head.startswith("get /a/b.png?signature=x%2fy&z=%c3%a4%20b http/1.1\r\n")
    assert f"\r\nhost: 127.0.0.1:{server.port}\r\n" in head
    assert "\r\naccept-encoding: identity\r\n" in head
    assert "\r\nconnection: close\r\n" in head
    assert server.closed.wait(5)


def test_without_the_setting_nothing_private_is_fetched_or_posted_to(serve: Callable[..., WebServer]) -> None:
    server = serve()
    door = OutboundDoor()
    for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "0177.1", "[::ffff:127.0.0.1]", "0.0.0.0"):
        url = f"http://{host}:{server.port}/"
        with pytest.raises(OutboundRefused):
            get(door, url)
        with pytest.raises(OutboundRefused):
            post(door, url)
    assert server.heads == []


def test_this_machines_name_is_fetched_where_loopback_is_allowed(serve: Callable[..., WebServer]) -> None:
    door = OutboundDoor(allowed_private_networks=[*LOOPBACK, ip_network("::1/128")])
    assert get(door, f"http://localhost:{serve().port}/").data == PICTURE


@pytest.mark.parametrize("status", [201, 203, 206])
def test_every_2xx_is_a_success(door: OutboundDoor, serve: Callable[..., WebServer], status: int) -> None:
    server = serve(answering(OK.replace(b"200", str(status).encode())))
    assert get(door, server.url).data == PICTURE


@pytest.mark.parametrize("status", [300, 304, 305, 400, 401, 403, 404, 410, 429, 500, 503])
def test_another_status_is_a_failure_that_names_it(
    door: OutboundDoor, serve: Callable[..., WebServer], status: int
) -> None:
    server = serve(answering(b"HTTP/1.1 %d Oh\r\nContent-Length: 0\r\n\r\n" % status))
    failed = fails(lambda: get(door, f"{server.url}/?token=hunter2"))
    assert (failed.reason, failed.status) == (OutboundReason.BAD_STATUS, status)
    assert "hunter2" not in str(failed)


def test_a_body_that_ends_with_the_connection_is_fetched(door: OutboundDoor, serve: Callable[..., WebServer]) -> None:
    server = serve(answering(b"HTTP/1.0 200 OK\r\n\r\n" + PICTURE))
    assert get(door, server.url) == Fetched(data=PICTURE, content_type="")


def test_a_chunked_body_is_fetched(door: OutboundDoor, serve: Callable[..., WebServer]) -> None:
    body = b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n"
    server = serve(answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body))
    assert get(door, server.url).data == b"hello world"


def test_the_media_type_is_given_without_its_parameters(door: OutboundDoor, serve: Callable[..., WebServer]) -> None:
    server = serve(answering(OK.replace(b"image/png", b"Text/HTML; charset=utf-8")))
    assert get(door, server.url).content_type == "text/html"


def test_interim_answers_are_skipped(door: OutboundDoor, serve: Callable[..., WebServer]) -> None:
    server = serve(answering(b"HTTP/1.1 100 Continue\r\n\r\n" + OK))
    assert get(door, server.url).data == PICTURE


def test_proxies_and_netrc_of_the_environment_are_never_used(
    serve: Callable[..., WebServer], door: OutboundDoor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    proxy = serve(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nproxy"))
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password hunter2\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.url)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    server = serve()
    assert get(door, server.url).data == PICTURE
    assert post(door, server.url).status == 200
    assert proxy.heads == []
    assert b"authorization" not in b"".join(server.heads).lower()


def test_cookies_are_not_kept_between_calls_or_redirects(door: OutboundDoor, serve: Callable[..., WebServer]) -> None:
    def behave(connection: socket.socket, head: bytes) -> None:
        answer = OK.replace(b"200 OK", b"200 OK\r\nSet-Cookie: a=b")
        if head.startswith(b"GET /first"):
            answer = b"HTTP/1.1 302 Found\r\nSet-Cookie: c=d\r\nLocation: /second\r\nContent-Length: 0\r\n\r\n"
        connection.sendall(answer)

    server = serve(behave)
    get(door, f"{server.url}/first")
    get(door, f"{server.url}/second")
    assert len(server.heads) == 3
    assert b"cookie" not in b"".join(server.heads).lower()


def test_many_threads_share_one_door(door: OutboundDoor, serve: Callable[..., WebServer]) -> None:
    server = serve(lambda connection, head: connection.sendall(OK.replace(PICTURE, head[5 : 5 + len(PICTURE)])))
    with ThreadPoolExecutor(16) as threads:
        paths = [f"{number:0{len(PICTURE)}}" for number in range(200)]
        fetched = list(threads.map(lambda path: get(door, f"{server.url}/{path}").data.decode(), paths))
    assert fetched == paths


# ---- redirects


def redirect(location: str, *, status: int = 302, body: bytes = b"") -> bytes:
    head = f"HTTP/1.1 {status} Elsewhere\r\nLocation: {location}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed(door: OutboundDoor, serve: Callable[..., WebServer], status: int) -> None:
    target = serve()
    server = serve(answering(redirect(f"{target.url}/picture.png", status=status)))
    assert get(door, server.url).data == PICTURE
    assert target.heads[0].startswith(b"GET /picture.png ")


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("/b.png", b"/b.png"),
        ("b.png?x=1", b"/a/b.png?x=1"),
        ("../b.png", b"/b.png"),
        ("?x", b"/a/start?x"),
        ("/with blank/ä.png", b"/with%20blank/%C3%A4.png"),
        ("//127.0.0.1:{port}/b.png", b"/b.png"),
    ],
)
def test_a_relative_redirect_is_followed(
    door: OutboundDoor, serve: Callable[..., WebServer], location: str, path: bytes
) -> None:
    def behave(connection: socket.socket, head: bytes) -> None:
        first = head.startswith(b"GET /a/start ")
        connection.sendall(redirect(location.format(port=server.port)) if first else OK)

    server = serve(behave)
    assert get(door, f"{server.url}/a/start").data == PICTURE
    assert server.heads[1].split(b" ")[1] == path


def test_three_redirects_are_followed_and_a_fourth_is_not(door: OutboundDoor, serve: Callable[..., WebServer]) -> None:
    def behave(connection: socket.socket, head: bytes) -> None:
        left = int(head.split(b" ")[1][1:])
        connection.sendall(redirect(f"/{left - 1}") if left else OK)

    server = serve(behave)
    assert get(door, f"{server.url}/3").data == PICTURE
    assert len(server.heads) == 4
    assert fails(lambda: get(door, f"{server.url}/4")).reason is OutboundReason.TOO_MANY_REDIRECTS
    assert len(server.heads) == 8


def test_a_redirect_to_itself_ends(door: OutboundDoor, serve: Callable[..., WebServer]) -> None:
    server = serve(answering(redirect("/")))
    assert fails(lambda: get(door, server.url)).reason is OutboundReason.TOO_MANY_REDIRECTS
    assert len(server.heads) == 4


@pytest.mark.parametrize(
    "location",
    [
        "http://10.0.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]/",
        "http://[::ffff:10.0.0.1]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://8.8.8.8:22/",
        "http://user@example.com/",
        "//10.0.0.1/",
        "file:///etc/passwd",
        "ftp://example.com/a.png",
        "http://[broken/",
        "gopher://127.0.0.1/",
    ],
)
def test_a_redirect_to_where_a_first_address_may_not_lead_is_refused(
    door: OutboundDoor, serve: Callable[..., WebServer], location: str
) -> None:
    server = serve(answering(redirect(location)))
    with pytest.raises(OutboundRefused):
        get(door, server.url)


def test_a_redirect_without_a_location_is_a_bad_status(door: OutboundDoor, serve: Callable[..., WebServer]) -> None:
    server = serve(answering(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"))
    failed = fails(lambda: get(door, server.url))
    assert (failed.reason, failed.status) == (OutboundReason.BAD_STATUS, 302)


def test_the_body_of_a_redirect_is_not_read(door: OutboundDoor, serve: Callable[..., WebServer]) -> None:
    def behave(connection: socket.socket, head: bytes) -> None:
        if head.startswith(b"GET /target "):
            connection.sendall(OK)
            return
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /target\r\n\r\n")
        while server.pause(0.01):
            connection.sendall(b"x" * 65536)

    server = serve(behave)
    assert get(door, server.url, timeout_seconds=2).data == PICTURE


# ---- too much


def test_a_body_that_says_it_is_too_large_is_not_read(door: OutboundDoor, serve: Callable[..., WebServer]) -> None:
    server = serve(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\nx"))
    started = time.monotonic()
    failed = fails(lambda: get(door, server.url))
    assert (failed.reason, failed.status) == (OutboundReason.TOO_LARGE, 200)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("length", [b"", b"Content-Length: -1\r\n", b"Content-Length: many\r\n"])
def test_an_endless_body_is_cut_off(door: OutboundDoor, serve: Callable[..., WebServer], length: bytes) -> None:
    sent = 0

    def behave(connection: socket.socket, head: bytes) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n")
        while server.pause(0):
            connection.sendall(b"x" * 65536)
            sent += 65536

    server = serve(behave)
    assert fails(lambda: get(door, server.url, max_bytes=100_000)).reason is OutboundReason.TOO_LARGE
    assert server.closed.wait(5)
    assert sent < 20_000_000


def test_endless_chunks_are_cut_off(door: OutboundDoor, serve: Callable[..., WebServer]) -> None:
    def behave(connection: socket.socket, head: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while server.pause(0):
            connection.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")

    server = serve(behave)
    assert fails(lambda: get(door, server.url, max_bytes=100_000)).reason is OutboundReason.TOO_LARGE


def test_exactly_the_allowed_bytes_pass_and_one_more_does_not(
    door: OutboundDoor, serve: Callable[..., WebServer]
) -> None:
    server = serve(answering(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1000))
    assert len(get(door, server.url, max_bytes=1000).data) == 1000
    assert fails(lambda: get(door, server.url, max_bytes=999)).reason is OutboundReason.TOO_LARGE


def _deflated(data: bytes) -> bytes:
    return zlib.compress(data)


@pytest.mark.parametrize(("encoding", "compress"), [(b"gzip", gzip.compress), (b"deflate", _deflated)])
def test_compression_nobody_asked_for_is_undone_up_to_the_limit(
    door: OutboundDoor, serve: Callable[..., WebServer], encoding: bytes, compress: Callable[[bytes], bytes]
) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: " + encoding + b"\r\n\r\n"
    small = serve(answering(head + compress(PICTURE)))
    assert get(door, small.url).data == PICTURE
    bomb = serve(answering(head + compress(bytes(300_000_000))))
    started = time.monotonic()
    assert fails(lambda: get(door, bomb.url, max_bytes=1_000_000)).reason is OutboundReason.TOO_LARGE
    assert time.monotonic() - started < 1


def test_a_bomb_in_a_bomb_is_cut_off(door: OutboundDoor, serve: Callable[..., WebServer]) -> None:
    bomb = gzip.compress(gzip.compress(bytes(300_000_000)))
    server = serve(answering(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip, gzip\r\n\r\n" + bomb))
    assert fails(lambda: get(door, server.url, max_bytes=1_000_000)).reason is OutboundReason.TOO_LARGE


# ---- too slow


def drip(server_of: Callable[[], WebServer], start: bytes, piece: bytes, *, every_seconds: float = 0.05) -> Behaviour:
    def behave(connection: socket.socket, head: bytes) -> None:
        connection.sendall(start)
        while server_of().pause(every_seconds):
            connection.sendall(piece)

    return behave


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"", b""),
        (b"", b"H"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
    ],
)
def test_a_server_that_hangs_or_drips_is_left_at_the_deadline(
    door: OutboundDoor, serve: Callable[..., WebServer], start: bytes, piece: bytes
) -> None:
    server: WebServer = serve(drip(lambda: server, start, piece))
    for call in (
        lambda: get(door, server.url, timeout_seconds=0.4),
        lambda: post(door, server.url, timeout_seconds=0.4),
    ):
        started = time.monotonic()
        assert fails(call).reason is OutboundReason.TIMED_OUT
        assert 0.35 < time.monotonic() - started < 0.9


def test_the_deadline_is_one_for_all_redirects(door: OutboundDoor, serve: Callable[..., WebServer]) -> None:
    def behave(connection: socket.socket, head: bytes) -> None:
        server.pause(0.3)
        connection.sendall(redirect("/"))

    server = serve(behave)
    started = time.monotonic()
    assert fails(lambda: get(door, server.url, timeout_seconds=0.5)).reason is OutboundReason.TIMED_OUT
    assert time.monotonic() - started < 0.8


def test_a_receiver_that_takes_no_bytes_is_left_at_the_deadline(door: OutboundDoor) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        started = time.monotonic()
        failed = fails(lambda: post(door, url, body=bytes(50_000_000), timeout_seconds=0.4))
        assert failed.reason is OutboundReason.TIMED_OUT
        assert time.monotonic() - started < 1


def test_a_full_backlog_is_left_at_the_deadline(door: OutboundDoor) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        address = server.getsockname()
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(address)
        failed = fails(lambda: get(door, f"http://127.0.0.1:{address[1]}/", timeout_seconds=0.4))
        assert failed.reason is OutboundReason.TIMED_OUT


# ---- broken


def test_a_closed_port_is_unreachable(door: OutboundDoor) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert fails(lambda: get(door, f"http://127.0.0.1:{port}/")).reason is OutboundReason.UNREACHABLE


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\ncut short",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nwhich",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nnot gzip at all",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip, gzip, gzip, gzip, gzip, gzip, gzip\r\n\r\nx",
    ],
)
def test_an_answer_that_is_broken_is_unreachable(
    door: OutboundDoor, serve: Callable[..., WebServer], answer: bytes
) -> None:
    failed = fails(lambda: get(door, f"{serve(answering(answer)).url}/?token=hunter2"))
    assert failed.reason is OutboundReason.UNREACHABLE
    assert "hunter2" not in str(failed)


# ---- webhooks


def test_a_webhook_is_posted_whole_with_its_headers(door: OutboundDoor, serve: Callable[..., WebServer]) -> None:
    body = b'{"status": "success"}'

    server = serve(answering(b"HTTP/1.1 202 Accepted\r\nRetry-After: 7\r\nContent-Length: 2\r\n\r\nok"))
    answer = post(door, f"{server.url}/hook?x=1", body=body)
    assert answer.status == 202
    assert (answer.headers["Retry-After"], answer.headers["retry-after"]) == ("7", "7")
    assert answer.headers.get("location") is None
    head = server.heads[-1].decode().lower()
    assert head.startswith("post /hook?x=1 http/1.1\r\n")
    assert "\r\ncontent-type: application/json\r\n" in head
    assert "\r\nwebhook-id: msg_1\r\n" in head
    assert f"\r\ncontent-length: {len(body)}\r\n" in head
    assert head.endswith(body.decode())


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_webhook_does_not_follow_a_redirect_and_says_where_it_led(
    door: OutboundDoor, serve: Callable[..., WebServer], status: int
) -> None:
    other = serve()
    server = serve(answering(redirect(f"{other.url}/", status=status)))
    answer = post(door, server.url)
    assert (answer.status, answer.headers["Location"]) == (status, f"{other.url}/")
    assert other.heads == []


@pytest.mark.parametrize("status", [200, 204, 400, 410, 500])
def test_a_webhooks_status_is_returned_whatever_it_is(
    door: OutboundDoor, serve: Callable[..., WebServer], status: int
) -> None:
    server = serve(answering(b"HTTP/1.1 %d Oh\r\n\r\n" % status))
    assert post(door, server.url).status == status


def test_an_answer_counts_though_the_receiver_hangs_up_without_reading(
    door: OutboundDoor, serve: Callable[..., WebServer]
) -> None:
    def behave(connection: socket.socket, head: bytes) -> None:
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 500\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        server.pause(0.2)

    server = serve(behave, reads_bodies=False)
    assert post(door, server.url, body=bytes(3_000_000)).status == 413


def test_a_webhooks_answer_may_be_a_page_but_not_endless(door: OutboundDoor, serve: Callable[..., WebServer]) -> None:
    page = serve(answering(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 500_000))
    assert post(door, page.url).status == 200
    endless = serve(answering(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 3_000_000))
    failed = fails(lambda: post(door, endless.url))
    assert (failed.reason, failed.status) == (OutboundReason.TOO_LARGE, 200)


# ---- names: a real name server that lies


@dataclass
class NameServer:
    """Answers A and AAAA questions over UDP: each name has a list of answers, the next one for each A question."""

    answers: dict[str, list[tuple[str, ...]]]
    questions: list[str] = field(default_factory=list)
    silent: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(0.05)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(5)
        self._socket.close()

    def door(self, *, allowed: list[IPv4Network] = LOOPBACK) -> OutboundDoor:
        port = self._socket.getsockname()[1]
        look_up = UdpResolver(
            nameservers=("127.0.0.1",), nameserver_port=port, timeout=2.0, attempt_timeout=2.0, attempts=1
        )
        return OutboundDoor(allowed_private_networks=allowed, look_up=look_up)

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                question, client = self._socket.recvfrom(512)
            except TimeoutError:
                continue
            answer = self._answer(question)
            if answer:
                self._socket.sendto(answer, client)

    def _answer(self, question: bytes) -> bytes | None:
        name, end = _name(question)
        (kind,) = struct.unpack_from("!H", question, end)
        wanted = IPv4Address if kind == 1 else IPv6Address
        if name in self.silent:
            return None
        rounds = self.answers.get(name, [])
        if kind == 1:
            self.questions.append(name)
        turn = min(max(self.questions.count(name), 1), len(rounds)) - 1
        found = [ip_address(text) for text in rounds[turn]] if rounds else []
        records = [address.packed for address in found if isinstance(address, wanted)]
        head = question[:2] + struct.pack("!HHHHH", 0x8180 if rounds else 0x8183, 1, len(records), 0, 0)
        rows = [struct.pack("!HHHIH", 0xC00C, kind, 1, 0, len(data)) + data for data in records]
        return head + question[12 : end + 4] + b"".join(rows)


def _name(question: bytes) -> tuple[str, int]:
    labels, at = [], 12
    while question[at]:
        labels.append(question[at + 1 : at + 1 + question[at]].decode())
        at += 1 + question[at]
    return ".".join(labels), at + 1


@pytest.fixture
def names() -> Iterator[NameServer]:
    server = NameServer(
        {
            "pictures.test": [("127.0.0.1",)],
            "rebinding.test": [("127.0.0.1",), ("10.0.0.1",)],
            "metadata.test": [("169.254.169.254",)],
            "mixed.test": [("127.0.0.1", "10.0.0.1")],
            "mixed-families.test": [("127.0.0.1", "fd00::1")],
            "public-and-loopback.test": [("8.8.8.8", "127.0.0.1")],
            "loopback6.test": [("::1",)],
            "mapped.test": [("::ffff:10.0.0.1",)],
            "nat64.test": [("64:ff9b::a00:1",)],
            "sixtofour.test": [("2002:a00:1::1",)],
            "second.test": [("127.0.0.2", "127.0.0.1")],
            "redirects.test": [("127.0.0.1",)],
            "public.test": [("8.8.8.8",)],
        },
        silent=frozenset({"silent.test"}),
    )
    yield server
    server.stop()


def test_a_name_is_looked_up_once_and_kept_in_the_host_header(
    names: NameServer, serve: Callable[..., WebServer]
) -> None:
    server = serve()
    assert get(names.door(), f"http://PICTURES.test.:{server.port}/a.png").data == PICTURE
    assert names.questions == ["pictures.test"]
    assert f"\r\nhost: pictures.test:{server.port}\r\n".encode() in server.heads[0].lower()


def test_a_name_that_moves_after_its_first_answer_is_reached_at_the_first_and_then_refused(
    names: NameServer, serve: Callable[..., WebServer]
) -> None:
    server, door = serve(), names.door()
    url = f"http://rebinding.test:{server.port}/"
    assert get(door, url).data == PICTURE
    assert names.questions == ["rebinding.test"]
    with pytest.raises(OutboundRefused, match="not public"):
        get(door, url)


def test_a_name_that_moves_between_a_redirect_and_itself_is_refused(
    names: NameServer, serve: Callable[..., WebServer]
) -> None:
    server = serve(answering(redirect("/again")))
    with pytest.raises(OutboundRefused, match="not public"):
        get(names.door(), f"http://rebinding.test:{server.port}/")
    assert len(server.heads) == 1


@pytest.mark.parametrize(
    "name",
    [
        "metadata.test",
        "mixed.test",
        "mixed-families.test",
        "loopback6.test",
        "mapped.test",
        "nat64.test",
        "sixtofour.test",
    ],
)
def test_a_name_with_any_answer_that_is_not_public_is_refused(
    names: NameServer, serve: Callable[..., WebServer], name: str
) -> None:
    server, door = serve(), names.door()
    for call in (get, post):
        with pytest.raises(OutboundRefused) as caught:
            call(door, f"http://{name}:{server.port}/?token=hunter2")
        assert str(caught.value) == "the address is not public"
    assert server.heads == []


def test_a_name_of_a_public_address_and_of_this_machine_is_refused(
    names: NameServer, serve: Callable[..., WebServer]
) -> None:
    server = serve()
    with pytest.raises(OutboundRefused, match="not public"):
        get(names.door(allowed=[]), f"http://public-and-loopback.test:{server.port}/")
    assert server.heads == []


def test_a_redirect_to_a_name_of_a_private_address_is_refused(
    names: NameServer, serve: Callable[..., WebServer]
) -> None:
    server = serve(answering(redirect("http://metadata.test/latest/meta-data/")))
    with pytest.raises(OutboundRefused, match="not public"):
        get(names.door(), f"http://redirects.test:{server.port}/")


def test_a_foreign_port_of_a_public_name_is_refused_once_the_name_is_known(names: NameServer) -> None:
    """An allowed network may be reached on any port, so the name had to be looked up first."""
    with pytest.raises(OutboundRefused, match="port 6379 is not opened"):
        get(names.door(), "http://public.test:6379/")


def test_the_next_address_is_tried_when_the_first_is_closed(names: NameServer, serve: Callable[..., WebServer]) -> None:
    assert get(names.door(), f"http://second.test:{serve().port}/").data == PICTURE


def test_a_name_that_does_not_exist_is_unresolved(names: NameServer) -> None:
    failed = fails(lambda: get(names.door(), "http://no-such.test/?token=hunter2"))
    assert failed.reason is OutboundReason.UNRESOLVED
    assert "hunter2" not in str(failed)


def test_the_systems_own_lookup_reports_an_unknown_name_too() -> None:
    failed = fails(lambda: get(OutboundDoor(), "http://no-such-name.invalid/", timeout_seconds=3))
    assert failed.reason in {OutboundReason.UNRESOLVED, OutboundReason.TIMED_OUT}


def test_a_name_server_that_says_nothing_is_left_at_the_deadline(names: NameServer) -> None:
    door = names.door()
    started = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
        failures = list(
            threads.map(lambda _: fails(lambda: get(door, "http://silent.test/", timeout_seconds=0.4)).reason, range(8))
        )
    assert set(failures) == {OutboundReason.TIMED_OUT}
    assert time.monotonic() - started < 1
    for thread in threading.enumerate():
        if thread.name == "look-up":
            thread.join(5)


# ---- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL's own variable for the trusted certificates."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))


def server_side(authority: trustme.CA, *identities: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*identities).configure_cert(context)
    return context


@pytest.mark.usefixtures("trusted")
def test_the_certificate_and_the_server_name_are_the_names_not_the_addresses(
    names: NameServer, serve: Callable[..., WebServer], authority: trustme.CA
) -> None:
    asked: list[str | None] = []
    context = server_side(authority, "pictures.test")
    context.sni_callback = lambda connection, name, inner: asked.append(name)
    server = serve(tls=context)
    url = f"https://pictures.test:{server.port}/"
    assert get(names.door(), url).data == PICTURE
    assert post(names.door(), url).status == 200
    assert asked == ["pictures.test", "pictures.test"]


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("identity", ["other.test", "127.0.0.1"])
def test_a_certificate_for_another_name_is_unreachable(
    names: NameServer, serve: Callable[..., WebServer], authority: trustme.CA, identity: str
) -> None:
    server = serve(tls=server_side(authority, identity))
    failed = fails(lambda: get(names.door(), f"https://pictures.test:{server.port}/?token=hunter2"))
    assert failed.reason is OutboundReason.UNREACHABLE
    assert "certificate" in str(failed)
    assert "hunter2" not in str(failed)
    assert server.heads == []


def test_a_certificate_of_an_unknown_authority_is_unreachable(
    names: NameServer, serve: Callable[..., WebServer], authority: trustme.CA
) -> None:
    server = serve(tls=server_side(authority, "pictures.test"))
    for call in (get, post):
        failed = fails(lambda call=call: call(names.door(), f"https://pictures.test:{server.port}/"))
        assert failed.reason is OutboundReason.UNREACHABLE
        assert "certificate is not accepted" in str(failed)
    assert server.heads == []


def test_a_server_that_speaks_no_tls_is_unreachable(door: OutboundDoor, serve: Callable[..., WebServer]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as threads:
        threads.submit(_answer_in_plain, server)
        failed = fails(lambda: get(door, f"https://127.0.0.1:{server.getsockname()[1]}/"))
    assert failed.reason is OutboundReason.UNREACHABLE


def test_a_handshake_that_hangs_is_left_at_the_deadline(door: OutboundDoor) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        started = time.monotonic()
        url = f"https://127.0.0.1:{server.getsockname()[1]}/"
        assert fails(lambda: get(door, url, timeout_seconds=0.4)).reason is OutboundReason.TIMED_OUT
        assert time.monotonic() - started < 0.9


@pytest.mark.usefixtures("trusted")
def test_a_drip_inside_tls_is_left_at_the_deadline(serve: Callable[..., WebServer], authority: trustme.CA) -> None:
    start = b"HTTP/1.1 200 OK\r\n\r\n"
    server: WebServer = serve(drip(lambda: server, start, b"x"), tls=server_side(authority, "127.0.0.1"))
    door = OutboundDoor(allowed_private_networks=LOOPBACK)
    started = time.monotonic()
    failed = fails(lambda: get(door, server.url, timeout_seconds=0.5))
    assert (failed.reason, failed.status) == (OutboundReason.TIMED_OUT, 200)
    assert time.monotonic() - started < 1


def _answer_in_plain(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
