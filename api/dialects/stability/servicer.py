"""The one servicer behind both transports: every method, and how a call to it is made and ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import structlog

from api.dialects.stability import account
from api.dialects.stability.calls import Call
from api.dialects.stability.chain import chain_generate
from api.dialects.stability.errors import Code, WireStatus, as_status
from api.dialects.stability.generate import generate
from api.dialects.stability.proto import dashboard_pb2, engines_pb2
from api.dialects.stability.proto import generation_pb2 as wire
from api.parts import Parts

MILLISECONDS = 1000

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Method:
    """`answer` yields messages: exactly one where the answer is no stream."""

    request: type[Any]
    answer: Callable[[Parts, Call, Any], Iterator[Any]]
    streams: bool = False


SERVICES: Mapping[str, Mapping[str, Method]] = {
    "gooseai.GenerationService": {
        "Generate": Method(wire.Request, generate, streams=True),
        "ChainGenerate": Method(wire.ChainRequest, chain_generate, streams=True),
    },
    "gooseai.EnginesService": {
        "ListEngines": Method(engines_pb2.ListEnginesRequest, account.list_engines),
    },
    "gooseai.DashboardService": {
        "GetMe": Method(dashboard_pb2.EmptyRequest, account.get_me),
        "GetOrganization": Method(dashboard_pb2.GetOrganizationRequest, account.get_organization),
    },
}


def answers(parts: Parts, call: Call, method: Method, request: Any) -> Iterator[Any]:
    """The messages that answer a call; it is over when they are. Raises WireStatus and nothing else."""
    started, code = time.monotonic(), Code.CANCELLED
    try:
        with closing(method.answer(parts, call, request)) as messages:  # type: ignore[type-var]  # all are generators
            yield from messages
        code = Code.OK
    except Exception as error:
        status = as_status(error)
        code = status.code
        raise status from error
    finally:
        call.end()
        log.info(
            "answered",
            method=method.answer.__name__,
            status=code.name,
            milliseconds=round((time.monotonic() - started) * MILLISECONDS, 1),
            key_id=call.key_id,
        )


def unknown_method() -> WireStatus:
    return WireStatus(Code.UNIMPLEMENTED, "There is no such method.")
