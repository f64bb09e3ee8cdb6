"""By how much two pieces that meet differ in brightness, for the seam between them to be taken away."""

from __future__ import annotations

import numpy as np

from worker.removing.scene import Floats, Scene, Whole, look_up

FORGIVEN_STEP = 16.0
"""Steps much higher than this many gray levels are edges of things, not seams to be smoothed away."""
REACH = 2
PLACES_AT_ONCE = 4096


def steps_around(scene: Scene, y: Whole, x: Whole, one: Whole, other: Whole) -> tuple[Floats, Floats]:
    """(n, 3): how much brighter what `other` (n, 2) brings to (y, x) is than what `one` does; and its weight (n,).

    The mean of all up to REACH around each place, where grain cancels, but for those far from that mean: there
    edges meet askew. The weight is 0 where nothing can be compared.
    """
    steps, weights = np.zeros((len(y), 3)), np.zeros(len(y))
    for begin in range(0, len(y), PLACES_AT_ONCE):
        some = slice(begin, begin + PLACES_AT_ONCE)
        steps[some], weights[some] = _steps(scene, y[some], x[some], one[some], other[some])
    return steps, weights


def weight_of(step: Floats) -> Floats:
    """(…, c) -> (…): hardly anything for an edge's, so that no halo spreads from where a thing was cut."""
    weight: Floats = 1 / np.square(1 + np.square(np.abs(step).max(axis=-1, initial=0) / FORGIVEN_STEP))
    return weight


def _steps(scene: Scene, y: Whole, x: Whole, one: Whole, other: Whole) -> tuple[Floats, Floats]:
    around = np.arange(-REACH, REACH + 1)
    y, x = y[:, None, None] + around[:, None], x[:, None, None] + around
    here_y, here_x = y + one[:, :1, None], x + one[:, 1:, None]
    there_y, there_x = y + other[:, :1, None], x + other[:, 1:, None]
    picture = scene.softened(1)
    found = (look_up(picture, there_y, there_x) - look_up(picture, here_y, here_x)).reshape(len(y), -1, 4)
    known = scene.is_known(here_y, here_x) & scene.is_known(there_y, there_x)
    trust = known.reshape(found.shape[:2]).astype(np.float32)
    trust *= weight_of(found - _mean(found, trust)[:, None])
    step = _mean(found, trust)[:, :3]
    return step, trust.mean(axis=1) * weight_of(step)


def _mean(values: Floats, weight: Floats) -> Floats:
    """(n, m, c), (n, m) -> (n, c); 0 where nothing has any weight."""
    total: Floats = (weight[:, None, :] @ values)[:, 0]
    total /= np.maximum(weight.sum(axis=1), 1e-9)[:, None]
    return total
