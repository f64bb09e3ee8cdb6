"""For tests of the Stability dialect: requests, and a native server on a front end's parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from api.dialects.stability.native import open_pool, open_server
from api.dialects.stability.proto import generation_pb2 as wire
from api.dialects.stability.settings import GrpcSettings
from tests.front_end import FrontEnd, png

ENGINE = "stable-diffusion-xl-beta-v2-2-2"
GENERATE = "/gooseai.GenerationService/Generate"
CHAIN = "/gooseai.GenerationService/ChainGenerate"


def text(words: str, weight: float | None = None) -> wire.Prompt:
    prompt = wire.Prompt(text=words)
    if weight is not None:
        prompt.parameters.weight = weight
    return prompt


def artifact(kind: Any, data: bytes) -> wire.Prompt:
    return wire.Prompt(artifact=wire.Artifact(type=kind, binary=data))


def a_request(*prompts: wire.Prompt, **changes: Any) -> wire.Request:
    """`image` parameters may be given by name, `engine_id`, `request_id` and `extras` too."""
    outer = {name: changes.pop(name) for name in ("engine_id", "request_id", "extras") if name in changes}
    pictures = [artifact(wire.ARTIFACT_IMAGE, png(64, 64)), artifact(wire.ARTIFACT_MASK, png(64, 64))]
    request = wire.Request(engine_id=ENGINE, prompt=[*(prompts or [text("a red circle")]), *pictures])
    image: dict[str, Any] = {"width": 64, "height": 64, "samples": 1, "steps": 4, "seed": [7]} | changes
    request.image.CopyFrom(wire.ImageParameters(**{name: value for name, value in image.items() if value is not None}))
    request.MergeFrom(wire.Request(**outer))
    return request


class Channel:
    """A client's channel, and its calls."""

    def __init__(self, channel: grpc.Channel, key: str | None) -> None:
        self.channel = channel
        self._metadata = [("authorization", f"Bearer {key}")] if key else []

    def generate(self, request: wire.Request, *, timeout: float | None = None, **metadata: str) -> Any:
        """The running call: an iterator of answers that can be cancelled."""
        return self.stream(GENERATE, request, timeout=timeout, **metadata)

    def stream(self, path: str, request: Any, *, timeout: float | None = None, **metadata: str) -> Any:
        call = self.channel.unary_stream(
            path,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=wire.Answer.FromString,
        )
        more = [(name.replace("_", "-"), value) for name, value in metadata.items()]
        return call(request, timeout=timeout, metadata=[*self._metadata, *more])

    def one(self, path: str, request: Any, answer: type[Any]) -> Any:
        call = self.channel.unary_unary(
            path,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        return call(request, metadata=self._metadata, timeout=10)


@contextmanager
def native(front_end: FrontEnd, *, key: str | None = None, **settings: Any) -> Iterator[Channel]:
    """A running server and a channel to it; `key` is sent with every call."""
    chosen = GrpcSettings(**({"grpc_port": 0} | settings))
    with open_pool(chosen) as pool:
        server, ports = open_server(front_end.parts, chosen, pool)
        server.start()
        try:
            with grpc.insecure_channel(f"127.0.0.1:{ports['plaintext']}") as channel:
                yield Channel(channel, key)
        finally:
            server.stop(None).wait()


def pictures(answers: Any) -> list[wire.Artifact]:
    """The picture artifacts of all answers, to the end of the call."""
    return [each for answer in answers for each in answer.artifacts if each.type == wire.ARTIFACT_IMAGE]
