"""Decides from where each pixel of the hole is copied: coarse cells first, with many choices, then finer ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from worker.removing.labelling import IMPOSSIBLE, Labelling, Links, Pairs, pair_up, propagate, total_cost
from worker.removing.offsets import Offsets
from worker.removing.scene import Cells, Flags, Floats, Scene, Whole, cut, valid_moves
from worker.removing.seams import Blocks, either, rim_costs, seam_costs, see_blocks, strangeness_costs

NOTHING = -1
REACH = 1 << 16
SEAM_COST = 0.2
RARITY_COST = 0.1
"""For each pixel of a cell's side, by how seldom the picture repeats itself so: keeps what is regular regular."""
TASTE = 0.5
"""What a choice may cost or save by mere chance, beside a seam: how seeds come to differ."""
PRUNING_ROUNDS = 3
PRUNED_TO = 20
TRIES = 3
TRY_ROUNDS = 6
LATER_ROUNDS = 4
# How many of the best choices a finer cell takes over from the one it lies in, and from each of the three next to it.
INHERITED = ((12, 4), (5, 2), (2, 1))
INHERITED_BY_FINEST = (1, 1)
FINEST = 2
"""Cells of this size and below only move the seams."""
VARIED_SIZE, MAX_VARIED_CELLS = 4, 4000
"""At this size of cells, the offsets beside the best one are tried too, where there are not too many cells."""


@dataclass(frozen=True)
class Ranking:
    """Each cell's choices as codes of offsets (n, k), the best first, NOTHING behind them."""

    cells: Cells
    codes: Whole
    cost: float = 0.0


def arrange(
    scene: Scene, alternatives: Sequence[Offsets], size: int, rng: np.random.Generator, check: Callable[[], None]
) -> Whole:
    """For each pixel of the hole, in the order of np.nonzero, its offset (n, 2); (0, 0) where none is possible.

    `alternatives`: sets of offsets, the choices of the first cells, which are of `size` (a power of two).
    The set that leads to the cheapest seams is taken.
    """
    cells = cut(scene.hole, size)
    rankings = []
    for offsets in alternatives:
        codes = np.broadcast_to(encode(offsets.moves), (len(cells), len(offsets.moves)))
        rankings.append(_solve(scene, cells, codes, check, rng=rng, rarity=offsets.rarity))
    ranking = min(rankings, key=lambda each: (np.count_nonzero(each.codes[:, 0] == NOTHING), each.cost))
    plan = iter(INHERITED)
    while size > 1:
        size //= 2
        own, beside = INHERITED_BY_FINEST if size <= FINEST else next(plan, INHERITED[-1])
        cells = cut(scene.hole, size)
        varied = size == VARIED_SIZE and len(cells) <= MAX_VARIED_CELLS
        codes = _possible(scene, cells, _inherit(ranking, cells, own=own, beside=beside, varied=varied))
        ranking = _solve(scene, cells, _with_nearest(scene, cells, codes), check)
    return decode(ranking.codes[:, 0])


def encode(offsets: Whole) -> Whole:
    """(…, 2) -> (…)."""
    code: Whole = (offsets[..., 0] + REACH) * (2 * REACH) + offsets[..., 1] + REACH
    return code


def decode(codes: Whole) -> Whole:
    """(…) -> (…, 2); no offset for NOTHING."""
    down, right = codes // (2 * REACH) - REACH, codes % (2 * REACH) - REACH
    return np.where((codes != NOTHING)[..., None], np.stack([down, right], axis=-1), 0)


