"""Each sample's own scheduler, made new from the model's untouched configuration."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
import torch

from storage.schedulers import SCHEDULERS


def make_scheduler(name: str, config: Mapping[str, Any], *, use_karras_sigmas: bool) -> Any:
    """A new diffusers scheduler of class `name`.

    `config` is the model's own scheduler configuration, never that of a scheduler made here: from_config
    carries the keys of one class over into the next. Raises ValueError for a name that is not offered.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"no scheduler of this name: {name}")
    changes: dict[str, Any] = {}
    if SCHEDULERS[name].honours_karras:
        changes["use_karras_sigmas"] = use_karras_sigmas
        if use_karras_sigmas:  # diffusers refuses two spacings at once
            changes |= {"use_exponential_sigmas": False, "use_beta_sigmas": False}
    return getattr(diffusers, name).from_config(dict(config), **changes)


def inpainting_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The scheduler configuration of a model folder, with the two corrections of the stock pipelines.

    Source: StableDiffusionInpaintPipeline.__init__ of diffusers 0.42.1.
    """
    kept = {key: value for key, value in config.items() if key != "_use_default_values"}
    return kept | {"steps_offset": 1, "skip_prk_steps": True}


def num_evaluations(num_inference_steps: int, strength: float) -> int:
    """Denoising steps of a sample: the last `strength` of the schedule, at least one."""
    return max(1, min(int(num_inference_steps * strength), num_inference_steps))


def plan_timesteps(scheduler: Any, num_inference_steps: int, strength: float) -> torch.Tensor:
    """Set the scheduler up and return the timesteps to walk through, on the CPU.

    Some schedulers index tables on the CPU with them. Source: get_timesteps of the stock pipelines.
    """
    scheduler.set_timesteps(num_inference_steps)
    start = (num_inference_steps - num_evaluations(num_inference_steps, strength)) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    timesteps: torch.Tensor = scheduler.timesteps[start:]
    return timesteps


def step_arguments(scheduler: Any, generator: torch.Generator) -> dict[str, Any]:
    """What this scheduler's `step` takes beside noise, timestep and latents: no DDIM noise, our generator."""
    offered = {"eta": 0.0, "generator": generator}
    return {name: value for name, value in offered.items() if name in _step_parameters(type(scheduler).__name__)}


@functools.cache
def _step_parameters(name: str) -> frozenset[str]:
    return frozenset(inspect.signature(getattr(diffusers, name).step).parameters)
