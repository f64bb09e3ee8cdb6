"""Chooses one of several moves for every cell so that neighbours fit together: min-sum belief propagation."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from worker.removing.scene import Cells, Flags, Floats, Whole

IMPOSSIBLE = np.float32(1e9)


@dataclass(frozen=True)
class Pairs:
    """Neighbouring cells, first left of or above second, of one direction, in the order of a sweep.

    `steps`: the places in `first` and `second` of what a sweep takes at a time, a column or row of them.
    """

    first: Whole
    second: Whole
    steps: tuple[slice, ...]


@dataclass(frozen=True)
class Links:
    """Pairs, and `costs` (n, k, l) of each one's choices together."""

    pairs: Pairs
    costs: Floats


def pair_up(cells: Cells, among: Flags, down: int, right: int) -> Pairs:
    """Pairs of cells in `among` (a flag for each cell), the second so many rows down and columns to the right."""
    other = cells.beside(cells.everyone, down, right)
    first = np.nonzero((other >= 0) & among & among[other])[0]
    line = cells.rows[first] if down else cells.columns[first]
    order = np.argsort(line, kind="stable")
    first, line = first[order], line[order]
    breaks = [0, *(np.nonzero(np.diff(line))[0] + 1).tolist(), len(first)]
    steps = tuple(slice(begin, end) for begin, end in itertools.pairwise(breaks) if begin < end)
    return Pairs(first=first, second=other[first], steps=steps)


@dataclass(frozen=True)
class Labelling:
    """The choice of each cell, what all of them cost, and what each cell thinks of each choice (n, k)."""

    choice: Whole
    cost: float
    belief: Floats


def propagate(
    unary: Floats, links: tuple[Links, ...], parity: Whole, *, rounds: int, check: Callable[[], None]
) -> Labelling:
    """The cheapest labelling met in so many rounds. Cells of one `parity` are no neighbours.

    Messages sweep along rows and columns, to and fro, each step using those just made, as Tappen and
    Freeman do (2003, "Comparison of graph cuts with belief propagation for stereo").
    """
    incoming = [(np.zeros_like(unary), np.zeros_like(unary)) for _ in links]
    all_turned = [np.ascontiguousarray(link.costs.transpose(0, 2, 1)) for link in links]
    belief = unary.copy()
    choice = np.argmin(unary, axis=1)
    best, best_cost = choice, total_cost(unary, links, choice)
    for _ in range(rounds):
        for link, turned, (forth, back) in zip(links, all_turned, incoming, strict=True):
            first, second = link.pairs.first, link.pairs.second
            for step in link.pairs.steps:
                _send(belief, sender=first[step], receiver=second[step], costs=link.costs[step], heard=back, told=forth)
            for step in reversed(link.pairs.steps):
                _send(belief, sender=second[step], receiver=first[step], costs=turned[step], heard=forth, told=back)
            check()
        choice = _settled(unary, links, parity, np.argmin(belief, axis=1))
        cost = total_cost(unary, links, choice)
        if cost < best_cost:
            best, best_cost = choice, cost
    return Labelling(choice=best, cost=best_cost, belief=belief)


def _send(belief: Floats, *, sender: Whole, receiver: Whole, costs: Floats, heard: Floats, told: Floats) -> None:
    """`costs` (n, sender's choices, receiver's). `heard`: what senders have from receivers; `told`: the reverse."""
    said = belief[sender] - heard[sender]
    message = (costs + said[:, :, None]).min(axis=1)
    message -= message.min(axis=1, keepdims=True)
    np.minimum(message, IMPOSSIBLE, out=message)
    belief[receiver] += message - told[receiver]
    told[receiver] = message


def total_cost(unary: Floats, links: tuple[Links, ...], choice: Whole) -> float:
    cost = float(unary[np.arange(len(unary)), choice].sum(dtype=np.float64))
    for link in links:
        first, second = choice[link.pairs.first], choice[link.pairs.second]
        cost += float(link.costs[np.arange(len(first)), first, second].sum(dtype=np.float64))
    return cost


def _settled(unary: Floats, links: tuple[Links, ...], parity: Whole, choice: Whole, rounds: int = 2) -> Whole:
    """Each half of the cells in turn takes what fits its neighbours, as they are, best."""
    for turn in [0, 1] * rounds:
        cost = unary.copy()
        for link in links:
            each, first, second = np.arange(len(link.costs)), link.pairs.first, link.pairs.second
            cost[first] += link.costs[each, :, choice[second]]
            cost[second] += link.costs[each, choice[first], :]
        choice = np.where(parity == turn, np.argmin(cost, axis=1), choice)
    return choice
