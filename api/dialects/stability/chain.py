"""ChainGenerate: requests one after another, the pictures of one going into the next or to the client."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from api.dialects.stability.calls import Call
from api.dialects.stability.errors import Code, WireStatus
from api.dialects.stability.generate import generate
from api.dialects.stability.proto import generation_pb2 as wire
from api.parts import Parts

MAX_STAGES = 10
# A stage that keeps pictures in a project of the client: there are none here, its pictures just go on.
STORES = "asset"


def chain_generate(parts: Parts, call: Call, request: wire.ChainRequest) -> Iterator[wire.Answer]:
    """The answers that the chain's stages send to the client. Raises what generate raises."""
    call.admit(parts.doorkeeper)
    stages = _checked(request)
    waiting: dict[str, list[wire.Artifact]] = {stage.id: [] for stage in request.stage}
    for position, stage in enumerate(request.stage):
        if position and not waiting[stage.id]:
            continue
        asked = _with_pictures(stage, waiting[stage.id])
        for answer in generate(parts, call, asked):
            answer.request_id = request.request_id or answer.request_id
            yield from _route(stage, answer, stages, waiting)


def _checked(request: wire.ChainRequest) -> Mapping[str, wire.Stage]:
    if not 0 < len(request.stage) <= MAX_STAGES:
        raise WireStatus(Code.INVALID_ARGUMENT, f"a chain has 1 to {MAX_STAGES} stages")
    stages = {stage.id: stage for stage in request.stage}
    if len(stages) < len(request.stage):
        raise WireStatus(Code.INVALID_ARGUMENT, "two stages of the chain have the same id")
    order = list(stages)
    for stage in request.stage:
        for target in filter(None, (rule.target for rule in stage.on_status)):
            if target not in stages or order.index(target) <= order.index(stage.id):
                raise WireStatus(Code.INVALID_ARGUMENT, f"stage {stage.id!r} leads to no later stage {target!r}")
    return stages


def _with_pictures(stage: wire.Stage, pictures: Sequence[wire.Artifact]) -> wire.Request:
    """The stage's request with the pictures that came to it in the place of its own."""
    request = wire.Request()
    request.CopyFrom(stage.request)
    if pictures:
        kept = [each for each in request.prompt if each.artifact.type != wire.ARTIFACT_IMAGE]
        del request.prompt[:]
        request.prompt.extend([*kept, wire.Prompt(artifact=pictures[0])])
    return request


def _route(
    stage: wire.Stage,
    answer: wire.Answer,
    stages: Mapping[str, wire.Stage],
    waiting: Mapping[str, list[wire.Artifact]],
) -> Iterator[wire.Answer]:
    """Send the answer where the stage's rules want it: to the client, into a later stage, nowhere."""
    pictures = [artifact for artifact in answer.artifacts if artifact.type == wire.ARTIFACT_IMAGE]
    rules = [rule for rule in stage.on_status if pictures and _applies(rule, pictures[0])]
    returned = not rules
    for rule in rules:
        target = stages.get(rule.target)
        if wire.STAGE_ACTION_DISCARD in rule.action:
            continue
        if target is None or wire.STAGE_ACTION_RETURN in rule.action or _stores(target):
            returned = True
        if target is not None and not _stores(target):
            waiting[target.id].extend(pictures)
    if returned:
        yield answer


def _applies(rule: wire.OnStatus, picture: wire.Artifact) -> bool:
    by_reason = not rule.reason or picture.finish_reason in rule.reason
    return by_reason and (not rule.artifact_type or picture.type in rule.artifact_type)


def _stores(stage: wire.Stage) -> bool:
    return bool(stage.request.WhichOneof("params") == STORES)
