"""gRPC-Web as it is served: both encodings, chunked bodies, streams that flow, clients that hang up, browsers."""

from __future__ import annotations

import base64
import http.client
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from api.dialects.stability.proto import generation_pb2 as wire
from storage.job import JobStatus
from tests.front_end import FakeWorker, FrontEnd, front_end, open_with
from tests.gunicorn_process import serving
from tests.stability import GENERATE, a_request, pictures, text

__all__ = ["front_end", "open_with"]

BINARY, TEXT = "application/grpc-web+proto", "application/grpc-web-text"


def framed(message: wire.Request) -> bytes:
    data = message.SerializeToString()
    return struct.pack(">BI", 0, len(data)) + data


def unframed(body: bytes) -> tuple[list[bytes], dict[str, str]]:
    """The messages of an answer, and its trailers."""
    messages, trailers = [], {}
    while body:
        flag, length = struct.unpack_from(">BI", body)
        data, body = body[5 : 5 + length], body[5 + length :]
        if flag & 0x80:
            lines = [line.partition(":") for line in data.decode().splitlines()]
            trailers = {name: unquote(value) for name, _, value in lines}
            assert not body, "the trailers come last"
        else:
            messages.append(data)
    return messages, trailers


def from_text(body: bytes) -> bytes:
    """Each frame was encoded by itself."""
    return b"".join(base64.b64decode(piece + b"=" * (-len(piece) % 4)) for piece in body.split(b"=") if piece)


def call(
    front_end: FrontEnd, body: bytes, content_type: str = BINARY, path: str = GENERATE, **headers: str
) -> tuple[list[bytes], dict[str, str]]:
    named = {"Authorization": f"Bearer {front_end.key}"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    answer = front_end.client.post(path, data=body, content_type=content_type, headers=named)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    is_text = answer.headers["Content-Type"] == f"{TEXT}+proto"
    assert is_text or answer.headers["Content-Type"] == BINARY
    return unframed(from_text(answer.data) if is_text else answer.data)


def answers_of(messages: list[bytes]) -> list[wire.Answer]:
    return [wire.Answer.FromString(message) for message in messages]


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("content_type", "encode", "accept"),
    [
        (BINARY, bytes, ""),
        ("application/grpc-web", bytes, "*/*"),
        (TEXT, base64.b64encode, ""),
        (f"{TEXT}+proto", base64.b64encode, TEXT),
        (TEXT, lambda body: base64.b64encode(body[:7]) + base64.b64encode(body[7:]), f"{TEXT}, {BINARY}"),
        (TEXT, base64.b64encode, BINARY),
    ],
)
def test_both_encodings_are_read_and_written(
    front_end: FrontEnd, content_type: str, encode: Callable[[bytes], bytes], accept: str
) -> None:
    with FakeWorker(front_end):
        messages, trailers = call(front_end, encode(framed(a_request(samples=2))), content_type, Accept=accept)
    assert [each.seed for each in pictures(answers_of(messages))] == [7, 8]
    assert trailers == {"grpc-status": "0"}


def test_how_a_call_went_is_in_its_trailers(front_end: FrontEnd) -> None:
    bad = [
        (framed(a_request(engine_id="nöpe: 100 %")), {}, "5", "The specified engine (ID nöpe: 100 %) was not found."),
        (framed(a_request(samples=11)), {}, "3", "samples must be between 1 and 10"),
        (framed(a_request()), {"Authorization": "Bearer wrong"}, "16", "the API key is not valid"),
        (framed(a_request()), {"grpc_timeout": "0m"}, "4", "Deadline Exceeded"),
        (b"", {}, "3", "The request is not a message of this method."),
        (b"\0\0\0\0\xffshort", {}, "3", "The request is not a message of this method."),
        (b"\0\0\0\0\x03\xff\xff\xff", {}, "3", "The request is not a message of this method."),
        (b"\1\0\0\0\x01x", {}, "12", "Compressed messages are not read."),
    ]
    for body, headers, status, words in bad:
        messages, trailers = call(front_end, body, **headers)
        assert (trailers["grpc-status"], trailers["grpc-message"]) == (status, words)
        assert not [answer for answer in answers_of(messages) if answer.artifacts]
    _, trailers = call(front_end, b"!!!", TEXT)
    assert trailers["grpc-status"] == "3"
    for path in ("/gooseai.GenerationService/Nothing", "/gooseai.Nothing/Generate"):
        assert call(front_end, framed(a_request()), path=path)[1]["grpc-status"] == "12"


