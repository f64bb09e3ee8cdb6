"""Schedulers of our own making: always new, always from the model's untouched configuration."""

from __future__ import annotations

import inspect
from pathlib import Path

import diffusers
import pytest
import torch

from storage.schedulers import SCHEDULERS, STAND_INS, num_evaluations, num_steps
from tests.painting import LIBRARY_WARNINGS
from worker.schedulers import inpainting_config, make_scheduler, plan_timesteps, step_arguments

pytestmark = LIBRARY_WARNINGS

CONFIG = inpainting_config(
    {
        "_class_name": "PNDMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "skip_prk_steps": False,
        "steps_offset": 0,
    }
)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_each_name_makes_a_new_scheduler_with_the_models_noise(name: str) -> None:
    first, second = (make_scheduler(name, CONFIG, use_karras_sigmas=False) for _ in range(2))
    assert first is not second
    assert type(first).__name__ == name
    assert (first.config.beta_schedule, first.config.beta_start) == ("scaled_linear", 0.00085)
    assert first.config.steps_offset == 1, "the stock pipelines correct it"


@pytest.mark.parametrize("name", SCHEDULERS)
def test_karras_sigmas_change_the_steps_where_they_are_honoured(name: str) -> None:
    plain, karras = (
        plan_timesteps(make_scheduler(name, CONFIG, use_karras_sigmas=wanted), 10, 10) for wanted in (False, True)
    )
    assert torch.equal(plain, karras) is not SCHEDULERS[name].honours_karras


def test_a_job_without_karras_gets_none_even_from_a_model_that_has_it() -> None:
    config = {**CONFIG, "use_karras_sigmas": True}
    scheduler = make_scheduler("EulerDiscreteScheduler", config, use_karras_sigmas=False)
    assert not scheduler.config.use_karras_sigmas


def test_karras_replaces_another_spacing_of_the_model() -> None:
    config = {**CONFIG, "use_exponential_sigmas": True}
    scheduler = make_scheduler("EulerDiscreteScheduler", config, use_karras_sigmas=True)
    assert scheduler.config.use_karras_sigmas
    assert not scheduler.config.use_exponential_sigmas


def test_a_name_that_is_not_offered_is_refused() -> None:
    with pytest.raises(ValueError, match="KarrasVeScheduler"):
        make_scheduler("KarrasVeScheduler", CONFIG, use_karras_sigmas=False)


@pytest.mark.parametrize(
    ("steps", "strength", "expected"), [(20, 1.0, 20), (20, 0.6, 12), (10, 0.05, 1), (7, 0.0, 1), (1, 0.99, 1)]
)
def test_strength_leaves_its_share_of_the_steps_and_at_least_one(steps: int, strength: float, expected: int) -> None:
    assert num_steps(steps, strength) == expected


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize(("steps", "strength"), [(20, 1.0), (20, 0.6), (9, 0.5), (2, 1.0), (1, 1.0), (3, 0.4), (80, 1)])
def test_the_evaluations_foretold_are_those_that_are_made(name: str, steps: int, strength: float) -> None:
    timesteps = plan_timesteps(make_scheduler(name, CONFIG, use_karras_sigmas=False), steps, num_steps(steps, strength))
    assert len(timesteps) == num_evaluations(steps, strength, name)
    assert timesteps.device.type == "cpu"


@pytest.mark.parametrize("name", [name for name, facts in SCHEDULERS.items() if facts.algorithm_types])
def test_an_algorithm_type_is_given_to_the_solvers_that_have_one(name: str) -> None:
    for kind in SCHEDULERS[name].algorithm_types:
        scheduler = make_scheduler(name, CONFIG, use_karras_sigmas=False, algorithm_type=kind)
        assert scheduler.config.algorithm_type == kind
    assert make_scheduler(name, CONFIG, use_karras_sigmas=False).config.algorithm_type == "dpmsolver++"


def test_only_what_a_scheduler_takes_is_given_to_its_step() -> None:
    generator = torch.Generator()
    given = {
        name: set(step_arguments(make_scheduler(name, CONFIG, use_karras_sigmas=False), generator))
        for name in SCHEDULERS
    }
    assert given["DDIMScheduler"] == {"eta", "generator"}
    assert given["EulerAncestralDiscreteScheduler"] == {"generator"}
    assert given["UniPCMultistepScheduler"] == set()
    assert diffusers.__version__ == "0.42.1", "the equality tests speak of this version"


def test_the_readme_says_who_paints_for_whom_and_why() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for name, each in STAND_INS.items():
        karras = " with Karras sigmas" if each.use_karras_sigmas else ""
        assert f"| `{name}` | `{each.scheduler}`{karras} | {each.reason} |" in readme
    assert all(f"`{name}`" in readme for name in SCHEDULERS)


def test_the_ones_with_stand_ins_cannot_do_it_themselves() -> None:
    """If diffusers mends one, it should paint itself."""
    assert not hasattr(diffusers.ScoreSdeVeScheduler, "step")
    assert "sample_hat" in inspect.signature(diffusers.KarrasVeScheduler.step).parameters
    inverse, ipndm = diffusers.DDIMInverseScheduler(), diffusers.IPNDMScheduler()
    for scheduler in (inverse, ipndm):
        assert not hasattr(scheduler, "add_noise")
        scheduler.set_timesteps(10)
    assert inverse.timesteps[0] < inverse.timesteps[-1]
    assert ipndm.timesteps.max() <= 1
