"""gRPC-Web: the servicer's calls in HTTP/1.1, framed as bytes or as base64 text.

Source: the protocol's description, https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md.
"""

from __future__ import annotations

import base64
import binascii
import functools
import re
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from urllib.parse import quote

from flask import Blueprint, Response, request
from google.protobuf.message import DecodeError
from werkzeug.datastructures import Headers
from werkzeug.exceptions import RequestEntityTooLarge

from api.callers import raw_body
from api.dialects.stability.calls import Call
from api.dialects.stability.errors import Code, WireStatus
from api.dialects.stability.servicer import SERVICES, Method, answers, unknown_method
from api.parts import Parts, parts

BINARY, TEXT = "application/grpc-web", "application/grpc-web-text"
FRAME = struct.Struct(">BI")
MESSAGE_FLAG, COMPRESSED_FLAG, TRAILERS_FLAG = 0x00, 0x01, 0x80
BASE64_PIECE = re.compile(rb"[^=]+={0,2}")
TIMEOUT = re.compile(r"(\d{1,8})([HMSmun])", re.ASCII)
SECONDS_PER_UNIT = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
# What a browser's page may send and read; its origin does not matter, since nothing here goes by cookies.
CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, OPTIONS",
    "Access-Control-Allow-Headers": "authorization, content-type, grpc-timeout, x-grpc-web, x-user-agent, "
    "stability-client-id, stability-client-version, stability-channel-id",
    "Access-Control-Expose-Headers": "grpc-status, grpc-message",
    "Access-Control-Max-Age": "86400",
}

blueprint = Blueprint("stability", __name__)


@blueprint.route("/gooseai.<service>/<name>", methods=["POST"], provide_automatic_options=False)
def serve(service: str, name: str) -> Response:
    """Always HTTP 200: how a call went is in its trailers."""
    asked, accepted = request.content_type or "", request.headers.get("Accept", "")
    is_text = TEXT in accepted or (TEXT in asked and BINARY not in accepted.replace(TEXT, ""))
    content_type = f"{TEXT if is_text else BINARY}+proto"
    method = SERVICES.get(f"gooseai.{service}", {}).get(name)
    call = _call(request.headers)
    frames = _frames(parts(), call, method, functools.partial(_read_message, is_text=asked.startswith(TEXT)))
    # The body is read now, as long as the connection is the request's.
    first = next(frames)
    stream = _encoded(first, frames, is_text=is_text)
    return Response(stream, content_type=content_type, headers=CORS)


@blueprint.route("/gooseai.<service>/<name>", methods=["OPTIONS"])
def preflight(service: str, name: str) -> Response:
    """What browsers ask before they let a page of another site call."""
    return Response(status=204, headers=CORS)


def _call(headers: Headers) -> Call:
    """A page of any site can send a call here from its visitor's browser: a key is always needed."""
    given = TIMEOUT.fullmatch(headers.get("grpc-timeout", ""))
    seconds = int(given[1]) * SECONDS_PER_UNIT[given[2]] if given else None
    return Call(
        {name.lower(): value for name, value in headers.items()},
        needs_key=True,
        deadline=None if seconds is None else time.monotonic() + seconds,
    )


def _frames(all_parts: Parts, call: Call, method: Method | None, read: Callable[[Method], Any]) -> Iterator[bytes]:
    """The frames of the answer: messages, and the trailers at last."""
    try:
        if method is None:
            raise unknown_method()
        with closing(answers(all_parts, call, method, read(method))) as messages:  # type: ignore[type-var]  # a generator
            for message in messages:
                yield _frame(MESSAGE_FLAG, message.SerializeToString())
    except WireStatus as status:
        yield _trailers(status.code.value[0], status.message)
    else:
        yield _trailers(Code.OK.value[0], "")


def _encoded(first: bytes, frames: Iterator[bytes], *, is_text: bool) -> Iterator[bytes]:
    encode = base64.b64encode if is_text else bytes
    try:
        yield encode(first)
        for frame in frames:
            yield encode(frame)
    finally:
        # A client that hung up shows when it is written to: then the call ends here.
        frames.close()  # type: ignore[attr-defined]  # a generator


def _frame(flag: int, data: bytes) -> bytes:
    return FRAME.pack(flag, len(data)) + data


def _trailers(code: int, message: str) -> bytes:
    lines = f"grpc-status:{code}\r\n"
    if message:
        lines += f"grpc-message:{quoted(message)}\r\n"
    return _frame(TRAILERS_FLAG, lines.encode())


def quoted(message: str) -> str:
    """As a header may carry it; what is plain stays readable."""
    return quote(message, safe=" !#$&'()*+,/:;<=>?@[]^_`{|}~")


def _read_message(method: Method, *, is_text: bool) -> Any:
    """The one message of the body. Raises WireStatus."""
    try:
        body = raw_body()
    except RequestEntityTooLarge as error:
        limit = request.max_content_length
        raise WireStatus(Code.RESOURCE_EXHAUSTED, f"Received message larger than max ({limit} bytes)") from error
    try:
        return method.request.FromString(_unframed(_from_text(body) if is_text else body))
    except (DecodeError, ValueError) as error:
        raise WireStatus(Code.INVALID_ARGUMENT, "The request is not a message of this method.") from error


def _from_text(body: bytes) -> bytes:
    """Base64, each piece of which may have its own padding."""
    try:
        return b"".join(base64.b64decode(piece, validate=True) for piece in BASE64_PIECE.findall(body))
    except binascii.Error as error:
        raise ValueError("not base64") from error


def _unframed(body: bytes) -> bytes:
    if len(body) < FRAME.size:
        raise ValueError("no frame")
    flag, length = FRAME.unpack_from(body)
    if flag == COMPRESSED_FLAG:
        raise WireStatus(Code.UNIMPLEMENTED, "Compressed messages are not read.")
    if flag != MESSAGE_FLAG or len(body) < FRAME.size + length:
        raise ValueError("not a whole message")
    return body[FRAME.size : FRAME.size + length]
