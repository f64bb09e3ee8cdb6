"""A larger UNet that begins with what a smaller one has learned: with one level more, with text seen on more levels."""

from __future__ import annotations

import re
from typing import Any

import torch

_LEVEL = re.compile(r"^down_blocks\.(\d+)\.")
_ATTENTION = re.compile(r"^(.*\.attentions\.\d+)\.proj_out\.weight$")


@torch.no_grad()
def grown(old: Any, fresh: Any) -> Any:
    """`fresh`, which has the levels of `old` or a finer one beside them, with the weights of `old`.

    A new finest level begins as one that halves pictures going in and doubles them coming out, and adds nothing; an
    attention that `old` does not have adds nothing at first either.
    """
    has_new_level = len(fresh.config.block_out_channels) > len(old.config.block_out_channels)
    inherited = {_one_level_down(name) if has_new_level else name: weight for name, weight in old.state_dict().items()}
    unexpected = fresh.load_state_dict(inherited, strict=False).unexpected_keys
    if unexpected:
        raise ValueError(f"the larger UNet has no place for {unexpected[0]}")
    if has_new_level:
        _pass_through(fresh)
    for name in fresh.state_dict().keys() - inherited.keys():
        if found := _ATTENTION.match(name):
            _silence(fresh.get_submodule(found[1]).proj_out)
    return fresh


def _one_level_down(name: str) -> str:
    return _LEVEL.sub(lambda found: f"down_blocks.{int(found[1]) + 1}.", name)


def _pass_through(unet: Any) -> None:
    """At the finest level."""
    _halve(unet.down_blocks[0].downsamplers[0].conv)
    _pass_on(unet.up_blocks[-2].upsamplers[0].conv)
    for block in (*unet.down_blocks[0].resnets, *unet.up_blocks[-1].resnets):
        _silence(block.conv2)
        if block.conv_shortcut is not None:
            _pass_on(block.conv_shortcut)


def _silence(layer: Any) -> None:
    layer.weight.zero_()
    layer.bias.zero_()


def _halve(layer: Any) -> None:
    """The mean of each two by two: a stride of two makes this of the kernel's last two rows and columns."""
    _silence(layer)
    for channel in range(len(layer.weight)):
        layer.weight[channel, channel, 1:, 1:] = 0.25


def _pass_on(layer: Any) -> None:
    """Of its input's first channels, as many as there are in the output."""
    _silence(layer)
    middle = layer.weight.shape[-1] // 2
    for channel in range(len(layer.weight)):
        layer.weight[channel, channel, middle, middle] = 1
