"""Hides the seams of what was copied: corrections that make both sides of each seam go over into each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import splu

from worker.removing.scene import Floats, Scene, Whole, look_up
from worker.removing.steps import steps_around, weight_of

Doubles = NDArray[Any]
Matrix = Any  # scipy's, which has no types

FADE = 1 / 400**2
DIRECT_SIZE = 12_000
ROUNDS = 24
DONE = 1e-12


def correct(scene: Scene, offset: Whole, check: Callable[[], None]) -> Floats:
    """What is to be added to the hole's copied colours: (n, 3), in the order of np.nonzero(scene.hole).

    `offset` (n, 2): from where each pixel is copied. The corrections u of neighbours p, q minimise
    Σ w (u_p − u_q − t)²: t = 0 inside one copied piece; at a seam, what makes the step there the mean of both
    pieces' own steps (compositing in the gradient domain, after Pérez et al. 2003); at the rim, what makes the
    piece go on as the known pixel does. t and w come from `steps_around`.
    """
    y, x = np.nonzero(scene.hole)
    copied = look_up(scene.picture, y + offset[:, 0], x + offset[:, 1]).astype(np.float64)
    number = np.full(scene.shape, -1, np.int64)
    number[y, x] = np.arange(len(y))
    system = _System(len(y))
    for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        beside_y, beside_x = y + down, x + right
        inside = scene.is_in(beside_y, beside_x)
        inside &= look_up(scene.inside, beside_y, beside_x)
        other = np.where(inside, look_up(number, beside_y, beside_x), -2)
        p = np.nonzero(other == -1)[0]
        known_y, known_x = beside_y[p], beside_x[p]
        step, weight = steps_around(scene, known_y, known_x, offset[p], np.zeros_like(offset[p]))
        nowhere = look_up(scene.picture, known_y, known_x) - copied[p]
        system.tie_down(p, *_either(step, weight, nowhere))
        if down < 0 or right < 0:
            continue
        p = np.nonzero(other >= 0)[0]
        q = other[p]
        system.tie_together(p, q, *_meeting(scene, offset, copied, p=p, q=q))
        check()
    return _solve(system.matrix(), system.right_side, y, x, check).astype(np.float32)


def _meeting(scene: Scene, offset: Whole, copied: Doubles, *, p: Whole, q: Whole) -> tuple[Doubles, Doubles]:
    """What u_p - u_q should be: by both pieces, by the one that goes on to the other side, or so that none is left."""
    y, x = np.nonzero(scene.hole)
    target, weight = np.zeros((len(p), 3)), np.ones(len(p))
    seam = np.nonzero((offset[p] != offset[q]).any(axis=1))[0]
    p, q = p[seam], q[seam]
    at_p, trust_p = steps_around(scene, y[p], x[p], offset[p], offset[q])
    at_q, trust_q = steps_around(scene, y[q], x[q], offset[p], offset[q])
    trust = trust_p + trust_q
    step = (at_p * trust_p[:, None] + at_q * trust_q[:, None]) / np.maximum(trust, 1e-9)[:, None]
    target[seam], weight[seam] = _either(step, trust / 2, copied[q] - copied[p])
    return target, weight


def _either(step: Doubles, weight: Doubles, otherwise: Doubles) -> tuple[Doubles, Doubles]:
    """Where there is nothing to see a step by: `otherwise`."""
    seen = weight > 0
    return np.where(seen[:, None], step, otherwise), np.where(seen, weight, weight_of(otherwise))


class _System:
    """The normal equations."""

    def __init__(self, size: int) -> None:
        self.right_side: Doubles = np.zeros((size, 3))
        self._diagonal = np.full(size, FADE)
        self._links: list[tuple[Whole, Whole, Doubles]] = []

    def tie_down(self, p: Whole, target: Doubles, weight: Doubles) -> None:
        """u_p should be `target`. Each p comes once at most."""
        self.right_side[p] += weight[:, None] * target
        self._diagonal[p] += weight

    def tie_together(self, p: Whole, q: Whole, target: Doubles, weight: Doubles) -> None:
        """u_p - u_q should be `target`. Each p and each q comes once at most."""
        self.right_side[p] += weight[:, None] * target
        self.right_side[q] -= weight[:, None] * target
        self._diagonal[p] += weight
        self._diagonal[q] += weight
        self._links.append((p, q, weight))

    def matrix(self) -> Matrix:
        each = np.arange(len(self._diagonal))
        rows, columns, values = [each], [each], [self._diagonal]
        for p, q, weight in self._links:
            rows += [p, q]
            columns += [q, p]
            values += [-weight, -weight]
        places = (np.concatenate(rows), np.concatenate(columns))
        return sparse.csr_matrix((np.concatenate(values), places), shape=(len(each), len(each)))


def _solve(matrix: Matrix, right_side: Doubles, y: Whole, x: Whole, check: Callable[[], None]) -> Doubles:
    """(n, 3): conjugate gradients, each channel for itself; done at once where there are few unknowns."""
    check()
    # A channel at a time: rows of three numbers would be slow to go through.
    right_side = np.ascontiguousarray(right_side.T)
    roughly = _rough_solver(matrix, y, x)
    guess = roughly(right_side)
    residual = right_side - _times(matrix, guess)
    direction = scaled = roughly(residual)
    rho = _products(residual, scaled)
    for _ in range(ROUNDS):
        going_on = rho >= DONE
        if not going_on.any():
            break
        image = _times(matrix, direction)
        # A channel that is done stays as it is: its divisors may be nothing.
        step = _ratio(rho, _products(direction, image), going_on)
        guess += step * direction
        residual -= step * image
        scaled = roughly(residual)
        rho, before = _products(residual, scaled), rho
        direction = scaled + _ratio(rho, before, going_on) * direction
        check()
    return guess.T


def _ratio(one: Doubles, other: Doubles, where: NDArray[np.bool_]) -> Doubles:
    """0 elsewhere."""
    return np.divide(one, other, out=np.zeros_like(one), where=where)


def _times(matrix: Matrix, channels: Doubles) -> Doubles:
    return np.stack([matrix @ channel for channel in channels])


def _products(one: Doubles, other: Doubles) -> Doubles:
    """(3, n), (3, n) -> (3, 1)."""
    products: Doubles = np.einsum("cn,cn->c", one, other)[:, None]
    return products


def _rough_solver(matrix: Matrix, y: Whole, x: Whole) -> Callable[[Doubles], Doubles]:
    """What is wanted, (3, n), at every size, added up.

    After Bramble, Pasciak and Xu (1990, "Parallel multilevel preconditioners"): 2 × 2 unknowns become one at
    the next size, until few enough are left to be solved at once.
    """
    if len(y) <= DIRECT_SIZE:
        factors = splu(matrix.tocsc())
        return lambda wanted: np.ascontiguousarray(factors.solve(wanted.T).T)
    inverse = 1 / matrix.diagonal()
    width = int(x.max()) // 2 + 1
    key, group = np.unique((y // 2) * width + x // 2, return_inverse=True)
    if len(key) == len(y):
        return lambda wanted: inverse * wanted
    gather = sparse.csr_matrix((np.ones(len(y)), (np.arange(len(y)), group)), shape=(len(y), len(key)))
    spread = gather.T.tocsr()
    coarser = _rough_solver((spread @ matrix @ gather).tocsr(), key // width, key % width)
    return lambda wanted: inverse * wanted + coarser(_times(spread, wanted)).take(group, axis=1)