def _inherit(parents: Ranking, cells: Cells, *, own: int, beside: int, varied: bool) -> Whole:
    """The choices of cells half as large as the ranking's."""
    up_or_down, to_side = np.where(cells.rows % 2, 1, -1), np.where(cells.columns % 2, 1, -1)
    found = []
    for down, right, most in ((0, 0, own), (1, 0, beside), (0, 1, beside), (1, 1, beside)):
        parent = parents.cells.at(cells.rows // 2 + down * up_or_down, cells.columns // 2 + right * to_side)
        found.append(np.where(parent[:, None] >= 0, parents.codes[parent, :most], NOTHING))
    if varied:
        best = found[0][:, :1]
        found += [np.where(best != NOTHING, best + step, NOTHING) for step in (-1, 1, -2 * REACH, 2 * REACH)]
    codes = np.concatenate(found, axis=1)
    earlier = np.tri(codes.shape[1], k=-1, dtype=bool)
    repeated = ((codes[:, :, None] == codes[:, None, :]) & earlier).any(axis=2)
    return np.where(repeated, NOTHING, codes)


def _possible(scene: Scene, cells: Cells, codes: Whole) -> Whole:
    """Without those that would copy from the hole. A cell's first is its parent's best, and right for all of that."""
    valid = codes != NOTHING
    to_check = np.nonzero(valid[:, 1:].any(axis=1))[0]
    valid[to_check] &= valid_moves(scene, cells, to_check, decode(codes[to_check]))
    return np.where(valid, codes, NOTHING)


def _with_nearest(scene: Scene, cells: Cells, codes: Whole) -> Whole:
    """Cells without any choice get the nearest square that can fill them."""
    lacking = np.nonzero((codes == NOTHING).all(axis=1))[0]
    if len(lacking):
        y, x = cells.rows[lacking] * cells.size, cells.columns[lacking] * cells.size
        source = scene.nearest_sources(cells.size)[y, x]
        code = encode(source - np.stack([y, x], axis=1))
        codes[lacking, 0] = np.where(source[:, 0] < 0, NOTHING, code)
    return codes


def _solve(
    scene: Scene,
    cells: Cells,
    codes: Whole,
    check: Callable[[], None],
    *,
    rng: np.random.Generator | None = None,
    rarity: Floats | None = None,
) -> Ranking:
    """Rank each cell's choices (n, k).

    With `rng` all cells are offered the same ones, not all of which are possible, and several tries are made.
    """
    valid = codes != NOTHING
    if rng:
        valid &= valid_moves(scene, cells, cells.everyone, decode(codes))
    else:
        # Few cells have as many choices as there is room for.
        kept = np.argsort(~valid, axis=1, kind="stable")[:, : max(1, int(valid.sum(axis=1).max()))]
        codes, valid = np.take_along_axis(codes, kept, axis=1), np.take_along_axis(valid, kept, axis=1)
    check()
    settled = NOTHING * np.ones(len(cells), np.int64)
    if codes.shape[1]:
        settled = np.where(valid.any(axis=1), codes[cells.everyone, np.argmax(valid, axis=1)], NOTHING)
    ranked = np.full((len(cells), max(1, codes.shape[1])), NOTHING)
    ranked[:, 0] = settled
    open_cells = valid.sum(axis=1) > 1
    which = np.nonzero(open_cells)[0]
    if not len(which):
        return Ranking(cells=cells, codes=ranked)
    question = _Question(scene, cells, codes, open_cells=open_cells, settled=settled)
    costs = question.unary()
    if rarity is not None:
        costs += RARITY_COST * cells.size * rarity
    unary = np.where(valid[which], costs, IMPOSSIBLE).astype(np.float32)
    check()
    links = question.links(alike=rng is not None, check=check)
    parity = (cells.rows + cells.columns)[which] % 2
    if rng:
        answer = _best_of_tries(unary, links, parity, size=cells.size, rng=rng, check=check)
    else:
        answer = propagate(unary, links, parity, rounds=LATER_ROUNDS, check=check)
    belief = np.where(valid[which], answer.belief, np.inf)
    belief[np.arange(len(which)), answer.choice] = -np.inf
    order = np.argsort(belief, axis=1, kind="stable")
    ranked[which] = np.take_along_axis(np.where(valid, codes, NOTHING)[which], order, axis=1)
    return Ranking(cells=cells, codes=ranked, cost=answer.cost)


def _best_of_tries(
    unary: Floats,
    links: tuple[Links, ...],
    parity: Whole,
    *,
    size: int,
    rng: np.random.Generator,
    check: Callable[[], None],
) -> Labelling:
    """Choices that nothing speaks for are dropped early; with the others several tries are made.

    Belief propagation ends in a different place whenever it starts a little differently.
    """
    first = propagate(unary, links, parity, rounds=PRUNING_ROUNDS, check=check)
    kept = np.argsort(first.belief, axis=1, kind="stable")[:, :PRUNED_TO]
    few = np.take_along_axis(unary, kept, axis=1)
    few_links = tuple(
        Links(
            pairs=link.pairs,
            costs=link.costs[
                np.arange(len(link.costs))[:, None, None],
                kept[link.pairs.first][:, :, None],
                kept[link.pairs.second][:, None, :],
            ],
        )
        for link in links
    )
    answers = []
    for _ in range(TRIES):
        taste = rng.exponential(np.full(unary.shape[1], TASTE * SEAM_COST * size)).astype(np.float32)[kept]
        answer = propagate(few + taste, few_links, parity, rounds=TRY_ROUNDS, check=check)
        answers.append(dataclasses.replace(answer, cost=total_cost(few, few_links, answer.choice)))
    best = min(answers, key=lambda each: each.cost)
    belief = np.full_like(unary, IMPOSSIBLE)
    np.put_along_axis(belief, kept, best.belief, axis=1)
    return Labelling(choice=kept[np.arange(len(kept)), best.choice], cost=best.cost, belief=belief)


class _Question:
    """What a level of cells asks: which choices? `open_cells` have several, the others are settled."""

    def __init__(self, scene: Scene, cells: Cells, codes: Whole, *, open_cells: Flags, settled: Whole) -> None:
        self._scene, self._cells = scene, cells
        self._codes, self._offsets = codes, decode(codes)
        self._open, self._settled = open_cells, settled
        self._which = np.nonzero(open_cells)[0]
        self._place = np.full(len(cells), -1, np.int64)
        self._place[self._which] = np.arange(len(self._which))
        self._own = see_blocks(scene, cells, self._which, self._offsets[self._which])

    def unary(self) -> Floats:
        """(n, k): what each choice costs beside what is known and what is settled."""
        cells, which, size = self._cells, self._which, self._cells.size
        costs = rim_costs(self._scene, cells, which, self._offsets[which])
        costs += strangeness_costs(self._scene, cells, which, self._offsets[which])
        for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            other = cells.beside(which, down, right)
            p = np.nonzero((other >= 0) & ~self._open[other] & (self._settled[other] != NOTHING))[0]
            q = other[p]
            theirs = decode(self._settled[q])[:, None]
            here = seam_costs(self._own.of(p), self._see(which[p], theirs), size, upright=right != 0)
            there = seam_costs(self._see(q, self._offsets[which[p]]), self._see(q, theirs), size, upright=right != 0)
            costs[p] += either(here, there, size)[:, :, 0]
            costs[p] += SEAM_COST * size * (self._codes[which[p]] != self._settled[q][:, None])
        return costs

    def links(self, *, alike: bool, check: Callable[[], None]) -> tuple[Links, ...]:
        """Between open cells; `alike`: all have the same choices."""
        found = []
        for down, right in ((0, 1), (1, 0)):
            pairs = pair_up(self._cells, self._open, down, right)
            upright, size = right != 0, self._cells.size
            first, second = self._place[pairs.first], self._place[pairs.second]
            if alike:
                within = seam_costs(self._own, self._own, size, upright=upright)
                costs = either(within[first], within[second], size)
            else:
                there = self._see(pairs.first, self._offsets[pairs.second])
                here = self._see(pairs.second, self._offsets[pairs.first])
                costs = either(
                    seam_costs(self._own.of(first), there, size, upright=upright),
                    seam_costs(here, self._own.of(second), size, upright=upright),
                    size,
                )
            costs += np.float32(SEAM_COST * size)
            costs *= self._codes[pairs.first][:, :, None] != self._codes[pairs.second][:, None, :]
            found.append(Links(pairs=Pairs(first=first, second=second, steps=pairs.steps), costs=costs))
            check()
        return tuple(found)

    def _see(self, which: Whole, offsets: Whole) -> Blocks:
        return see_blocks(self._scene, self._cells, which, offsets)
