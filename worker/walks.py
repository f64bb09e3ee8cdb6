"""A scheduler's steps as numbers, so that the samples of strangers take theirs in one product.

What a diffusers scheduler does in a step is linear in the latents, the prediction, its own fresh noise and the
tensors that it remembers. The weights are not derived here: the scheduler itself is asked for them, once for each
plan, by letting it step over numbers of which each is ONE for one of those, and 0 for all others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# So large that the noise, which is about 1 everywhere, hides nothing of it; a power of two, so that it rounds nothing.
ONE = 4096.0
# The numbers it steps over: one for latents, prediction and each tensor remembered; those that are 0 but for the
# noise; and those on which the weights are checked, as large as latents get, so that clipping shows.
MAX_REMEMBERED = 12
NUM_COLUMNS = 2 + MAX_REMEMBERED
NUM_EMPTY = 8
NUM_CHECKS = 8
CHECK_SCALE = 10.0
CHECK_TOLERANCE = 1e-4
LATENTS, PREDICTION, NOISE = range(3)
FIRST_REMEMBERED = 3
# Of the noise's weight: below that it is rounding.
SMALLEST_WEIGHT = 1e-9
PROBE_SHAPE = (1, 1, 1, NUM_COLUMNS + NUM_EMPTY + NUM_CHECKS)
# Said wherever numbers are made: while a library loads a model, the type of that is the default of all threads.
FULL = torch.float32


def _columns() -> torch.Tensor:
    """(NUM_COLUMNS, *PROBE_SHAPE): ONE for one of them each, 0 for the others and where empty, and random checks."""
    columns = torch.zeros((NUM_COLUMNS, *PROBE_SHAPE[1:]), dtype=FULL)
    columns[..., :NUM_COLUMNS] = ONE * torch.eye(NUM_COLUMNS, dtype=FULL)[:, None, None]
    checks = torch.randn((NUM_COLUMNS, NUM_CHECKS), generator=torch.Generator("cpu").manual_seed(0), dtype=FULL)
    columns[..., -NUM_CHECKS:] = CHECK_SCALE * checks[:, None, None]
    return columns[:, None]


_COLUMNS = _columns()
Place = tuple[str, int | None]
"""Where a scheduler remembers a tensor: an attribute, or an entry of a list there."""


@dataclass(frozen=True, eq=False)
class Walk:
    """A plan's way through its timesteps. Safe to share between samples: nothing in it changes.

    `scheduler` is set up and has taken no step. For each step: `weights` (1 + m, 3 + m) make the next latents and
    what is then remembered from latents, prediction, noise and what was remembered, m tensors each time; `draws`
    says whether noise is drawn; the latents are shown to the UNet times `input_scales`; and `levels` are how much
    picture and how much noise is in them before it.
    """

    scheduler: Any
    timesteps: torch.Tensor
    weights: torch.Tensor
    draws: tuple[bool, ...]
    draw_dtype: torch.dtype | None
    """None: the latents' own."""
    input_scales: tuple[float, ...]
    levels: tuple[tuple[float, float], ...]

    @property
    def num_remembered(self) -> int:
        return self.weights.shape[1] - 1


def find_walk(
    scheduler: Any, timesteps: torch.Tensor, arguments_with: Callable[[torch.Generator], Mapping[str, Any]]
) -> Walk | None:
    """The walk of a scheduler that has been set up; None where its steps are not linear (it clips, for one).

    `arguments_with`: what its `step` takes beside noise, timestep and latents, with this generator.
    """
    probe = copy.deepcopy(scheduler)
    generator = torch.Generator("cpu").manual_seed(0)
    arguments = arguments_with(generator)
    steps: list[_Step] = []
    scales: list[float] = []
    levels: list[tuple[float, float]] = []
    picture, noise = _COLUMNS[:2]
    for index, timestep in enumerate(timesteps):
        mixed = probe.add_noise(picture, noise, timesteps[index : index + 1]).flatten() / ONE
        levels.append((float(mixed[0]), float(mixed[1])))
        scales.append(float(probe.scale_model_input(picture, timestep).flatten()[0]) / ONE)
        # Not as a tensor: what LCM makes of one is of the default type.
        step = _probe_step(probe, timestep.item(), arguments, generator)
        if step is None:
            return None
        steps.append(step)
    # The stochastic multistep solver draws in full precision, all others in that of the latents.
    in_full = type(scheduler).__name__ == "DPMSolverMultistepScheduler"
    return Walk(
        scheduler=scheduler,
        timesteps=timesteps,
        weights=_needed_weights(steps),
        draws=tuple(step.draws for step in steps),
        draw_dtype=FULL if in_full else None,
        input_scales=tuple(scales),
        levels=tuple(levels),
    )


