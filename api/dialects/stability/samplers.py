"""The samplers of the wire, each with the schedulers that come nearest to it, nearest first."""

from __future__ import annotations

from collections.abc import Mapping

from api.dialects.stability.proto import generation_pb2 as wire
from storage.schedulers import SCHEDULERS

# Where the first is diffusers' own twin of the sampler, it alone would do. 2S ancestral has none, and
# diffusers' SDE solver needs a package (torchsde) that is not carried.
NEAREST: Mapping[int, tuple[str, ...]] = {
    wire.SAMPLER_DDIM: ("DDIMScheduler",),
    wire.SAMPLER_DDPM: ("DDPMScheduler", "DDIMScheduler"),
    wire.SAMPLER_K_EULER: ("EulerDiscreteScheduler",),
    wire.SAMPLER_K_EULER_ANCESTRAL: ("EulerAncestralDiscreteScheduler",),
    wire.SAMPLER_K_HEUN: ("HeunDiscreteScheduler", "EulerDiscreteScheduler"),
    wire.SAMPLER_K_DPM_2: ("KDPM2DiscreteScheduler", "DPMSolverMultistepScheduler"),
    wire.SAMPLER_K_DPM_2_ANCESTRAL: ("KDPM2AncestralDiscreteScheduler", "EulerAncestralDiscreteScheduler"),
    wire.SAMPLER_K_LMS: ("LMSDiscreteScheduler", "EulerDiscreteScheduler"),
    wire.SAMPLER_K_DPMPP_2S_ANCESTRAL: ("DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler"),
    wire.SAMPLER_K_DPMPP_2M: ("DPMSolverMultistepScheduler",),
    wire.SAMPLER_K_DPMPP_SDE: ("DPMSolverSDEScheduler", "DPMSolverMultistepScheduler"),
}


def scheduler_for(sampler: int) -> str:
    """The nearest of the schedulers that this installation has. Raises KeyError for no sampler of the wire."""
    return next(name for name in NEAREST[sampler] if name in SCHEDULERS)
