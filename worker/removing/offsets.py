"""By which offsets the picture repeats itself: each patch's most similar other one, and where those offsets gather."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from worker.removing.scene import Cells, Flags, Floats, Scene, Whole, look_up, squares_of, valid_moves

MATCHED_PIXELS = 36_000
"""The patches of a larger picture are matched at a smaller size."""
PATCH = 8
MIN_PATCHES = 2
DESCRIPTOR_LENGTH = 16
SAMPLED_PATCHES = 2000
ROUNDS = 5
NEAREST_SHARE = 15
PEAK_SPREAD = 1.4
PEAK_DISTANCE = 7
MAX_PEAKS = 300
MIN_CHOICES = 4
MAX_EXTRA = 24
SUPPORTERS = 12
PLAIN_MISMATCH = 3 * 30.0**2


@dataclass(frozen=True)
class Matches:
    """Patches (by their top left corner) and by how much (n, 2) their best match is away."""

    y: Whole
    x: Whole
    offset: Whole


@dataclass(frozen=True)
class Offsets:
    """By how much to move, `moves` (k, 2), and how seldom the picture repeats itself by that, `rarity` (k,), 0..1."""

    moves: Whole
    rarity: Floats


def find_offsets(
    scene: Scene, cells: Cells, wanted: int, rng: np.random.Generator, check: Callable[[], None]
) -> Offsets:
    """About `wanted` offsets from which `cells` may be copied; none where there is no place to copy from."""
    height, width = scene.shape
    factor = max(1, math.ceil(math.sqrt(height * width / MATCHED_PIXELS)))
    rows, columns = height // factor, width // factor
    whole = (slice(rows * factor), slice(columns * factor))
    picture = np.asarray(cv2.resize(scene.picture[whole], (columns, rows), interpolation=cv2.INTER_AREA), np.float32)
    usable: Flags = np.all(squares_of(scene.usable, factor), axis=(2, 3))
    matches = match_patches(picture, usable, rng, check)
    hole: Flags = np.any(squares_of(scene.hole, factor), axis=(2, 3))
    peaks, counts = _gather(matches, hole)
    which = _choose(scene, cells, peaks * factor, counts, wanted)
    chosen = peaks[which] * factor
    rarity = 1 - np.sqrt(counts[which] / max(counts.max(initial=0), 1e-9))
    check()
    if factor > 1:
        chosen = _refine(scene, chosen, matches, factor, rng)
    extra = _extra(scene, cells, chosen)
    moves, first = np.unique(np.concatenate([chosen, extra]), axis=0, return_index=True)
    return Offsets(moves=moves, rarity=np.concatenate([rarity, np.ones(len(extra))])[first].astype(np.float32))


def match_patches(picture: Floats, usable: Flags, rng: np.random.Generator, check: Callable[[], None]) -> Matches:
    """Each usable patch's most similar one that is not near it.

    A randomised search with propagation (Barnes et al. 2009, "PatchMatch"), of all patches at once, by their
    principal components. Near ones are left out, as by He and Sun (2012, "Statistics of Patch Offsets for
    Image Completion"): they only say that pictures are smooth.
    """
    sums = cv2.integral((~usable).astype(np.uint8), sdepth=cv2.CV_32S)
    bad = sums[PATCH:, PATCH:] - sums[:-PATCH, PATCH:] - sums[PATCH:, :-PATCH] + sums[:-PATCH, :-PATCH]
    y, x = np.nonzero(bad == 0)
    if len(y) < MIN_PATCHES:
        nothing = np.zeros(0, np.int64)
        return Matches(y=nothing, x=nothing, offset=np.zeros((0, 2), np.int64))
    search = _Search(y, x, bad.shape, _descriptors(picture, y, x, rng), max(usable.shape) / NEAREST_SHARE)
    search.attempt(rng.integers(0, len(y), len(y)))
    for turn in range(ROUNDS):
        search.propagate((8, 4, 2, 1) if turn == 0 else (2, 1))
        search.wander(max(usable.shape) / 2, rng)
        check()
    found = np.isfinite(search.cost)
    best = search.best[found]
    return Matches(y=y[found], x=x[found], offset=np.stack([y[best] - y[found], x[best] - x[found]], axis=1))


class _Search:
    """Patches by number, and the best match found so far of each."""

    def __init__(self, y: Whole, x: Whole, shape: tuple[int, int], descriptors: Floats, nearest: float) -> None:
        self.best: Whole = np.arange(len(y))
        self.cost: Floats = np.full(len(y), np.inf, np.float32)
        self._y, self._x = y, x
        self._descriptors, self._nearest = descriptors, nearest
        self._number = np.full(shape, -1, np.int64)
        self._number[y, x] = np.arange(len(y))

    def attempt(self, source: Whole) -> None:
        """Take `source`, a patch for each (-1: none), where it is better."""
        distance = np.maximum(np.abs(self._y[source] - self._y), np.abs(self._x[source] - self._x))
        some = np.nonzero((source >= 0) & (source != self.best) & (distance >= self._nearest))[0]
        apart = self._descriptors.take(some, axis=0) - self._descriptors.take(source[some], axis=0)
        cost = np.einsum("nd,nd->n", apart, apart)
        better = cost < self.cost[some]
        self.best[some[better]] = source[some[better]]
        self.cost[some[better]] = cost[better]

    def propagate(self, steps: tuple[int, ...]) -> None:
        """What is good for a patch may be good for its neighbour."""
        for step in steps:
            for down, right in ((0, step), (0, -step), (step, 0), (-step, 0)):
                beside = self._at(self._y - down, self._x - right)
                match = self.best[beside]
                self.attempt(np.where(beside >= 0, self._at(self._y[match] + down, self._x[match] + right), -1))

    def wander(self, radius: float, rng: np.random.Generator) -> None:
        """Look around each match, nearer and nearer."""
        while radius >= 1:
            down, right = np.rint(rng.uniform(-radius, radius, (2, len(self.best)))).astype(np.int64)
            self.attempt(self._at(self._y[self.best] + down, self._x[self.best] + right))
            radius /= 3

    def _at(self, y: Whole, x: Whole) -> Whole:
        height, width = self._number.shape
        inside = (y >= 0) & (x >= 0) & (y < height) & (x < width)
        return np.where(inside, look_up(self._number, y, x), -1)


def _descriptors(picture: Floats, y: Whole, x: Whole, rng: np.random.Generator) -> Floats:
    """The first principal components of the patches at (y, x)."""
    some = rng.choice(len(y), min(len(y), SAMPLED_PATCHES), replace=False)
    inner_y, inner_x = (each.ravel() for each in np.mgrid[:PATCH, :PATCH])
    sample = picture[y[some, None] + inner_y, x[some, None] + inner_x].reshape(len(some), -1)
    sample -= sample.mean(axis=0)
    _, vectors = np.linalg.eigh(sample.T @ sample)
    columns = []
    for vector in vectors.T[: -DESCRIPTOR_LENGTH - 1 : -1]:
        kernel = vector.reshape(PATCH, PATCH, 3)
        response = np.zeros(picture.shape[:2], np.float32)
        for channel in range(3):
            response += cv2.filter2D(picture[..., channel], cv2.CV_32F, kernel[..., channel].copy(), anchor=(0, 0))
        columns.append(response[y, x])
    return np.stack(columns, axis=1)


def _gather(matches: Matches, hole: Flags) -> tuple[Whole, Floats]:
    """Offsets at which matches gather, and how many they are: (k, 2) and (k,). Patches near the hole count most."""
    height, width = hole.shape
    distance = cv2.distanceTransform((~hole).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_3)
    weight = np.exp(-distance / max(8.0, math.sqrt(np.count_nonzero(hole))))[matches.y, matches.x]
    counts = np.zeros((2 * height + 1, 2 * width + 1), np.float32)
    for sign in (1, -1):
        np.add.at(counts, (sign * matches.offset[:, 0] + height, sign * matches.offset[:, 1] + width), weight)
    counts = np.asarray(cv2.GaussianBlur(counts, (0, 0), PEAK_SPREAD), np.float32)
    tops = cv2.dilate(counts, np.ones((PEAK_DISTANCE, PEAK_DISTANCE), np.uint8))
    y, x = np.nonzero((counts == tops) & (counts > 0))
    order = np.argsort(-counts[y, x], kind="stable")[:MAX_PEAKS]
    y, x = y[order], x[order]
    return np.stack([y - height, x - width], axis=1), counts[y, x]


def _choose(scene: Scene, cells: Cells, offsets: Whole, counts: Floats, wanted: int) -> Whole:
    """Which, up to `wanted` of them: frequent ones, so that as many cells as possible have as many as possible."""
    serves = valid_moves(scene, cells, cells.everyone, np.broadcast_to(offsets, (len(cells), *offsets.shape)))
    worth = np.sqrt(counts)
    choices = np.zeros(len(cells), np.float32)
    chosen: list[int] = []
    for _ in range(min(wanted, len(offsets))):
        score = (1 / (1 + choices)) @ serves * worth
        index = int(np.argmax(score))
        if score[index] <= 0:
            break
        chosen.append(index)
        worth[index] = 0
        choices += serves[:, index]
    return np.array(chosen, np.int64)


def _refine(scene: Scene, offsets: Whole, matches: Matches, factor: int, rng: np.random.Generator) -> Whole:
    """Offsets that were found at a size `factor` times smaller, as they fit some of their patches best at full size."""
    if not len(offsets) or not len(matches.y):
        return offsets
    order = rng.permutation(len(matches.y))
    y, x, offset = matches.y[order] * factor, matches.x[order] * factor, matches.offset[order] * factor
    which = np.zeros((len(offsets), SUPPORTERS), np.int64)
    backwards, weight = np.zeros(which.shape, bool), np.zeros(which.shape, np.float32)
    down, right = np.ascontiguousarray(offset.T)
    for index, each in enumerate(offsets):
        forth = np.nonzero((np.abs(down - each[0]) <= factor) & (np.abs(right - each[1]) <= factor))[0][:SUPPORTERS]
        back = np.nonzero((np.abs(down + each[0]) <= factor) & (np.abs(right + each[1]) <= factor))[0]
        back = back[: SUPPORTERS - len(forth)]
        count = len(forth) + len(back)
        which[index, :count] = np.concatenate([forth, back])
        backwards[index, len(forth) : count] = True
        weight[index, :count] = 1
    inner = np.arange(0, PATCH * factor, 2 * factor)
    # Staggered: samples in a plain grid all miss the edges of what is as regular as they are.
    stagger = 2 * factor * np.arange(len(inner)) // len(inner)
    rows = (y[which] + backwards * offset[which, 0])[..., None, None] + inner[:, None] + stagger
    columns = (x[which] + backwards * offset[which, 1])[..., None, None] + inner + stagger[:, None]
    picture = scene.softened(1)
    own = look_up(picture, rows, columns)
    best, best_cost = offsets.copy(), np.full(len(offsets), np.inf)
    for step in itertools.product(range(-factor, factor + 1), repeat=2):
        moved = offsets + np.array(step)
        apart = look_up(picture, rows + moved[:, :1, None, None], columns + moved[:, 1:, None, None])
        apart -= own
        difference = np.einsum("oshwc,oshwc->os", apart, apart) / len(inner) ** 2
        cost = (np.minimum(difference, PLAIN_MISMATCH) * weight).sum(axis=1)
        better = cost < best_cost
        best[better], best_cost[better] = moved[better], cost[better]
    return best


def _extra(scene: Scene, cells: Cells, offsets: Whole) -> Whole:
    """Offsets for the cells that these leave with few choices: each from the nearest place, one serving many."""
    moves = np.broadcast_to(offsets, (len(cells), *offsets.shape))
    lacking = np.nonzero(valid_moves(scene, cells, cells.everyone, moves).sum(axis=1) < MIN_CHOICES)[0]
    corners = np.stack([cells.rows, cells.columns], axis=1) * cells.size
    nearest = scene.nearest_sources(cells.size)[corners[:, 0], corners[:, 1]]
    lacking = lacking[nearest[lacking, 0] >= 0]
    found: list[Whole] = []
    while len(lacking) and len(found) < MAX_EXTRA:
        # The deepest first: what serves it often serves those around it.
        depth = np.abs(nearest[lacking] - corners[lacking]).max(axis=1)
        deepest = lacking[int(np.argmax(depth))]
        found.append(nearest[deepest] - corners[deepest])
        serves = valid_moves(scene, cells, lacking, np.broadcast_to(found[-1], (len(lacking), 1, 2)))[:, 0]
        lacking = lacking[~serves & (lacking != deepest)]
    return np.array(found, np.int64).reshape(-1, 2)
