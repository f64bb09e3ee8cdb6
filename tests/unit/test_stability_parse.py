"""Requests of Stability's wire as jobs: what is read, capped, filled in and refused."""

from __future__ import annotations

import base64
import itertools
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct

from api.dialects.stability.errors import Code, WireStatus
from api.dialects.stability.joining import sameness
from api.dialects.stability.parse import Circumstances, parse
from api.dialects.stability.proto import generation_pb2 as wire
from api.dialects.stability.samplers import TWINS
from api.errors import InvalidFields, UnknownModel
from api.styles import STYLES
from storage.job import InpaintJob, MaskedAreaInit, MaskPaints, WeightedPrompt
from storage.model_catalog import load_catalog
from storage.schedulers import SCHEDULERS
from storage.settings import StorageSettings
from tests.front_end import png
from tests.stability import a_request, text

CATALOG = load_catalog(StorageSettings())
RANDOM = 1000


def parsed(request: wire.Request, client: str = "") -> InpaintJob:
    counted = itertools.count(RANDOM)
    circumstances = Circumstances(
        key_id="k",
        client=client,
        catalog=CATALOG,
        max_steps=51,
        max_prompt_chars=100,
        now=1.0,
        random_seed=lambda: next(counted),
    )
    return parse(request, circumstances)


def problems(request: wire.Request) -> list[tuple[str, str]]:
    with pytest.raises(InvalidFields) as raised:
        parsed(request)
    return [(problem.field, problem.kind) for problem in raised.value.problems]


def stepping(cfg_scale: float | None = None, start: float | None = None, **changes: Any) -> wire.Request:
    step = wire.StepParameter()
    if cfg_scale is not None:
        step.sampler.cfg_scale = cfg_scale
    if start is not None:
        step.schedule.start = start
    return a_request(parameters=[step], **changes)


def test_what_is_left_open_is_the_models_default_and_the_pictures_size() -> None:
    job = parsed(a_request(width=None, height=None, steps=None, samples=None, seed=[]))
    entry = CATALOG.default
    assert (job.width, job.height, job.num_images, job.strength) == (None, None, 1, 1.0)
    assert (job.num_inference_steps, job.guidance_scale, job.scheduler) == (20, entry.guidance_scale, entry.scheduler)
    assert job.seeds == (RANDOM,)
    assert (job.prompt, job.negative_prompt, job.weighted_prompts) == ("a red circle", "", ())
    assert job.masked_area_init is MaskedAreaInit.ZERO
    assert (job.model, job.dialect, job.mask_paints) == ("doodle", "stability", MaskPaints.BLACK)
    assert base64.b64decode(job.init_image) == base64.b64decode(job.mask_image) == png(64, 64)


@pytest.mark.parametrize("engine", ["stable-diffusion-xl-1024-v1-0", "stable-inpainting-512-v2-0", "doodle"])
def test_the_clients_engines_are_the_default_model(engine: str) -> None:
    assert parsed(a_request(engine_id=engine)).model == "doodle"


def test_an_unknown_engine_is_told_before_anything_else() -> None:
    with pytest.raises(UnknownModel):
        parsed(wire.Request(engine_id="nope"))


@pytest.mark.parametrize(
    ("listed", "samples", "expected"),
    [
        ([7], 3, (7, 8, 9)),
        ([7, 7, 7], 3, (7, 8, 9)),
        ([5, 100], 3, (5, 100, 6)),
        ([5, 6, 5], 3, (5, 6, 7)),
        ([5, 9, 2], 2, (5, 9)),
        ([2**32 - 1], 3, (2**32 - 1, 1, 2)),
        ([], 2, (RANDOM, RANDOM + 1)),
        ([0], 2, (RANDOM, RANDOM + 1)),
        ([0, 0], 2, (RANDOM, RANDOM + 1)),
        ([4, 0], 2, (4, RANDOM)),
    ],
)
def test_seeds(listed: list[int], samples: int, expected: tuple[int, ...]) -> None:
    job = parsed(a_request(seed=listed, samples=samples))
    assert tuple(job.seed_of(index) for index in range(samples)) == expected


@pytest.mark.parametrize(("steps", "expected"), [(1, 1), (51, 51), (52, 51), (150, 51)])
def test_steps_are_capped_and_never_refused_up_to_150(steps: int, expected: int) -> None:
    assert parsed(a_request(steps=steps)).num_inference_steps == expected


def test_floats_are_the_decimals_that_were_meant() -> None:
    job = parsed(stepping(cfg_scale=7.1, start=0.7))
    assert (job.guidance_scale, job.strength) == (7.1, 0.7)
    assert (parsed(stepping(cfg_scale=0.0)).guidance_scale, parsed(stepping(start=0.0)).strength) == (0.0, 0.0)


def test_any_size_is_taken() -> None:
    assert [(job.width, job.height) for job in (parsed(a_request(width=77, height=1025)),)] == [(77, 1025)]


