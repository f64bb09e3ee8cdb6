"""The scenes of each step of a training, drawn here or in processes of their own. No torch here: those start fast."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import count
from multiprocessing import get_context
from typing import Any

import cv2
import numpy as np

from worker.builtin.train.recipe import USUAL_SIZE, Recipe, Shares
from worker.builtin.train.scenes import WORLDS, Scene, make_scene

STEPS_AHEAD = 3
_OF_SIZES, _OF_SCENES = 0, 1  # so that no two draws share their random numbers


def size_of_step(recipe: Recipe, rank: int, step: int) -> int:
    """Processes that train together work at different sizes, and learn from all of them in each step."""
    size: int = _any_of(recipe.sizes, np.random.default_rng((recipe.seed, _OF_SIZES, rank, step)))
    return size


def batch_of_size(recipe: Recipe, size: int) -> int:
    """Pictures in a step: about as many pixels, whatever their size."""
    return min(recipe.largest_batch, max(1, recipe.batch * USUAL_SIZE**2 // size**2))


def make_scenes(recipe: Recipe, rank: int, step: int, indices: Iterable[int]) -> list[Scene]:
    """Some of the scenes of a step. Each depends on its numbers only, not on who draws it beside which others."""
    cv2.setNumThreads(1)
    scenes = []
    for index in indices:
        random = np.random.default_rng((recipe.seed, _OF_SCENES, rank, step, index))
        world = WORLDS[_any_of(recipe.worlds, random)]
        scenes.append(make_scene(random, size_of_step(recipe, rank, step), world))
    return scenes


def scenes_from(recipe: Recipe, rank: int, first_step: int, *, renderers: int) -> Iterator[list[Scene]]:
    """Step after step the new scenes, drawn in `renderers` processes of their own, ahead of time; 0: in this one."""
    if not renderers:
        for step in count(first_step):
            yield make_scenes(recipe, rank, step, range(_fresh(recipe, rank, step)))
    with ProcessPoolExecutor(renderers, mp_context=get_context("spawn")) as pool:
        drawn: list[list[Future[list[Scene]]]] = []
        for step in count(first_step):
            parts = [range(start, _fresh(recipe, rank, step), renderers) for start in range(renderers)]
            drawn.append([pool.submit(make_scenes, recipe, rank, step, part) for part in parts])
            if len(drawn) > STEPS_AHEAD:
                scenes = [part.result() for part in drawn.pop(0)]
                yield [scenes[index % renderers][index // renderers] for index in range(sum(map(len, scenes)))]


def _fresh(recipe: Recipe, rank: int, step: int) -> int:
    return max(1, batch_of_size(recipe, size_of_step(recipe, rank, step)) // recipe.uses_of_a_scene)


def _any_of(shares: Shares, random: np.random.Generator) -> Any:
    choices, probabilities = zip(*shares, strict=True)
    return choices[random.choice(len(choices), p=np.array(probabilities) / sum(probabilities))]
