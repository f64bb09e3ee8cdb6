"""Stability's calls over native gRPC, on real servers: answers, joins, cancels, who is let in."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct

from api.dialects.stability.proto import dashboard_pb2, engines_pb2
from api.dialects.stability.proto import generation_pb2 as wire
from storage.job import Failure, InpaintJob, JobStatus, MaskPaints, ResultImage
from tests.front_end import FakeWorker, FrontEnd, front_end, open_with, png
from tests.servers import RedisServer
from tests.stability import CHAIN, Channel, a_request, artifact, native, pictures, text

__all__ = ["front_end", "open_with"]


@pytest.fixture
def channel(front_end: FrontEnd) -> Iterator[Channel]:
    with native(front_end) as opened:
        yield opened


def until(condition: Callable[[], Any], seconds: float = 10) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)
    return found


def job(front_end: FrontEnd, number: int = 1) -> InpaintJob:
    found = front_end.parts.jobs.by_number(number)
    assert found is not None
    return found


def jobs_made(front_end: FrontEnd) -> int:
    return int(front_end.parts.redis.get("inpaintd:number") or 0)  # type: ignore[arg-type]  # answers are decoded


class Listening(threading.Thread):
    """A client that reads a call's answers to the end."""

    def __init__(self, call: Any) -> None:
        super().__init__(daemon=True)
        self.call = call
        self.answers: list[wire.Answer] = []
        self.error: grpc.RpcError | None = None
        self.start()

    def run(self) -> None:
        try:
            for answer in self.call:
                self.answers.append(answer)
        except grpc.RpcError as error:
            self.error = error

    def end(self) -> Listening:
        self.join(15)
        assert not self.is_alive()
        return self

    @property
    def seeds(self) -> list[int]:
        return [each.seed for each in pictures(self.answers)]


def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        list(call)
    return raised.value.code(), raised.value.details()  # type: ignore[attr-defined]  # of a call's error


# -- answers ------------------------------------------------------------------------------------


def test_each_picture_has_an_answer_with_exactly_one_classification(front_end: FrontEnd, channel: Channel) -> None:
    before = time.time()
    with FakeWorker(front_end):
        answers = list(channel.generate(a_request(samples=3, request_id="mine")))
    full = [answer for answer in answers if answer.artifacts]
    assert len(full) == 3
    for index, answer in enumerate(full):
        image, classification = answer.artifacts
        assert (image.type, image.mime, image.finish_reason) == (wire.ARTIFACT_IMAGE, "image/png", wire.NULL)
        assert (image.seed, image.index, image.size) == (7 + index, index, len(png(64, 64)))
        assert image.binary == png(64, 64)
        assert classification.type == wire.ARTIFACT_CLASSIFICATIONS
        assert classification.WhichOneof("data") == "classifier"
        assert answer.request_id == "mine"
        assert answer.meta.engine_id == "stable-diffusion-xl-beta-v2-2-2"
        assert before - 1 < answer.received / 1000 <= answer.created / 1000 < time.time() + 1
    assert len({artifact.uuid for answer in full for artifact in answer.artifacts}) == 6
    assert len({answer.answer_id for answer in answers}) == len(answers)


def test_a_picture_is_sent_while_the_next_one_is_painted_and_signs_of_life_meanwhile(
    front_end: FrontEnd, channel: Channel
) -> None:
    listening = Listening(channel.generate(a_request(samples=2)))
    until(lambda: listening.answers)
    claimed = front_end.parts.jobs.claim_next(worker="fake")
    assert claimed is not None
    done = front_end.painted(claimed)
    front_end.parts.jobs.publish(claimed, done.images[:1])
    until(lambda: listening.seeds == [7], seconds=1)
    time.sleep(2.2)
    front_end.parts.jobs.finish(done)
    assert listening.end().seeds == [7, 8]
    alive = [answer for answer in listening.answers if not answer.artifacts]
    assert 3 <= len(alive) <= 6, "one at once, then about one a second"


def test_a_picture_whose_worker_was_lost_is_sent_once(front_end: FrontEnd, channel: Channel) -> None:
    listening = Listening(channel.generate(a_request(samples=2)))
    until(lambda: listening.answers)
    parts = front_end.parts
    lost = parts.jobs.claim_next(worker="lost")
    assert lost is not None
    missing = ResultImage(key="results/gone/0.png", seed=7, width=64, height=64, size_bytes=1)
    parts.jobs.publish(lost, [missing])
    parts.jobs.finish(lost.returned())
    front_end.work_once()
    assert listening.end().seeds == [7, 8]


