"""The safety checker as each dialect's clients ask for it and hear of it, on real servers without a worker."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from api.dialects import modelslab, stable_diffusion_v3
from api.dialects.stability.proto import generation_pb2 as wire
from storage.job import InpaintJob, SafetyAction
from tests.fal_clients import Fal
from tests.front_end import FakeWorker, FrontEnd, open_with
from tests.stability import CHAIN, Channel, a_request, native

__all__ = ["open_with"]

REALTIME, COMMUNITY, V3 = "/api/v6/realtime/inpaint", "/api/v6/images/inpaint", "/api/v3/inpaint"
FETCH = {
    REALTIME: "/api/v6/realtime/fetch/{}",
    COMMUNITY: "/api/v6/images/fetch/{}",
    V3: "/api/v3/fetch/{}",
}
DEFAULTS = {REALTIME: SafetyAction.BLACK, COMMUNITY: SafetyAction.TEXT, V3: SafetyAction.BLACK}
Open = Callable[..., FrontEnd]


@pytest.fixture
def models_file(tmp_path: Path) -> Path:
    path = tmp_path / "models.toml"
    path.write_text('[safety_checker]\nfolder = "checker"\n')
    return path


@pytest.fixture
def guarded(open_with: Open, models_file: Path) -> FrontEnd:
    """A front end whose models file has a checker."""
    return open_with(models_file=models_file)


def claimed(front_end: FrontEnd) -> InpaintJob:
    job = front_end.parts.jobs.claim_next(worker="fake")
    assert job is not None
    return job


def found_wanting(front_end: FrontEnd, *, indexes: tuple[int, ...] = (0,)) -> Callable[[InpaintJob], InpaintJob]:
    """A worker's ending: in these pictures the checker has found something."""

    def end(job: InpaintJob) -> InpaintJob:
        done = front_end.painted(job)
        images = tuple(dataclasses.replace(image, nsfw=k in indexes) for k, image in enumerate(done.images))
        return dataclasses.replace(done, images=images, nsfw=bool(indexes))

    return end


def post(front_end: FrontEnd, path: str, **changes: Any) -> dict[str, Any]:
    changes = {"model_id": "doodle", **changes}
    answer: dict[str, Any] = front_end.client.post(path, json=front_end.body(**changes)).get_json()
    return answer


# -- the ModelsLab family ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", FETCH)
def test_who_asks_gets_the_endpoints_own_way_of_hiding_unless_another_is_named(guarded: FrontEnd, path: str) -> None:
    for said in ("yes", True, "true", 1):
        meta = post(guarded, path, safety_checker=said)["meta"]
        assert claimed(guarded).safety_checker is DEFAULTS[path]
        assert meta["ignored"] == []
        if path != V3:
            assert (meta["safety_checker"], meta["safety_checker_type"]) == ("yes", DEFAULTS[path].value)
    for action in SafetyAction:
        post(guarded, path, safety_checker="yes", safety_checker_type=action.value.upper())
        assert claimed(guarded).safety_checker is action


@pytest.mark.parametrize("path", FETCH)
@pytest.mark.parametrize("said", ["no", False, "", None, "false", 0])
def test_who_does_not_ask_is_not_checked(guarded: FrontEnd, path: str, said: Any) -> None:
    changes = {} if said is None else {"safety_checker": said}
    meta = post(guarded, path, **changes)["meta"]
    assert claimed(guarded).safety_checker is None
    assert meta["ignored"] == []
    # Named, since it does nothing alone.
    meta = post(guarded, path, **changes, safety_checker_type="blur")["meta"]
    assert meta["ignored"] == ["safety_checker_type"]


def test_the_older_name_asks_too_and_the_newer_one_counts(guarded: FrontEnd) -> None:
    assert post(guarded, V3, safetychecker="yes")["meta"]["safetychecker"] == "yes"
    assert claimed(guarded).safety_checker is SafetyAction.BLACK
    post(guarded, V3, safetychecker="yes", safety_checker="no")
    assert claimed(guarded).safety_checker is None


def test_a_way_of_hiding_that_there_is_not_is_refused_by_name(guarded: FrontEnd) -> None:
    choices = "blur, sensitive_content_text, pixelate, black"
    said = post(guarded, COMMUNITY, safety_checker="yes", safety_checker_type="mosaic")["message"]
    assert said == f"safety_checker_type must be one of {choices}"
    said = post(guarded, V3, safety_checker="yes", safety_checker_type="mosaic")["message"]
    assert said == {"safety_checker_type": [f"The safety_checker_type must be one of {choices}."]}


@pytest.mark.parametrize("path", FETCH)
@pytest.mark.parametrize("nsfw", [True, False])
def test_the_result_says_what_was_found(guarded: FrontEnd, path: str, nsfw: bool) -> None:
    submitted = post(guarded, path, safety_checker="yes")
    done = guarded.work_once(found_wanting(guarded, indexes=(0,) if nsfw else ()))
    fetched = guarded.client.post(FETCH[path].format(submitted["id"]), json={"key": guarded.key}).get_json()
    assert (fetched["status"], fetched["nsfw_content_detected"]) == ("success", nsfw)
    assert len(fetched["output"]) == 1
    dialect = stable_diffusion_v3 if path == V3 else modelslab
    assert dialect.render_webhook(done).body["nsfw_content_detected"] is nsfw


def test_v3_keeps_its_own_answer_for_who_has_not_asked(guarded: FrontEnd) -> None:
    submitted = post(guarded, V3)
    guarded.work_once()
    fetched = guarded.client.post(FETCH[V3].format(submitted["id"]), json={"key": guarded.key}).get_json()
    assert "nsfw_content_detected" not in fetched