def test_every_problem_is_named() -> None:
    request = stepping(cfg_scale=36, start=1.5, samples=11, steps=151, width=4096)
    request.prompt[0].text = "x" * 101
    request.prompt[0].parameters.weight = float("nan")
    del request.prompt[2]
    assert problems(request) == [
        ("prompt", "too_long"),
        ("weight", "not_finite"),
        ("mask_image", "missing"),
        ("samples", "out_of_range"),
        ("steps", "out_of_range"),
        ("width", "out_of_range"),
        ("cfg_scale", "out_of_range"),
        ("schedule.start", "out_of_range"),
    ]
    assert problems(stepping(start=float("inf"))) == [("schedule.start", "not_finite")]
    unknown = a_request()
    unknown.MergeFromString(b"\x2a\x04\x32\x02\x08\x63")  # image.transform.diffusion = 99
    assert problems(unknown) == [("transform.diffusion", "not_a_choice")]


def test_what_is_no_inpainting_is_not_implemented() -> None:
    for changes in ({"interpolate": wire.InterpolateParameters()}, {"classifier": wire.ClassifierParameters()}):
        with pytest.raises(WireStatus) as raised:
            parsed(wire.Request(engine_id="doodle", **changes))
        assert raised.value.code is Code.UNIMPLEMENTED


def test_one_text_of_each_kind_needs_no_weights() -> None:
    job = parsed(a_request(text("a cat", 0.3), text("blue", -5.0)))
    assert (job.prompt, job.negative_prompt, job.weighted_prompts) == ("a cat", "blue", ())


def test_texts_of_no_weight_do_not_count() -> None:
    assert parsed(a_request(text("a cat"), text("a dog", 0.0))).prompt == "a cat"
    assert parsed(a_request(text("a dog", 0.0))).prompt == ""


def test_several_texts_keep_their_weights_and_are_shown_together() -> None:
    job = parsed(a_request(text("a cat"), text("a dog", 0.25), text("blue", -1.0)))
    assert (job.prompt, job.negative_prompt) == ("a cat | a dog", "blue")
    assert job.weighted_prompts == (
        WeightedPrompt("a cat", 1.0),
        WeightedPrompt("a dog", 0.25),
        WeightedPrompt("blue", -1.0),
    )


@pytest.mark.parametrize("preset", STYLES)
def test_a_style_adds_its_words_and_its_negative_words(preset: str) -> None:
    extras = Struct()
    extras.update({"$IPC": {"preset": preset}})
    plain, negative = parsed(a_request(extras=extras)), parsed(a_request(text("a cat"), text("x", -1.0), extras=extras))
    assert plain.prompt == f"a red circle, {STYLES[preset][0]}"
    assert plain.negative_prompt == STYLES[preset][1]
    assert negative.negative_prompt == f"x, {STYLES[preset][1]}"


@pytest.mark.parametrize("content", [{}, {"$IPC": {"mode": "x"}}, {"$IPC": {"preset": "new"}}, {"$IPC": 5}])
def test_other_extras_change_nothing(content: dict[str, Any]) -> None:
    extras = Struct()
    extras.update(content)
    assert parsed(a_request(extras=extras)).prompt == "a red circle"


def test_guidance_adapters_and_classifiers_are_taken() -> None:
    request = a_request()
    request.image.adapter.adapter_strength = 0.4
    request.image.parameters.add().guidance.guidance_preset = wire.GUIDANCE_PRESET_SLOW
    assert parsed(request).guidance_scale == CATALOG.default.guidance_scale


@pytest.mark.parametrize("sampler", wire.DiffusionSampler.values())
def test_every_sampler_has_a_scheduler_that_is_offered(sampler: int) -> None:
    request = a_request()
    request.image.transform.diffusion = sampler  # type: ignore[assignment]  # enums of the wire are numbers
    job = parsed(request)
    assert job.scheduler in SCHEDULERS
    assert job.algorithm_type in (None, *SCHEDULERS[job.scheduler].algorithm_types)
    assert job.wire["sampler_painted_as"] == TWINS[sampler].name
    assert job.wire["sampler"] == wire.DiffusionSampler.Name(sampler)


@pytest.mark.parametrize(
    ("fill", "expected"),
    [
        (wire.MASKED_AREA_INIT_ZERO, MaskedAreaInit.ZERO),
        (wire.MASKED_AREA_INIT_RANDOM, MaskedAreaInit.RANDOM),
        (wire.MASKED_AREA_INIT_ORIGINAL, MaskedAreaInit.ORIGINAL),
    ],
)
def test_fills(fill: Any, expected: MaskedAreaInit) -> None:
    assert parsed(a_request(masked_area_init=fill)).masked_area_init is expected


def test_what_makes_two_requests_one() -> None:
    def name(client: str = "", **changes: Any) -> str | None:
        request = a_request(**changes)
        same = sameness(request, parsed(request, client))
        return same and same.idempotency.key

    assert name() == name()
    assert name(request_id="a") == name(request_id="a")
    assert len({name(), name(request_id="a"), name(seed=[8]), name(client="StableStudio"), name(steps=5)}) == 5
    assert name(seed=[]) is name(seed=[0]) is name(seed=[7, 0], samples=2) is None
    assert name(seed=[], request_id="a") is not None
