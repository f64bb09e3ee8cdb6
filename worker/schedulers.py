"""Each sample's own scheduler, made new from the model's untouched configuration."""

from __future__ import annotations

import copy
import functools
import inspect
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch

from storage.schedulers import SCHEDULERS, num_steps


def make_scheduler(
    name: str, config: Mapping[str, Any], *, use_karras_sigmas: bool, algorithm_type: str | None = None
) -> Any:
    """A new diffusers scheduler of class `name`.

    `config` is the model's own scheduler configuration, never that of a scheduler made here: from_config
    carries the keys of one class over into the next. `algorithm_type` None: the model's, or the class's own.
    Raises ValueError for a name that is not offered.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"no scheduler of this name: {name}")
    facts = SCHEDULERS[name]
    changes: dict[str, Any] = {}
    if facts.honours_karras:
        changes["use_karras_sigmas"] = use_karras_sigmas
        if use_karras_sigmas:  # diffusers refuses two spacings at once
            changes |= {"use_exponential_sigmas": False, "use_beta_sigmas": False}
    if algorithm_type in facts.algorithm_types:
        changes["algorithm_type"] = algorithm_type
    return getattr(diffusers, name).from_config(dict(config), **changes)


@dataclass(frozen=True)
class Plan:
    """What decides a sample's walk through the timesteps."""

    scheduler: str
    use_karras_sigmas: bool
    algorithm_type: str | None
    num_inference_steps: int
    strength: float


class Schedulers:
    """One model's schedulers: each made once, and copied for each sample. Safe to use from many threads.

    Making one anew takes diffusers up to 0.16 s (the KDPM2 ones work through all the noise levels of the
    training), as long as many steps.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._pristine: dict[tuple[str, bool, str | None], Any] = {}

    def prepare(self, plan: Plan) -> None:
        """Make the scheduler, if it is not there yet. Raises ValueError for one that is not offered."""
        key = (plan.scheduler, plan.use_karras_sigmas, plan.algorithm_type)
        if key in self._pristine:
            return
        scheduler = make_scheduler(
            plan.scheduler,
            self._config,
            use_karras_sigmas=plan.use_karras_sigmas,
            algorithm_type=plan.algorithm_type,
        )
        with self._lock:
            self._pristine.setdefault(key, scheduler)

    def begin(self, plan: Plan) -> tuple[Any, torch.Tensor]:
        """A sample's own scheduler, and the timesteps it is to walk through."""
        self.prepare(plan)
        scheduler = copy.deepcopy(self._pristine[plan.scheduler, plan.use_karras_sigmas, plan.algorithm_type])
        return scheduler, plan_timesteps(scheduler, plan.num_inference_steps, plan.strength)


def inpainting_config(config: Mapping[str, Any], *, corrects_offset: bool = True) -> dict[str, Any]:
    """The scheduler configuration of a model folder, with the corrections of the stock pipelines.

    Source: StableDiffusionInpaintPipeline.__init__ of diffusers 0.42.1; that of Stable Diffusion XL leaves
    `steps_offset` as it is. Runge-Kutta steps are skipped for both: no picture can be begun among them.
    """
    kept = {key: value for key, value in config.items() if key != "_use_default_values"}
    return kept | {"skip_prk_steps": True} | ({"steps_offset": 1} if corrects_offset else {})


def plan_timesteps(scheduler: Any, num_inference_steps: int, strength: float) -> torch.Tensor:
    """Set the scheduler up and return the timesteps to walk through, on the CPU.

    Some schedulers index tables on the CPU with them. Source: get_timesteps of the stock pipelines.
    """
    # LCM takes its steps from a longer schedule; asked for more than that has, diffusers gives up.
    longest = getattr(scheduler.config, "original_inference_steps", num_inference_steps)
    more = {"original_inference_steps": num_inference_steps} if num_inference_steps > longest else {}
    scheduler.set_timesteps(num_inference_steps, **more)
    start = (num_inference_steps - num_steps(num_inference_steps, strength)) * scheduler.order
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
