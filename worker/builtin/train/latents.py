"""Scenes as latents; the last ones are kept, and used a few times each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch.nn.functional import max_pool2d

from worker.builtin.train.recipe import LATENT_CHANNELS, LATENT_FACTOR
from worker.builtin.train.scenes import Scene
from worker.builtin.train.words import MAX_TOKENS, tokenize


@dataclass(frozen=True, eq=False)
class Batch:
    """`target` and `context` (N, 4, h, w) latents of the scene and of what is outside its mask; `mask` (N, 1, h, w)."""

    target: torch.Tensor
    context: torch.Tensor
    mask: torch.Tensor
    tokens: torch.Tensor


@torch.no_grad()
def encode_scenes(scenes: Sequence[Scene], autoencoder: Any, tokenizer: Any) -> Batch:
    """Latents as the UNet is to see them. What a mask touches in part is repainted whole, as when serving."""
    device = autoencoder.device
    pictures = torch.from_numpy(np.stack([scene.picture for scene in scenes])).to(device)
    pictures = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
    masks = torch.from_numpy(np.stack([scene.mask for scene in scenes])).to(device).float()[:, None]
    both = torch.cat([pictures, pictures * (1 - masks)]).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16):
        latents = autoencoder.encoder(both).float() * autoencoder.config.scaling_factor
    target, context = latents.half().chunk(2)
    tokens = tokenize(tokenizer, [scene.caption for scene in scenes]).to(device)
    return Batch(target, context, max_pool2d(masks, LATENT_FACTOR).half(), tokens)


class Ring:
    """The latest scenes of one size. Batches are drawn from it at random."""

    def __init__(self, capacity: int, size: int, device: torch.device) -> None:
        side = size // LATENT_FACTOR
        self._held = Batch(
            torch.zeros(capacity, LATENT_CHANNELS, side, side, dtype=torch.float16, device=device),
            torch.zeros(capacity, LATENT_CHANNELS, side, side, dtype=torch.float16, device=device),
            torch.zeros(capacity, 1, side, side, dtype=torch.float16, device=device),
            torch.zeros(capacity, MAX_TOKENS, dtype=torch.int64, device=device),
        )
        self._capacity = capacity
        self._added = 0

    def add(self, fresh: Batch) -> None:
        places = (self._added + torch.arange(len(fresh.target))) % self._capacity
        for each in fields(fresh):
            getattr(self._held, each.name)[places] = getattr(fresh, each.name)
        self._added += len(places)

    def draw(self, amount: int, random: torch.Generator) -> Batch:
        held = min(self._added, self._capacity)
        places = torch.randint(0, held, (amount,), generator=random)
        target, context, mask, tokens = (getattr(self._held, each.name)[places] for each in fields(self._held))
        return Batch(target.float(), context.float(), mask.float(), tokens)

    def state(self) -> dict[str, Any]:
        return {"added": self._added} | {each.name: getattr(self._held, each.name) for each in fields(self._held)}

    def load(self, state: dict[str, Any]) -> None:
        """One of another capacity stays as it is, and fills while the training goes on."""
        if len(state["mask"]) != self._capacity:
            return
        self._added = state["added"]
        for each in fields(self._held):
            getattr(self._held, each.name).copy_(state[each.name])