def test_what_is_asked_arrives_in_the_job(front_end: FrontEnd, channel: Channel) -> None:
    extras = Struct()
    extras.update({"$IPC": {"preset": "photographic"}})
    request = a_request(text("a cat", 2.0), text("a dog"), text("blue", -1.0), extras=extras, seed=[5, 9], samples=2)
    request.image.transform.diffusion = wire.SAMPLER_K_DPMPP_SDE
    step = request.image.parameters.add()
    step.sampler.cfg_scale, step.schedule.start = 9.5, 0.7
    with FakeWorker(front_end):
        list(channel.generate(request))
    made = job(front_end)
    assert [(each.text.split(",")[0], each.weight) for each in made.weighted_prompts] == [
        ("a cat", 2.0),
        ("a dog", 1.0),
        ("blue", -1.0),
    ]
    assert (made.guidance_scale, made.strength, made.seeds) == (9.5, 0.7, (5, 9))
    assert made.mask_paints is MaskPaints.BLACK
    assert made.wire["sampler"] == "SAMPLER_K_DPMPP_SDE"
    assert made.wire["sampler_painted_as"] == "DPMSolverMultistepScheduler (sde-dpmsolver++)"
    assert (made.scheduler, made.algorithm_type) == ("DPMSolverMultistepScheduler", "sde-dpmsolver++")
    assert made.wire["style_preset"] == "photographic"


def test_one_clients_masks_are_inverted(front_end: FrontEnd, channel: Channel) -> None:
    with FakeWorker(front_end):
        list(channel.generate(a_request(), stability_client_id="StableStudio"))
    assert job(front_end).mask_paints is MaskPaints.WHITE


# -- who ends a job, who joins it ---------------------------------------------------------------


def test_a_client_that_cancels_stops_its_job(front_end: FrontEnd, channel: Channel) -> None:
    listening = Listening(channel.generate(a_request()))
    until(lambda: listening.answers)
    listening.call.cancel()
    until(lambda: job(front_end).status is JobStatus.CANCELLED, seconds=2)


def test_a_client_that_runs_out_of_time_stops_its_job_while_it_is_painted(
    front_end: FrontEnd, channel: Channel
) -> None:
    listening = Listening(channel.generate(a_request(), timeout=1.0))
    until(lambda: listening.answers)
    assert front_end.parts.jobs.claim_next(worker="fake")
    listening.end()
    assert listening.error is not None
    assert listening.error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    until(lambda: job(front_end).cancel_requested, seconds=2)


@pytest.mark.parametrize("request_id", ["", "same"])
def test_a_retry_joins_the_job_and_the_last_to_leave_stops_it(
    front_end: FrontEnd, channel: Channel, request_id: str
) -> None:
    first, second, third = (Listening(channel.generate(a_request(request_id=request_id))) for _ in range(3))
    until(lambda: first.answers and second.answers and third.answers)
    first.call.cancel()
    second.call.cancel()
    first.end(), second.end()
    time.sleep(0.3)
    assert job(front_end).status is JobStatus.QUEUED
    third.call.cancel()
    until(lambda: job(front_end).status is JobStatus.CANCELLED, seconds=2)
    assert jobs_made(front_end) == 1
    with FakeWorker(front_end):
        assert pictures(channel.generate(a_request(request_id=request_id)))
    assert jobs_made(front_end) == 2, "a job that was stopped is no answer to the next call"


def test_all_who_wait_for_one_job_get_its_pictures(front_end: FrontEnd, channel: Channel) -> None:
    waiting = [Listening(channel.generate(a_request())) for _ in range(2)]
    until(lambda: all(each.answers for each in waiting))
    front_end.work_once()
    assert [each.end().seeds for each in waiting] == [[7], [7]]
    assert jobs_made(front_end) == 1


def test_a_request_with_an_id_is_answered_again_from_its_job_and_one_without_is_painted_again(
    front_end: FrontEnd, channel: Channel
) -> None:
    with FakeWorker(front_end):
        for _ in range(2):
            assert len(pictures(channel.generate(a_request(request_id="same")))) == 1
        assert jobs_made(front_end) == 1
        for _ in range(2):
            assert len(pictures(channel.generate(a_request()))) == 1
        assert jobs_made(front_end) == 3


def test_an_id_with_another_content_or_of_another_key_is_another_request(front_end: FrontEnd, channel: Channel) -> None:
    with FakeWorker(front_end), native(front_end, key=front_end.key) as other:
        for request in (a_request(request_id="xform_chain"), a_request(request_id="xform_chain", seed=[8])):
            pictures(channel.generate(request))
            pictures(other.generate(request))
    assert jobs_made(front_end) == 4


def test_requests_without_a_seed_never_share_a_job(front_end: FrontEnd, channel: Channel) -> None:
    with FakeWorker(front_end):
        waiting = [Listening(channel.generate(a_request(seed=seed))) for seed in ([], [], [0], [0])]
        seeds = {each.end().seeds[0] for each in waiting}
    assert len(seeds) == 4
    assert jobs_made(front_end) == 4