def take_steps(
    *,
    walks: Sequence[Walk],
    indexes: Sequence[int],
    latents: torch.Tensor,
    predictions: torch.Tensor,
    noise: Sequence[torch.Tensor | None],
    remembered: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step of each of n samples: their next latents (n, c, h, w), and what they remember then.

    `noise`: of those whose step draws, on the CPU. `remembered`: (n, m, c * h * w) in full precision, as made by
    the step before, 0 at first; all walks remember m tensors.
    """
    count = len(walks)
    weights = torch.stack([walk.weights[index] for walk, index in zip(walks, indexes, strict=True)])
    rows = [latents, predictions]
    if any(each is not None for each in noise):
        nothing = torch.zeros((1, *latents.shape[1:]), dtype=FULL)
        drawn = torch.cat([nothing if each is None else each.float() for each in noise])
        rows.append(drawn.to(latents.device))
    else:
        weights = torch.cat([weights[..., :NOISE], weights[..., FIRST_REMEMBERED:]], dim=-1)
    known = torch.cat([*(row.reshape(count, 1, -1).float() for row in rows), remembered], dim=1)
    made = torch.bmm(weights.to(latents.device), known)
    return made[:, 0].view(latents.shape).to(latents.dtype), made[:, 1:]


@dataclass(frozen=True)
class _Step:
    """`weights`: rows make the latents and each of `after`, from latents, prediction, noise and each of `before`."""

    weights: torch.Tensor
    draws: bool
    before: list[Place]
    after: list[Place]


def _probe_step(
    scheduler: Any, timestep: Any, arguments: Mapping[str, Any], generator: torch.Generator
) -> _Step | None:
    before = _places(scheduler)
    if len(before) > MAX_REMEMBERED:
        return None
    for place, column in zip(before, _COLUMNS[FIRST_REMEMBERED - 1 :], strict=False):
        _remember(scheduler, place, column.clone())
    state = generator.get_state()
    latents, prediction = _COLUMNS[0].clone(), _COLUMNS[1].clone()
    made = [scheduler.step(prediction, timestep, latents, **arguments, return_dict=False)[0]]
    draws = not torch.equal(state, generator.get_state())
    noise = torch.zeros(PROBE_SHAPE, dtype=FULL)
    if draws:
        noise = torch.randn(PROBE_SHAPE, generator=_generator_at(state), dtype=FULL)
    after = _places(scheduler)
    made += [_remembered(scheduler, place) for place in after]
    columns = _COLUMNS[: 2 + len(before)].flatten(1)
    weights = _weights_of(torch.cat(made).flatten(1), columns, noise.flatten())
    return None if weights is None else _Step(weights, draws, before, after)


def _generator_at(state: torch.Tensor) -> torch.Generator:
    generator = torch.Generator("cpu")
    generator.set_state(state)
    return generator


def _weights_of(made: torch.Tensor, columns: torch.Tensor, noise: torch.Tensor) -> torch.Tensor | None:
    """What each of `made` was made with, of the columns and the noise; None where that does not explain it."""
    empty, checked = slice(NUM_COLUMNS, NUM_COLUMNS + NUM_EMPTY), slice(-NUM_CHECKS, None)
    drawn = noise[empty] @ noise[empty]
    of_noise = (made[:, empty] @ noise[empty] / drawn if drawn else made.new_zeros(len(made)))[:, None]
    of_columns = (made - of_noise * noise)[:, : len(columns)] / ONE
    weights = torch.cat([of_columns[:, :NOISE], of_noise, of_columns[:, NOISE:]], dim=1)
    weights = torch.where(weights.abs() < SMALLEST_WEIGHT * of_noise.abs(), 0.0, weights)
    known = torch.cat([columns[:NOISE], noise[None], columns[NOISE:]])[:, checked]
    wrong = (weights @ known - made[:, checked]).abs().amax(1)
    allowed = CHECK_TOLERANCE * (weights.abs() @ known.abs() + 1).amax(1)
    return weights if bool((wrong <= allowed).all()) else None


def _needed_weights(steps: Sequence[_Step]) -> torch.Tensor:
    """(steps, 1 + m, 3 + m): without what is remembered and never used again."""
    needed: list[list[int]] = [[]]
    for step in reversed(steps):
        rows = step.weights[[0, *(1 + each for each in needed[0])]]
        used = rows[:, FIRST_REMEMBERED:].abs().sum(0)
        needed.insert(0, [number for number in range(len(step.before)) if used[number] > 0])
    most = max(len(each) for each in needed)
    weights = torch.zeros((len(steps), 1 + most, FIRST_REMEMBERED + most), dtype=FULL)
    for index, step in enumerate(steps):
        rows = torch.tensor([0, *(1 + each for each in needed[index + 1])])
        columns = torch.tensor([*range(FIRST_REMEMBERED), *(FIRST_REMEMBERED + each for each in needed[index])])
        weights[index, : len(rows), : len(columns)] = step.weights[rows][:, columns]
    return weights


def _places(scheduler: Any) -> list[Place]:
    found: list[Place] = []
    for name, value in sorted(vars(scheduler).items()):
        if _is_latents(value):
            found.append((name, None))
        elif isinstance(value, list):
            found += [(name, index) for index, each in enumerate(value) if _is_latents(each)]
    return found


def _is_latents(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == PROBE_SHAPE


def _remembered(scheduler: Any, place: Place) -> torch.Tensor:
    name, index = place
    value: torch.Tensor = getattr(scheduler, name) if index is None else getattr(scheduler, name)[index]
    return value


def _remember(scheduler: Any, place: Place, value: torch.Tensor) -> None:
    name, index = place
    if index is None:
        setattr(scheduler, name, value)
    else:
        getattr(scheduler, name)[index] = value
