"""A UNet with one level more: what it has learned, it now does at half of the size, inside a fresh finest level."""

from __future__ import annotations

import re
from typing import Any

import torch

_LEVEL = re.compile(r"^down_blocks\.(\d+)\.")


@torch.no_grad()
def grown(old: Any, fresh: Any) -> Any:
    """`fresh`, which has one level more and beside it the same channels, with the weights of `old` in its inner levels.

    Its new finest level begins as one that halves pictures going in and doubles them coming out, and adds nothing.
    """
    inner, state = old.state_dict(), fresh.state_dict()
    for name, weight in inner.items():
        state[_one_level_down(name)].copy_(weight)
    fresh.load_state_dict(state)
    _halve(fresh.down_blocks[0].downsamplers[0].conv)
    _pass_on(fresh.up_blocks[-2].upsamplers[0].conv)
    for block in (*fresh.down_blocks[0].resnets, *fresh.up_blocks[-1].resnets):
        block.conv2.weight.zero_()
        block.conv2.bias.zero_()
        if block.conv_shortcut is not None:
            _pass_on(block.conv_shortcut)
    return fresh


def _one_level_down(name: str) -> str:
    return _LEVEL.sub(lambda found: f"down_blocks.{int(found[1]) + 1}.", name)


def _halve(layer: Any) -> None:
    """The mean of each two by two: a stride of two makes this of the kernel's last two rows and columns."""
    layer.weight.zero_()
    layer.bias.zero_()
    for channel in range(len(layer.weight)):
        layer.weight[channel, channel, 1:, 1:] = 0.25


def _pass_on(layer: Any) -> None:
    """Of its input's first channels, as many as there are in the output."""
    layer.weight.zero_()
    layer.bias.zero_()
    middle = layer.weight.shape[-1] // 2
    for channel in range(len(layer.weight)):
        layer.weight[channel, channel, middle, middle] = 1
