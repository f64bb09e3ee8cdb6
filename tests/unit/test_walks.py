"""Walks: a scheduler's steps as weights, equal to the scheduler's own for every one that is offered."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from storage.schedulers import SCHEDULERS
from tests.painting import LIBRARY_WARNINGS, make_painting
from tests.studio import folder, loaded
from tests.unit.test_schedulers import CONFIG as STOCK_CONFIG
from worker.loading import LoadedModel
from worker.preparing import begin_samples
from worker.prompts import PromptEncoder
from worker.sample import Sample, advance_together, predict_noise
from worker.schedulers import Plan, Schedulers, make_scheduler, plan_timesteps, step_arguments
from worker.walks import Walk, find_walk, take_steps

__all__ = ["folder", "loaded"]

pytestmark = LIBRARY_WARNINGS

# As the files of every Stable Diffusion say; diffusers would clip.
CONFIG = STOCK_CONFIG | {"clip_sample": False}
SHAPE = (1, 4, 8, 8)
COMMON_FIVE = (
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
)
ALL_PLANS = [
    Plan(name, karras, algorithm_type, num_inference_steps, steps)
    for name, facts in SCHEDULERS.items()
    for karras in {False, facts.honours_karras}
    for algorithm_type in facts.algorithm_types or (None,)
    for num_inference_steps, steps in ((1, 1), (20, 20), (12, 7))
]


def set_up(plan: Plan, **changes: Any) -> tuple[Any, torch.Tensor]:
    scheduler = make_scheduler(
        plan.scheduler,
        {**CONFIG, **changes},
        use_karras_sigmas=plan.use_karras_sigmas,
        algorithm_type=plan.algorithm_type,
    )
    return scheduler, plan_timesteps(scheduler, plan.num_inference_steps, plan.num_steps)


def walk_of(scheduler: Any, timesteps: torch.Tensor) -> Walk | None:
    return find_walk(scheduler, timesteps, functools.partial(step_arguments, scheduler))


def near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """To 1e-5 where latents are about 1. Those of some schedulers are as large as their noise at the beginning."""
    return bool((found - expected).abs().max() <= 1e-5 * max(1, float(expected.abs().max())))


@pytest.mark.parametrize("plan", ALL_PLANS, ids=str)
def test_a_walks_steps_are_the_schedulers_own(plan: Plan) -> None:
    scheduler, timesteps = set_up(plan)
    walk = walk_of(scheduler, timesteps)
    assert walk is not None
    own, drawn, random = (torch.Generator("cpu").manual_seed(seed) for seed in (3, 3, 5))
    arguments = step_arguments(scheduler, own)
    latents = torch.randn(SHAPE, generator=random) * float(scheduler.init_noise_sigma)
    remembered = torch.zeros(1, walk.num_remembered, latents.numel())
    for index, timestep in enumerate(timesteps):
        prediction = torch.randn(SHAPE, generator=random)
        shown = scheduler.scale_model_input(latents, timestep)
        assert near(walk.input_scales[index] * latents, shown)
        mixed = scheduler.add_noise(latents, prediction, timesteps[index : index + 1])
        assert near(walk.levels[index][0] * latents + walk.levels[index][1] * prediction, mixed)
        expected = scheduler.step(prediction, timestep, latents, **arguments, return_dict=False)[0]
        found, remembered = take_steps(
            walks=[walk],
            indexes=[index],
            latents=latents,
            predictions=prediction,
            noise=[torch.randn(SHAPE, generator=drawn) if walk.draws[index] else None],
            remembered=remembered,
        )
        assert near(found, expected)
        # As in the engine, what was kept of the picture is put back after each step.
        latents = 0.9 * expected + 0.1 * torch.randn(SHAPE, generator=random)
    assert torch.equal(own.get_state(), drawn.get_state()), "it drew at other times"


@pytest.mark.parametrize(
    ("name", "flag"), [("DDIMScheduler", "clip_sample"), ("UniPCMultistepScheduler", "thresholding")]
)
def test_a_scheduler_whose_steps_are_not_linear_has_no_walk(name: str, flag: str) -> None:
    plan = Plan(name, False, None, 4, 4)
    assert walk_of(*set_up(plan)) is not None
    assert walk_of(*set_up(plan, **{flag: True})) is None


def test_finding_a_walk_leaves_the_scheduler_as_it_was() -> None:
    scheduler, timesteps = set_up(Plan("UniPCMultistepScheduler", False, None, 4, 4))
    before = copy.deepcopy(scheduler)
    walk_of(scheduler, timesteps)
    assert scheduler.step_index == before.step_index
    assert scheduler.model_outputs == before.model_outputs


def samples_of(model: LoadedModel, **changes: Any) -> list[Sample]:
    schedulers = [(name, seed) for seed, name in enumerate((*COMMON_FIVE, "LMSDiscreteScheduler", "LCMScheduler"))]
    paintings = [
        make_painting(scheduler=name, seeds=(seed,), num_inference_steps=5 + seed, **changes)
        for name, seed in schedulers
    ]
    with torch.inference_mode():
        return [begin_samples(model, painting)[0] for painting in paintings]


def stepped(samples: list[Sample], step: Callable[[list[Sample], list[torch.Tensor]], None], count: int = 4) -> None:
    random = torch.Generator("cpu").manual_seed(9)
    with torch.inference_mode():
        for _ in range(count):
            for sample in samples:
                sample.unet_input()
            step(samples, [torch.randn(SHAPE, generator=random) for _ in samples])


def each_alone(samples: list[Sample], predictions: list[torch.Tensor]) -> None:
    for sample, prediction in zip(samples, predictions, strict=True):
        advance_together([sample], [prediction])


def each_by_its_own_scheduler(samples: list[Sample], predictions: list[torch.Tensor]) -> None:
    for sample, prediction in zip(samples, predictions, strict=True):
        sample.advance(prediction)


def without_walks(samples: list[Sample]) -> list[Sample]:
    return [
        dataclasses.replace(
            sample, walk=None, scheduler=scheduler, step_arguments=step_arguments(scheduler, sample.generator)
        )
        for sample in samples
        for scheduler in [copy.deepcopy(sample.scheduler)]
    ]


def test_strangers_who_step_together_step_as_each_alone_and_as_by_its_own_scheduler(loaded: LoadedModel) -> None:
    together, alone, own = samples_of(loaded), samples_of(loaded), without_walks(samples_of(loaded))
    assert len({sample.walk.num_remembered for sample in together if sample.walk}) >= 3
    stepped(together, advance_together)
    stepped(alone, each_alone)
    stepped(own, each_by_its_own_scheduler)
    for one, two, three in zip(together, alone, own, strict=True):
        assert (one.index, two.index, three.index) == (4, 4, 4)
        assert near(one.latents, two.latents)
        assert near(one.latents, three.latents)
        assert torch.equal(one.generator.get_state(), three.generator.get_state())


def test_stepping_together_takes_a_fraction_of_the_operations(loaded: LoadedModel) -> None:
    def operations(samples: list[Sample], step: Callable[[list[Sample], list[torch.Tensor]], None]) -> int:
        stepped(samples, step, count=2)  # until all remember something
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            stepped(samples, step, count=1)
        return sum(event.name.startswith("aten::") for event in profile.events())

    together = operations(samples_of(loaded), advance_together)
    assert together < operations(without_walks(samples_of(loaded)), each_by_its_own_scheduler) / 3


def test_samples_without_a_walk_have_schedulers_of_their_own_and_are_left_to_them(loaded: LoadedModel) -> None:
    clipping = dataclasses.replace(loaded, schedulers=Schedulers({**CONFIG, "clip_sample": True}))
    first, second = samples_of(clipping)[0], samples_of(clipping)[0]
    assert first.walk is None
    assert first.scheduler is not second.scheduler
    other, same_other = samples_of(loaded)[1], samples_of(loaded)[1]
    advance_together([first, other], [torch.ones_like(first.latents)] * 2)
    assert (first.index, other.index) == (0, 1)
    first.advance(torch.ones_like(first.latents))
    each_by_its_own_scheduler([second, same_other], [torch.ones_like(first.latents)] * 2)
    assert torch.equal(first.latents, second.latents)
    assert near(other.latents, same_other.latents)


def test_a_walk_is_found_once_for_each_plan_and_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.schedulers.MAX_WALKS", 2)
    schedulers = Schedulers(CONFIG)
    plans = [Plan("DDIMScheduler", False, None, count, count) for count in (2, 3, 4)]
    walks = [schedulers.begin(plan)[2] for plan in plans]
    assert schedulers.begin(plans[2])[2] is walks[2]
    assert schedulers.begin(plans[0])[2] is not walks[0]


@pytest.fixture
def half_by_default() -> Iterator[None]:
    """As it is for all threads while a library loads a model in half precision."""
    torch.set_default_dtype(torch.float16)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_walk_found_while_a_model_is_loaded_is_no_other(name: str, request: pytest.FixtureRequest) -> None:
    plan = Plan(name, SCHEDULERS[name].honours_karras, None, 6, 4)
    expected = walk_of(*set_up(plan))
    request.getfixturevalue("half_by_default")
    found = walk_of(*set_up(plan))
    assert expected is not None
    assert found is not None
    assert torch.equal(found.weights, expected.weights)
    assert found.levels == expected.levels


def test_a_picture_painted_while_a_model_is_loaded_is_no_other(
    loaded: LoadedModel, request: pytest.FixtureRequest
) -> None:
    # Its timesteps are no whole numbers, and half precision does not know these weights.
    painting = make_painting(
        prompt="a (red:1.3) cat", scheduler="EulerAncestralDiscreteScheduler", num_inference_steps=7
    )
    forgetful = dataclasses.replace(loaded, prompts=PromptEncoder(loaded.prompts.towers, cache_entries=0))

    def paint() -> torch.Tensor:
        with torch.inference_mode():
            [sample] = begin_samples(forgetful, painting)
            while not sample.finished:
                advance_together([sample], predict_noise([sample]))
            return sample.latents

    expected = paint()
    request.getfixturevalue("half_by_default")
    assert torch.equal(paint(), expected)


def test_strengths_that_make_the_same_steps_share_a_walk() -> None:
    plans = {make_painting(num_inference_steps=10, strength=strength).plan for strength in (0.71, 0.72, 0.79)}
    assert len(plans) == 1
