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

from storage.schedulers import SCHEDULERS
from worker.walks import Walk, find_walk

MAX_WALKS = 256


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
    num_steps: int
    """The last ones of the schedule, which are walked."""


class Schedulers:
    """One model's schedulers: each made once, its walk through a plan found once. Safe to use from many threads.

    Making one anew takes diffusers up to 0.16 s (the KDPM2 ones work through all the noise levels of the
    training), as long as many steps; finding a walk takes as long as the scheduler's own steps.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._pristine: dict[tuple[str, bool, str | None], Any] = {}
        self._walks: dict[Plan, Walk | None] = {}

    def prepare(self, plan: Plan) -> None:
        """Find the plan's walk, if it is not known yet. Raises ValueError for a scheduler that is not offered."""
        if plan in self._walks:
            return
        scheduler, timesteps = self._set_up(plan)
        walk = find_walk(scheduler, timesteps, functools.partial(step_arguments, scheduler))
        with self._lock:
            if len(self._walks) >= MAX_WALKS:
                del self._walks[next(iter(self._walks))]
            self._walks[plan] = walk

    def begin(self, plan: Plan) -> tuple[Any, torch.Tensor, Walk | None]:
        """A sample's scheduler, the timesteps it is to walk through, and its walk.

        With a walk the scheduler is shared and takes no step; without one it is the sample's own.
        """
        self.prepare(plan)
        walk = self._walks.get(plan)
        if walk is not None:
            return walk.scheduler, walk.timesteps, walk
        return *self._set_up(plan), None

    def _set_up(self, plan: Plan) -> tuple[Any, torch.Tensor]:
        scheduler = copy.deepcopy(self._pristine_of(plan))
        return scheduler, plan_timesteps(scheduler, plan.num_inference_steps, plan.num_steps)

    def _pristine_of(self, plan: Plan) -> Any:
        key = (plan.scheduler, plan.use_karras_sigmas, plan.algorithm_type)
        if key in self._pristine:
            return self._pristine[key]
        scheduler = make_scheduler(
            plan.scheduler,
            self._config,
            use_karras_sigmas=plan.use_karras_sigmas,
            algorithm_type=plan.algorithm_type,
        )
        with self._lock:
            return self._pristine.setdefault(key, scheduler)


def inpainting_config(config: Mapping[str, Any], *, corrects_offset: bool = True) -> dict[str, Any]:
    """The scheduler configuration of a model folder, with the corrections of the stock pipelines.

    Source: StableDiffusionInpaintPipeline.__init__ of diffusers 0.42.1; that of Stable Diffusion XL leaves
    `steps_offset` as it is. Runge-Kutta steps are skipped for both: no picture can be begun among them.
    """
    kept = {key: value for key, value in config.items() if key != "_use_default_values"}
    return kept | {"skip_prk_steps": True} | ({"steps_offset": 1} if corrects_offset else {})


def plan_timesteps(scheduler: Any, num_inference_steps: int, num_steps: int) -> torch.Tensor:
    """Set the scheduler up and return the timesteps to walk through, on the CPU.

    Some schedulers index tables on the CPU with them. Source: get_timesteps of the stock pipelines.
    """
    # LCM takes its steps from a longer schedule; asked for more than that has, diffusers gives up.
    longest = getattr(scheduler.config, "original_inference_steps", num_inference_steps)
    more = {"original_inference_steps": num_inference_steps} if num_inference_steps > longest else {}
    scheduler.set_timesteps(num_inference_steps, **more)
    start = (num_inference_steps - num_steps) * scheduler.order
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
