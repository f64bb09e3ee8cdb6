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


@dataclass(frozen=True)
class StandIn:
    """The scheduler that paints for one that cannot, with its settings; `reason` follows "because"."""

    scheduler: str
    reason: str
    use_karras_sigmas: bool = False


# Names of the documented APIs whose mathematics cannot inpaint, each with the nearest that can.
STAND_INS: dict[str, StandIn] = {
    "DDIMInverseScheduler": StandIn(
        "DDIMScheduler", "it walks from the picture to noise; DDIM walks the same way from noise to the picture"
    ),
    # Source: diffusers 0.42.1; its timesteps go from 1 to 0, and its coefficients are PNDM's (Adams and Bashforth).
    "IPNDMScheduler": StandIn(
        "PNDMScheduler",
        "its times go from 1 to 0 and these models know 999 to 0; PNDM is the same linear multistep method on theirs",
    ),
    # Source: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", algorithm 2.
    "KarrasVeScheduler": StandIn(
        "HeunDiscreteScheduler",
        "its steps ask for a model trained on noise levels; Heun with Karras sigmas takes the same second-order steps",
        use_karras_sigmas=True,
    ),
    # Source: Song et al. 2021, "Score-Based Generative Modeling through Stochastic Differential Equations".
    "ScoreSdeVeScheduler": StandIn(
        "EulerAncestralDiscreteScheduler",
        "its steps ask for a score model; ancestral Euler steps down and adds noise in the same way",
    ),
}

KNOWN_SCHEDULERS: tuple[str, ...] = (*SCHEDULERS, *STAND_INS)


def known_scheduler(name: str) -> str | None:
    """The name as it is written here, whatever its case; None: there is no such scheduler."""
    return {each.casefold(): each for each in KNOWN_SCHEDULERS}.get(name.casefold())


def stand_ins_text() -> str:
    """For the docs: who paints for whom, and why."""
    return "; ".join(
        f"{name} is painted by {each.scheduler}{' with Karras sigmas' if each.use_karras_sigmas else ''}, "
        f"because {each.reason}"
        for name, each in STAND_INS.items()
    )


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