def test_a_server_that_ends_leaves_the_job_to_the_clients_next_try(front_end: FrontEnd) -> None:
    with native(front_end) as channel:
        listening = Listening(channel.generate(a_request()))
        until(lambda: listening.answers)
        front_end.parts.arrivals.close()
        listening.end()
    assert listening.error is not None
    assert listening.error.code() is grpc.StatusCode.UNAVAILABLE
    assert job(front_end).status is JobStatus.QUEUED


# -- errors -------------------------------------------------------------------------------------


def test_refusals_have_the_codes_and_phrases_that_clients_know(front_end: FrontEnd, channel: Channel) -> None:
    no_image = wire.Request(engine_id="doodle", prompt=[text("x")])
    no_prompts = a_request()
    del no_prompts.prompt[0]
    no_mask = a_request()
    del no_mask.prompt[2]
    upscale = a_request()
    upscale.image.transform.upscaler = 0
    assert refused(channel.generate(a_request(engine_id="nope"))) == (
        grpc.StatusCode.NOT_FOUND,
        "The specified engine (ID nope) was not found.",
    )
    assert refused(channel.generate(no_image)) == (grpc.StatusCode.INVALID_ARGUMENT, "must provide image parameters")
    assert refused(channel.generate(no_prompts)) == (grpc.StatusCode.INVALID_ARGUMENT, "no prompts provided")
    assert refused(channel.generate(no_mask)) == (grpc.StatusCode.INVALID_ARGUMENT, "mask_image is required")
    assert refused(channel.generate(upscale))[0] is grpc.StatusCode.UNIMPLEMENTED
    not_a_picture = a_request()
    not_a_picture.prompt[1].artifact.binary = b"no picture"
    assert refused(channel.generate(not_a_picture)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "init_image is not a picture.",
    )
    assert jobs_made(front_end) == 0


def test_a_failed_job_is_a_status_and_shows_nothing_of_its_inside(front_end: FrontEnd, channel: Channel) -> None:
    def failing(claimed: InpaintJob) -> InpaintJob:
        return claimed.failed(Failure(code="not_an_image", message="secret", field="mask_image"), at=1.0)

    with FakeWorker(front_end, failing):
        assert refused(channel.generate(a_request())) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "mask_image is not a picture that can be read.",
        )


def test_a_full_queue_is_unavailable(open_with: Callable[..., FrontEnd]) -> None:
    with native(open_with(max_queued_jobs=1)) as channel:
        waiting = Listening(channel.generate(a_request()))
        until(lambda: waiting.answers)
        code, words = refused(channel.generate(a_request(seed=[8])))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert words.startswith("The queue is full")
        waiting.call.cancel()


def test_more_calls_than_places_are_told_to_come_again_and_make_no_job(open_with: Callable[..., FrontEnd]) -> None:
    front_end = open_with(max_waiting_clients=1)
    with native(front_end) as channel:
        waiting = Listening(channel.generate(a_request()))
        until(lambda: waiting.answers)
        assert refused(channel.generate(a_request(seed=[8])))[0] is grpc.StatusCode.UNAVAILABLE
        assert jobs_made(front_end) == 1
        waiting.call.cancel()


def test_a_message_that_is_too_large_is_refused_in_words_that_clients_look_for(
    open_with: Callable[..., FrontEnd],
) -> None:
    with native(open_with(max_body_bytes=20_000)) as channel:
        code, words = refused(channel.generate(a_request(text("x" * 30_000))))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "message larger than max" in words


def test_callers_without_a_key_are_let_in_as_the_setting_says(front_end: FrontEnd) -> None:
    with FakeWorker(front_end):
        with native(front_end, grpc_keyless="never") as channel:
            assert refused(channel.generate(a_request()))[0] is grpc.StatusCode.UNAUTHENTICATED
        with native(front_end, key=front_end.key, grpc_keyless="never") as channel:
            assert pictures(channel.generate(a_request()))
            assert job(front_end).key_id == front_end.api_key.key_id
        with native(front_end, key="wrong") as channel:
            assert refused(channel.generate(a_request())) == (
                grpc.StatusCode.UNAUTHENTICATED,
                "the API key is not valid",
            )
        with native(front_end) as channel:
            assert pictures(channel.generate(a_request()))
            assert job(front_end, 2).key_id == "keyless"


# -- the other methods --------------------------------------------------------------------------


def a_chain(*stages: tuple[str, wire.Request, list[wire.OnStatus]]) -> wire.ChainRequest:
    return wire.ChainRequest(
        request_id="chain",
        stage=[wire.Stage(id=name, request=request, on_status=rules) for name, request, rules in stages],
    )


def passing(target: str) -> list[wire.OnStatus]:
    return [wire.OnStatus(reason=[wire.NULL], action=[wire.STAGE_ACTION_PASS], target=target)]


