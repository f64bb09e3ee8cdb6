"""The samplers of the wire, each with diffusers' scheduler that is its twin or comes nearest to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from api.dialects.stability.proto import generation_pb2 as wire

SDE_SOLVER = "sde-dpmsolver++"


@dataclass(frozen=True)
class Twin:
    """`is_exact`: diffusers has this very sampler."""

    scheduler: str
    algorithm_type: str | None = None
    is_exact: bool = True

    @property
    def name(self) -> str:
        """As people read it."""
        return f"{self.scheduler} ({self.algorithm_type})" if self.algorithm_type else self.scheduler


# Of 2S ancestral diffusers has none (k-diffusion has, and brings torchvision along): the nearest takes single steps
# and adds noise after each. Its own twin of the SDE sampler needs torchsde, of which there has been no release since
# 2023, so it is not carried: the nearest solves the same equation.
TWINS: Mapping[int, Twin] = {
    wire.SAMPLER_DDIM: Twin("DDIMScheduler"),
    wire.SAMPLER_DDPM: Twin("DDPMScheduler"),
    wire.SAMPLER_K_EULER: Twin("EulerDiscreteScheduler"),
    wire.SAMPLER_K_EULER_ANCESTRAL: Twin("EulerAncestralDiscreteScheduler"),
    wire.SAMPLER_K_HEUN: Twin("HeunDiscreteScheduler"),
    wire.SAMPLER_K_DPM_2: Twin("KDPM2DiscreteScheduler"),
    wire.SAMPLER_K_DPM_2_ANCESTRAL: Twin("KDPM2AncestralDiscreteScheduler"),
    wire.SAMPLER_K_LMS: Twin("LMSDiscreteScheduler"),
    wire.SAMPLER_K_DPMPP_2S_ANCESTRAL: Twin("DPMSolverSinglestepScheduler", SDE_SOLVER, is_exact=False),
    wire.SAMPLER_K_DPMPP_2M: Twin("DPMSolverMultistepScheduler"),
    wire.SAMPLER_K_DPMPP_SDE: Twin("DPMSolverMultistepScheduler", SDE_SOLVER, is_exact=False),
}