@pytest.mark.parametrize("name", ["safety_checker", "safetychecker"])
def test_without_a_checker_a_wish_for_it_is_refused_by_name(open_with: Open, name: str) -> None:
    bare = open_with()
    why = "cannot be used because this service has no safety checker"
    for path in (REALTIME, COMMUNITY):
        answer = bare.client.post(path, json=bare.body(model_id="doodle", **{name: "yes"}))
        assert (answer.status_code, answer.get_json()["message"]) == (400, f"{name} {why}")
    assert post(bare, V3, **{name: "yes"})["message"] == {name: [f"The {name} {why}."]}
    assert bare.parts.jobs.waiting_count() == 0
    assert post(bare, COMMUNITY, **{name: "no"})["status"] == "processing"


def test_without_a_checker_the_operator_may_have_the_wish_ignored_and_named(open_with: Open) -> None:
    lenient = open_with(without_safety_checker="ignore")
    meta = post(lenient, COMMUNITY, safety_checker="yes", safety_checker_type="blur")["meta"]
    assert meta["ignored"] == ["safety_checker", "safety_checker_type"]
    assert (meta["safety_checker"], meta["safety_checker_type"]) == ("no", None)
    assert claimed(lenient).safety_checker is None
    assert post(lenient, V3, safetychecker="yes")["meta"]["ignored"] == ["safetychecker"]


# -- fal --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nsfw", [True, False])
def test_fal_tells_who_has_asked_and_nobody_else(guarded: FrontEnd, nsfw: bool) -> None:
    fal = Fal(guarded)
    asked, silent, declined = (
        fal.submit(enable_safety_checker=True),
        fal.submit(),
        fal.submit(enable_safety_checker=False),
    )
    jobs = [
        guarded.work_once(found_wanting(guarded, indexes=(0,) if nsfw else ())),
        *(guarded.work_once() for _ in "ab"),
    ]
    assert [job.safety_checker for job in jobs] == [SafetyAction.BLACK, None, None]
    output = fal.result(asked).get_json()
    assert (set(output), output["has_nsfw_concepts"]) == ({"image", "seed", "has_nsfw_concepts"}, [nsfw])
    for request_id in (silent, declined):
        assert set(fal.result(request_id).get_json()) == {"image", "seed"}


def test_fal_without_a_checker_says_so_at_the_result(open_with: Open) -> None:
    fal = Fal(open_with())
    answer = fal.result(fal.submit(enable_safety_checker=True))
    (row,) = answer.get_json()["detail"]
    assert answer.status_code == 422
    assert (row["loc"], row["type"]) == (["body", "enable_safety_checker"], "feature_not_supported")
    assert row["msg"] == "This service has no safety checker"


def test_fal_without_a_checker_may_ignore_the_wish_and_say_so_in_its_log(open_with: Open) -> None:
    lenient = open_with(without_safety_checker="ignore")
    fal = Fal(lenient)
    request_id = fal.submit(enable_safety_checker=True)
    lenient.work_once()
    assert set(fal.result(request_id).get_json()) == {"image", "seed"}
    line = fal.status(request_id, "?logs=1").get_json()["logs"][0]
    assert (line["level"], line["message"]) == ("WARN", "enable_safety_checker has no effect on this service")


# -- Stability --------------------------------------------------------------------------------------


@pytest.fixture
def channel(guarded: FrontEnd) -> Iterator[Channel]:
    with native(guarded) as opened:
        yield opened


def artifacts(answers: Any, kind: Any) -> list[wire.Artifact]:
    return [each for answer in answers for each in answer.artifacts if each.type == kind]


def test_stability_says_filter_of_the_picture_that_was_blurred_and_of_no_other(
    guarded: FrontEnd, channel: Channel
) -> None:
    with FakeWorker(guarded, found_wanting(guarded, indexes=(1,))):
        answers = list(channel.generate(a_request(samples=2)))
    job = guarded.parts.jobs.by_number(1)
    assert job is not None
    assert job.safety_checker is SafetyAction.BLUR
    images = artifacts(answers, wire.ARTIFACT_IMAGE)
    assert [(each.index, each.finish_reason) for each in images] == [(0, wire.NULL), (1, wire.FILTER)]
    assert all(each.binary and each.mime == "image/png" for each in images)
    told = artifacts(answers, wire.ARTIFACT_CLASSIFICATIONS)
    actions = [each.classifier.realized_action for each in told]
    assert actions == [wire.ACTION_PASSTHROUGH, wire.ACTION_OBFUSCATE]


def test_a_chain_may_drop_what_was_filtered(guarded: FrontEnd, channel: Channel) -> None:
    drop = wire.OnStatus(reason=[wire.FILTER], action=[wire.STAGE_ACTION_DISCARD])
    chain = wire.ChainRequest(stage=[wire.Stage(id="one", request=a_request(samples=2), on_status=[drop])])
    with FakeWorker(guarded, found_wanting(guarded, indexes=(0,))):
        answers = list(channel.stream(CHAIN, chain))
    assert [each.index for each in artifacts(answers, wire.ARTIFACT_IMAGE)] == [1]


@pytest.mark.parametrize("has_checker", [True, False])
def test_stability_is_not_checked_where_the_operator_says_so_or_has_no_checker(
    open_with: Open, models_file: Path, has_checker: bool
) -> None:
    front_end = open_with(models_file=models_file, stability_safety_checker=False) if has_checker else open_with()
    with native(front_end) as channel, FakeWorker(front_end):
        images = artifacts(channel.generate(a_request()), wire.ARTIFACT_IMAGE)
    job = front_end.parts.jobs.by_number(1)
    assert job is not None
    assert job.safety_checker is None
    assert [each.finish_reason for each in images] == [wire.NULL]
