"""While a UNet call is made, its layers look at pictures beside the prompt; after it they are as they were."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from worker.ip_adapter_files import IpLayer
from worker.ip_adapters import Glance


def cross_attentions(unet: Any) -> tuple[Any, ...]:
    """The layers that look at the prompt, in the order in which IP-adapters number theirs."""
    return tuple(module for name, module in unet.named_modules() if name.endswith(".attn2"))


@contextmanager
def looking(
    attentions: Sequence[Any], conditional: Sequence[Glance], unconditional: Sequence[Glance]
) -> Iterator[None]:
    """For one UNet call: its rows are those of `unconditional`, then those of `conditional`.

    All must be of one adapter. Nothing of the UNet is changed but who computes these layers, and that for the time
    being only: other jobs' calls are bit for bit what they were.
    """
    glances = [*unconditional, *conditional]
    tokens = torch.cat([*(each.unconditional_tokens for each in unconditional), *(each.tokens for each in conditional)])
    scales = torch.tensor([each.scale for each in glances], dtype=tokens.dtype, device=tokens.device)[:, None, None]
    before = [attention.processor for attention in attentions]
    try:
        for attention, layer in zip(attentions, glances[0].looker.weights.layers, strict=True):
            attention.set_processor(_LookingAttention(layer, tokens, scales))
        yield
    finally:
        for attention, processor in zip(attentions, before, strict=True):
            attention.set_processor(processor)


class _LookingAttention:
    """In the place of diffusers' processor of one cross-attention layer.

    Source: IPAdapterAttnProcessor2_0 of diffusers 0.42.1, without what the UNets of these families do not have;
    but every row has its own scale: `scales` is (rows, 1, 1).
    """

    def __init__(self, layer: IpLayer, tokens: torch.Tensor, scales: torch.Tensor) -> None:
        self._layer = layer
        self._tokens = tokens
        self._scales = scales

    def __call__(
        self, attention: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: Any
    ) -> torch.Tensor:
        def by_head(projected: torch.Tensor) -> torch.Tensor:
            rows, length, _ = projected.shape
            return projected.view(rows, length, attention.heads, -1).transpose(1, 2)

        def attend(key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            seen = functional.scaled_dot_product_attention(query, by_head(key), by_head(value))
            return seen.transpose(1, 2).flatten(2).to(query.dtype)

        query = by_head(attention.to_q(hidden_states))
        told = attend(attention.to_k(encoder_hidden_states), attention.to_v(encoder_hidden_states))
        shown = attend(
            functional.linear(self._tokens, self._layer.key), functional.linear(self._tokens, self._layer.value)
        )
        out, dropout = attention.to_out
        result: torch.Tensor = dropout(out(told + self._scales * shown)) / attention.rescale_output_factor
        return result
