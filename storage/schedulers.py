"""The scheduler names that a job may carry, and what the API must know of each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SchedulerFacts:
    """What diffusers' class of this name makes of what a job asks for.

    `honours_karras`: it acts on `use_karras_sigmas`. `algorithm_types`: the values of `algorithm_type`
    that it acts on, its own choice first. `order`: UNet evaluations of one step. `repeats_a_step`: one
    step takes two evaluations to get going.
    """

    honours_karras: bool = False
    algorithm_types: tuple[str, ...] = ()
    order: int = 1
    repeats_a_step: bool = False


SOLVERS = ("dpmsolver++", "sde-dpmsolver++")

# Tried on diffusers 0.42.1: the others take use_karras_sigmas and algorithm_type without any effect.
SCHEDULERS: dict[str, SchedulerFacts] = {
    "DDIMScheduler": SchedulerFacts(),
    "EulerDiscreteScheduler": SchedulerFacts(honours_karras=True),
    "EulerAncestralDiscreteScheduler": SchedulerFacts(),
    "DPMSolverMultistepScheduler": SchedulerFacts(honours_karras=True, algorithm_types=SOLVERS),
    "UniPCMultistepScheduler": SchedulerFacts(honours_karras=True),
    "DDPMScheduler": SchedulerFacts(),
    "PNDMScheduler": SchedulerFacts(repeats_a_step=True),
    "LMSDiscreteScheduler": SchedulerFacts(honours_karras=True),
    "HeunDiscreteScheduler": SchedulerFacts(honours_karras=True, order=2),
    "KDPM2DiscreteScheduler": SchedulerFacts(honours_karras=True, order=2),
    "KDPM2AncestralDiscreteScheduler": SchedulerFacts(honours_karras=True, order=2),
    "DPMSolverSinglestepScheduler": SchedulerFacts(honours_karras=True, algorithm_types=SOLVERS),
    "DEISMultistepScheduler": SchedulerFacts(honours_karras=True),
    "LCMScheduler": SchedulerFacts(),
}

# Names of the documented APIs that cannot inpaint, each with the reason: what follows "because".
UNUSABLE_SCHEDULERS: dict[str, str] = {
    "DDIMInverseScheduler": "it turns a picture into noise instead of noise into a picture",
    "IPNDMScheduler": "it cannot add noise to the picture that is to be repainted",
    "KarrasVeScheduler": "its steps are made for another kind of model",
    "ScoreSdeVeScheduler": "its steps are made for another kind of model",
}

KNOWN_SCHEDULERS: frozenset[str] = frozenset(SCHEDULERS) | frozenset(UNUSABLE_SCHEDULERS)


def num_steps(num_inference_steps: int, strength: float) -> int:
    """Denoising steps of a picture: the last `strength` of the schedule, at least one."""
    return max(1, min(int(num_inference_steps * strength), num_inference_steps))


def num_evaluations(num_inference_steps: int, strength: float, scheduler: str) -> int:
    """UNet evaluations of a picture, as diffusers' classes make them; a test counts them all."""
    facts = SCHEDULERS.get(scheduler, SchedulerFacts())
    steps = num_steps(num_inference_steps, strength)
    # The last step of a second-order scheduler has no second half.
    evaluations = steps * facts.order - (facts.order - 1)
    return evaluations + (facts.repeats_a_step and num_inference_steps > 1)
