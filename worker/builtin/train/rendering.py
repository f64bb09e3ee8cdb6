"""The scenes of each step of a training, drawn here or in processes of their own. No torch here: those start fast."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import count
from multiprocessing import get_context

import cv2
import numpy as np

from worker.builtin.train.recipe import Recipe
from worker.builtin.train.scenes import NARROW, WIDE, Scene, make_scene

STEPS_AHEAD = 3
_OF_SIZES, _OF_SCENES = 0, 1  # so that no two draws share their random numbers


def size_of_step(recipe: Recipe, step: int) -> int:
    """The same in all processes that train together."""
    is_large = np.random.default_rng((recipe.seed, _OF_SIZES, step)).random() < recipe.large_share
    return recipe.large_size if is_large else recipe.small_size


def batch_of_size(recipe: Recipe, size: int) -> int:
    """Pictures in a step: about as many pixels, whatever their size."""
    return max(1, recipe.batch * recipe.small_size**2 // size**2)


def make_scenes(recipe: Recipe, rank: int, step: int, indices: Iterable[int]) -> list[Scene]:
    """Some of the scenes of a step. Each depends on its numbers only, not on who draws it beside which others."""
    cv2.setNumThreads(1)
    scenes = []
    for index in indices:
        random = np.random.default_rng((recipe.seed, _OF_SCENES, rank, step, index))
        world = NARROW if random.random() < recipe.narrow_share else WIDE
        scenes.append(make_scene(random, size_of_step(recipe, step), world))
    return scenes


def scenes_from(recipe: Recipe, rank: int, first_step: int, *, renderers: int) -> Iterator[list[Scene]]:
    """Step after step the new scenes, drawn in `renderers` processes of their own, ahead of time; 0: in this one."""
    if not renderers:
        for step in count(first_step):
            yield make_scenes(recipe, rank, step, range(_fresh(recipe, step)))
    with ProcessPoolExecutor(renderers, mp_context=get_context("spawn")) as pool:
        drawn: list[list[Future[list[Scene]]]] = []
        for step in count(first_step):
            parts = [range(start, _fresh(recipe, step), renderers) for start in range(renderers)]
            drawn.append([pool.submit(make_scenes, recipe, rank, step, part) for part in parts])
            if len(drawn) > STEPS_AHEAD:
                scenes = [part.result() for part in drawn.pop(0)]
                yield [scenes[index % renderers][index // renderers] for index in range(sum(map(len, scenes)))]


def _fresh(recipe: Recipe, step: int) -> int:
    return max(1, batch_of_size(recipe, size_of_step(recipe, step)) // recipe.uses_of_a_scene)
