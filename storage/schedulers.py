"""The scheduler names that a job may carry, and what the API must know of each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SchedulerFacts:
    """`honours_karras`: whether diffusers' class of this name acts on `use_karras_sigmas`."""

    honours_karras: bool


# Tried on diffusers 0.42.1: the others take use_karras_sigmas without any effect.
SCHEDULERS: dict[str, SchedulerFacts] = {
    "DDIMScheduler": SchedulerFacts(honours_karras=False),
    "EulerDiscreteScheduler": SchedulerFacts(honours_karras=True),
    "EulerAncestralDiscreteScheduler": SchedulerFacts(honours_karras=False),
    "DPMSolverMultistepScheduler": SchedulerFacts(honours_karras=True),
    "UniPCMultistepScheduler": SchedulerFacts(honours_karras=True),
}

# Every name of the documented APIs; those outside SCHEDULERS are refused by name.
KNOWN_SCHEDULERS: frozenset[str] = frozenset(SCHEDULERS) | {
    "DDPMScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "DPMSolverSinglestepScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DDIMInverseScheduler",
    "DEISMultistepScheduler",
    "IPNDMScheduler",
    "KarrasVeScheduler",
    "ScoreSdeVeScheduler",
    "LCMScheduler",
}
