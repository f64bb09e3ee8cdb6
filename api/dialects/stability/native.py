"""Native gRPC: the servicer behind grpcio's server, plaintext and TLS."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from api.dialects.stability.calls import Call
from api.dialects.stability.errors import WireStatus
from api.dialects.stability.servicer import SERVICES, Method, answers
from api.dialects.stability.settings import GrpcSettings
from api.parts import Parts

# For calls that need no picture, while all streams are taken.
SPARE_THREADS = 16
LONGEST_DEADLINE_SECONDS = 10 * 365 * 24 * 3600
LOOPBACK_PEERS = ("ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D", "unix:")
TLS = "ssl"


class CannotListen(Exception):
    """A port cannot be used."""


def open_pool(settings: GrpcSettings) -> ThreadPoolExecutor:
    """The threads in which calls run: to be shut down after the server has stopped, before what the calls use."""
    return ThreadPoolExecutor(settings.grpc_streams + SPARE_THREADS, thread_name_prefix="grpc")


def open_server(parts: Parts, settings: GrpcSettings, pool: ThreadPoolExecutor) -> tuple[grpc.Server, dict[str, int]]:
    """A server, not started yet, and its ports: `plaintext`, `tls` or both. Raises CannotListen."""
    server = grpc.server(
        pool,
        options=[
            # Its own words for what is larger hold "message larger than max", which clients look for.
            ("grpc.max_receive_message_length", parts.settings.max_body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ],
    )
    for service, methods in SERVICES.items():
        handlers = {name: _handler(parts, settings, method) for name, method in methods.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    ports: dict[str, int] = {}
    try:
        if settings.grpc_port or not settings.grpc_certificate:
            address = f"{settings.grpc_address}:{settings.grpc_port}"
            ports["plaintext"] = server.add_insecure_port(address)
        if settings.grpc_certificate and settings.grpc_private_key:
            address = f"{settings.grpc_address}:{settings.grpc_tls_port}"
            pair = (settings.grpc_private_key.get_secret_value().encode(), settings.grpc_certificate.encode())
            ports["tls"] = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    except RuntimeError as error:
        raise CannotListen(f"gRPC cannot listen at {address}.") from error
    return server, ports


def _handler(parts: Parts, settings: GrpcSettings, method: Method) -> grpc.RpcMethodHandler:
    make = grpc.unary_stream_rpc_method_handler if method.streams else grpc.unary_unary_rpc_method_handler
    behaviour = _streaming(parts, settings, method) if method.streams else _single(parts, settings, method)
    return make(
        behaviour,
        request_deserializer=method.request.FromString,
        response_serializer=lambda message: message.SerializeToString(),
    )


def _streaming(parts: Parts, settings: GrpcSettings, method: Method) -> Callable[..., Iterator[Any]]:
    def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        call = _call(context, settings)
        try:
            yield from answers(parts, call, method, request)
        except WireStatus as status:
            context.abort(status.code, status.message)

    return stream


def _single(parts: Parts, settings: GrpcSettings, method: Method) -> Callable[..., Any]:
    def single(request: Any, context: grpc.ServicerContext) -> Any:
        call = _call(context, settings)
        try:
            (message,) = answers(parts, call, method, request)
        except WireStatus as status:
            context.abort(status.code, status.message)
        return message

    return single


def _call(context: grpc.ServicerContext, settings: GrpcSettings) -> Call:
    seconds = context.time_remaining()
    has_deadline = seconds is not None and seconds < LONGEST_DEADLINE_SECONDS
    call = Call(
        {name: value for name, value in context.invocation_metadata() if isinstance(value, str)},
        needs_key=not _may_be_keyless(context, settings),
        deadline=time.monotonic() + seconds if has_deadline else None,
    )
    # grpcio runs this when the client cancels, hangs up or is out of time, too.
    if not context.add_callback(call.end):
        call.end()
    return call


def _may_be_keyless(context: grpc.ServicerContext, settings: GrpcSettings) -> bool:
    if context.auth_context().get("transport_security_type") == [TLS.encode()]:
        return False
    if settings.grpc_keyless == "loopback":
        return str(context.peer()).startswith(LOOPBACK_PEERS)
    return settings.grpc_keyless == "always"
