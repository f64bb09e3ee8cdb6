"""Muon for matrices, AdamW for the rest: on two processor cores every sample must teach as much as it can."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

MOMENTUM = 0.95
WEIGHT_DECAY = 0.01
MATRIX_DIMENSIONS = 2
# As large as AdamW's steps are in the mean. Source: "Muon is Scalable for LLM Training" (2025), section 2.2.
STEP_LIKE_ADAMW = 0.2
# Five steps of this polynomial bring all singular values near 1. Source: Keller Jordan, "Muon" (2024).
_POLYNOMIAL = (3.4445, -4.7750, 2.0315)
_POLYNOMIAL_STEPS = 5
# First and last layers and embeddings are no maps between hidden vectors; AdamW is better at them.
_NOT_HIDDEN = ("embed", "conv_in", "conv_out")


class Optimiser:
    """Steps all `parameters`, by name; matrices of the same shape together."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._groups: dict[tuple[int, int], list[nn.Parameter]] = {}
        others: list[nn.Parameter] = []
        for name, weight in parameters.items():
            if weight.ndim < MATRIX_DIMENSIONS or any(part in name for part in _NOT_HIDDEN):
                others.append(weight)
            else:
                self._groups.setdefault((len(weight), weight[0].numel()), []).append(weight)
        self._momenta = [torch.zeros(len(group), *shape) for shape, group in self._groups.items()]
        self._momenta = [
            momentum.to(group[0].device) for momentum, group in zip(self._momenta, self._groups.values(), strict=True)
        ]
        self._adamw = torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.98), weight_decay=1e-3)

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        for settings in self._adamw.param_groups:
            settings["lr"] = learning_rate
        self._adamw.step()
        for (rows, columns), momentum in zip(self._groups, self._momenta, strict=True):
            group = self._groups[rows, columns]
            gradients = torch.stack([_gradient(weight).reshape(rows, columns) for weight in group])
            momentum.lerp_(gradients, 1 - MOMENTUM)
            directions = orthogonal(gradients.lerp(momentum, MOMENTUM))
            length = learning_rate * STEP_LIKE_ADAMW * max(rows, columns) ** 0.5
            for weight, direction in zip(group, directions, strict=True):
                weight.mul_(1 - learning_rate * WEIGHT_DECAY)
                weight.add_(direction.view_as(weight), alpha=-length)

    def state(self) -> dict[str, Any]:
        return {"momenta": self._momenta, "adamw": self._adamw.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        for momentum, saved in zip(self._momenta, state["momenta"], strict=True):
            momentum.copy_(saved)
        self._adamw.load_state_dict(state["adamw"])


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """(N, rows, columns): each with its singular values brought near 1."""
    tall = matrices.shape[1] > matrices.shape[2]
    values = (matrices.mT if tall else matrices).bfloat16()
    values = values / (values.norm(dim=(1, 2), keepdim=True) + 1e-7)
    first, third, fifth = _POLYNOMIAL
    for _ in range(_POLYNOMIAL_STEPS):
        square = values @ values.mT
        values = first * values + (third * square + fifth * square @ square) @ values
    result: torch.Tensor = (values.mT if tall else values).float()
    return result


def _gradient(weight: nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight.grad