def test_a_chain_paints_the_picture_of_one_stage_in_the_next(front_end: FrontEnd, channel: Channel) -> None:
    second = a_request(text("second"), seed=[50])
    with FakeWorker(front_end):
        answers = list(channel.stream(CHAIN, a_chain(("one", a_request(), passing("two")), ("two", second, []))))
    assert [each.seed for each in pictures(answers)] == [50]
    assert {answer.request_id for answer in answers} == {"chain"}
    first_result = job(front_end).images[0].key
    second_input = job(front_end, 2).init_image.removeprefix("object:")
    assert front_end.parts.images.get(second_input) == front_end.parts.images.get(first_result)


def test_a_chain_into_assets_and_one_that_returns_give_the_client_its_pictures(
    front_end: FrontEnd, channel: Channel
) -> None:
    asset = wire.Request(engine_id="asset-service", asset=wire.AssetParameters())
    returning = [wire.OnStatus(action=[wire.STAGE_ACTION_PASS, wire.STAGE_ACTION_RETURN], target="two")]
    discarding = [wire.OnStatus(action=[wire.STAGE_ACTION_DISCARD])]
    with FakeWorker(front_end):
        kept = channel.stream(CHAIN, a_chain(("Main", a_request(seed=[1]), passing("Asset")), ("Asset", asset, [])))
        assert [each.seed for each in pictures(kept)] == [1]
        both = a_chain(("one", a_request(seed=[2]), returning), ("two", a_request(seed=[3]), []))
        assert [each.seed for each in pictures(channel.stream(CHAIN, both))] == [2, 3]
        nothing = a_chain(("one", a_request(seed=[4]), discarding))
        assert pictures(channel.stream(CHAIN, nothing)) == []


def test_a_chain_that_leads_nowhere_or_back_is_refused(front_end: FrontEnd, channel: Channel) -> None:
    for chain in (
        wire.ChainRequest(),
        a_chain(("one", a_request(), passing("nowhere"))),
        a_chain(("one", a_request(), passing("one"))),
        a_chain(("one", a_request(), []), ("one", a_request(), [])),
    ):
        assert refused(channel.stream(CHAIN, chain))[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert jobs_made(front_end) == 0


def test_engines_are_the_models_under_every_name(channel: Channel) -> None:
    engines = channel.one("/gooseai.EnginesService/ListEngines", engines_pb2.ListEnginesRequest(), engines_pb2.Engines)
    named = {engine.id: engine for engine in engines.engine}
    assert {"doodle", "stable-diffusion-xl-beta-v2-2-2", "stable-diffusion-v1"} <= set(named)
    assert {"stable-diffusion-xl-1024-v1-0", "stable-inpainting-512-v2-0"} <= set(named)
    assert all(engine.ready and engine.type == engines_pb2.PICTURE for engine in engines.engine)


def test_a_key_is_a_user_with_an_organization_whose_balance_does_not_end(front_end: FrontEnd) -> None:
    with native(front_end, key=front_end.key) as channel:
        me = channel.one("/gooseai.DashboardService/GetMe", dashboard_pb2.EmptyRequest(), dashboard_pb2.User)
        (member,) = me.organizations
        asked = dashboard_pb2.GetOrganizationRequest(id=member.organization.id)
        path = "/gooseai.DashboardService/GetOrganization"
        found = channel.one(path, asked, dashboard_pb2.Organization)
        assert (me.id, member.is_default, found.id) == (front_end.api_key.key_id, True, front_end.api_key.key_id)
        assert found.payment_info.balance == member.organization.payment_info.balance > 0
        with pytest.raises(grpc.RpcError, match="no such organization"):
            channel.one(path, dashboard_pb2.GetOrganizationRequest(id="another"), dashboard_pb2.Organization)


def test_pictures_and_mask_are_known_by_their_type(front_end: FrontEnd, channel: Channel) -> None:
    request = a_request()
    del request.prompt[:]
    request.prompt.extend(
        [artifact(wire.ARTIFACT_MASK, png(3, 5)), text("a red circle"), artifact(wire.ARTIFACT_IMAGE, png(9, 9))]
    )
    with FakeWorker(front_end):
        list(channel.generate(request))
    made, images = job(front_end), front_end.parts.images
    assert images.get(made.init_image.removeprefix("object:")) == png(9, 9)
    assert images.get(made.mask_image.removeprefix("object:")) == png(3, 5)


def test_a_call_outlives_a_redis_that_goes_away_for_a_while(
    front_end: FrontEnd, channel: Channel, redis_server: RedisServer
) -> None:
    listening = Listening(channel.generate(a_request()))
    until(lambda: listening.answers)
    redis_server.stop()
    time.sleep(1.5)
    redis_server.start()
    until(lambda: front_end.parts.jobs.waiting_count() == 1)
    front_end.work_once()
    assert listening.end().seeds == [7]