def test_callers_need_a_key_whoever_they_are(front_end: FrontEnd) -> None:
    answer = front_end.client.post(GENERATE, data=framed(a_request()), content_type=BINARY)
    assert unframed(answer.data)[1]["grpc-status"] == "16"


def test_a_message_that_is_too_large_is_refused_in_words_that_clients_look_for(
    open_with: Callable[..., FrontEnd],
) -> None:
    front_end = open_with(max_body_bytes=20_000)
    _, trailers = call(front_end, framed(a_request(text("x" * 30_000))))
    assert trailers["grpc-status"] == "8"
    assert "message larger than max" in trailers["grpc-message"]


def test_a_call_that_runs_out_of_its_time_stops_its_job(front_end: FrontEnd) -> None:
    started = time.monotonic()
    _, trailers = call(front_end, framed(a_request()), grpc_timeout="1500m")
    assert trailers["grpc-status"] == "4"
    assert 1.4 < time.monotonic() - started < 3
    job = front_end.parts.jobs.by_number(1)
    assert job is not None
    assert job.status is JobStatus.CANCELLED


def test_browsers_may_call_from_any_page(front_end: FrontEnd) -> None:
    asked = "authorization,content-type,x-grpc-web,x-user-agent,stability-client-id,stability-channel-id"
    headers = {"Origin": "http://elsewhere", "Access-Control-Request-Method": "POST"}
    answer = front_end.client.options(GENERATE, headers=headers | {"Access-Control-Request-Headers": asked})
    assert answer.status_code == 204
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    allowed = {name.strip() for name in answer.headers["Access-Control-Allow-Headers"].split(",")}
    assert set(asked.split(",")) | {"grpc-timeout", "stability-client-version"} <= allowed
    assert "grpc-status" in answer.headers["Access-Control-Expose-Headers"]


def test_another_verb_is_an_error_in_the_wires_words(front_end: FrontEnd) -> None:
    answer = front_end.client.get(GENERATE)
    assert (answer.status_code, answer.headers["grpc-status"]) == (405, "12")


# -- on real sockets ----------------------------------------------------------------------------


@pytest.fixture
def served(redis_url: str, tmp_path: Path, front_end: FrontEnd) -> Iterator[str]:
    with serving(redis_url, tmp_path) as url:
        yield urlsplit(url).netloc


def a_chunked_call(front_end: FrontEnd, served: str) -> http.client.HTTPConnection:
    body = framed(a_request(samples=2))
    headers = {"Content-Type": BINARY, "X-Grpc-Web": "1", "Authorization": f"Bearer {front_end.key}"}
    connection = http.client.HTTPConnection(served, timeout=20)
    pieces = (body[start : start + 50] for start in range(0, len(body), 50))
    connection.request("POST", GENERATE, body=pieces, headers=headers, encode_chunked=True)
    return connection


def test_a_chunked_body_is_read_and_the_answer_flows(front_end: FrontEnd, served: str) -> None:
    connection = a_chunked_call(front_end, served)
    answer = connection.getresponse()
    assert answer.read1(5)[:1] == b"\0", "a sign of life comes before any picture"
    until(lambda: front_end.parts.jobs.waiting_count() == 1)
    front_end.work_once()
    rest = answer.read()
    assert b"grpc-status:0" in rest
    assert rest.count(b"image/png") == 2
    connection.close()


def test_a_client_that_hangs_up_stops_its_job(front_end: FrontEnd, served: str) -> None:
    connection = a_chunked_call(front_end, served)
    connection.getresponse().read1(5)
    until(lambda: front_end.parts.jobs.waiting_count() == 1)
    connection.close()

    def status() -> JobStatus | None:
        job = front_end.parts.jobs.by_number(1)
        return job and job.status

    until(lambda: status() is JobStatus.CANCELLED, seconds=6)


def test_the_engines_are_listed_over_a_plain_socket(front_end: FrontEnd, served: str) -> None:
    host, port = served.split(":")
    request = (
        f"POST /gooseai.EnginesService/ListEngines HTTP/1.1\r\nHost: {served}\r\nContent-Type: {BINARY}\r\n"
        f"Authorization: Bearer {front_end.key}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request.encode() + b"5\r\n\0\0\0\0\0\r\n0\r\n\r\n")
        received = b""
        while piece := connection.recv(65536):
            received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in head
    assert b"doodle" in body
