"""The first stage: an autoencoder for the world's pictures, first whole, then its decoder alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn.functional import avg_pool2d, l1_loss

from worker.builtin.train.recipe import LATENT_FACTOR, Recipe
from worker.builtin.train.rendering import make_scenes

# The first latents are drawn to the mean colours below them: colours are there at once, details follow.
FIRST_ANCHOR, LAST_ANCHOR, ANCHORED_SHARE = 0.5, 0.02, 0.3
RGB = 3
EDGE_WEIGHT = 0.5
SCALE_BATCHES = 4
OWN_SCENES = 1_000_000  # where the ranks of the other stage would not come to


class AutoencoderTraining:
    """The state of the stage: `step` counts to the recipe's joint and decoder steps together."""

    def __init__(self, recipe: Recipe, autoencoder: Any, device: torch.device) -> None:
        self.recipe, self.autoencoder, self.device = recipe, autoencoder.to(device), device
        self.step = 0
        self._optimiser = torch.optim.AdamW(autoencoder.parameters(), lr=0.0, betas=(0.9, 0.99))

    @property
    def total_steps(self) -> int:
        return self.recipe.vae_joint_steps + self.recipe.vae_decoder_steps

    @property
    def is_done(self) -> bool:
        return self.step >= self.total_steps

    def advance(self) -> float:
        """One step; its loss. The last one before the encoder is left alone fixes the latents' scale."""
        joint = self.step < self.recipe.vae_joint_steps
        self.autoencoder.encoder.requires_grad_(joint)
        pictures = self._pictures(self.step)
        with torch.autocast(self.device.type, torch.bfloat16):
            latents = self.autoencoder.encoder(pictures)
            decoded = self.autoencoder.decoder(latents)
        loss = _difference(decoded.float(), pictures)
        if joint:
            means = avg_pool2d(pictures, LATENT_FACTOR)
            loss = loss + self._anchor_weight() * l1_loss(latents.float()[:, :RGB], means)
        self._optimiser.param_groups[0]["lr"] = self._learning_rate()
        self._optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self._optimiser.step()
        self.step += 1
        if self.step == self.recipe.vae_joint_steps:
            self._fix_scale()
        return float(loss.detach())

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "weights": self.autoencoder.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "scale": self.autoencoder.config.scaling_factor,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.autoencoder.load_state_dict(state["weights"])
        self.autoencoder.register_to_config(scaling_factor=state["scale"])
        self._optimiser.load_state_dict(state["optimiser"])

    def _pictures(self, step: int) -> torch.Tensor:
        """(batch, 3, crop, crop) from -1 to 1: pieces of fresh scenes."""
        recipe = self.recipe
        scenes = make_scenes(recipe, OWN_SCENES, step, range(recipe.vae_batch))
        random = np.random.default_rng((recipe.seed, step))
        pieces = []
        for scene in scenes:
            row, column = random.integers(0, scene.picture.shape[0] - recipe.vae_crop + 1, 2)
            pieces.append(scene.picture[row : row + recipe.vae_crop, column : column + recipe.vae_crop])
        return torch.from_numpy(np.stack(pieces)).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1

    def _anchor_weight(self) -> float:
        done = min(1.0, self.step / max(1, ANCHORED_SHARE * self.recipe.vae_joint_steps))
        return FIRST_ANCHOR + done * (LAST_ANCHOR - FIRST_ANCHOR)

    def _learning_rate(self) -> float:
        start, length = 0, self.recipe.vae_joint_steps
        if self.step >= length:
            start, length = length, self.recipe.vae_decoder_steps
        done = (self.step - start) / max(1, length)
        warm = min(1.0, (self.step - start + 1) / self.recipe.warmup_steps)
        return self.recipe.vae_learning_rate * warm * max(0.03, min(1.0, 2 * (1 - done)))

    @torch.no_grad()
    def _fix_scale(self) -> None:
        """So that the latents have a standard deviation of about 1 where the UNet sees them."""
        pictures = torch.cat([self._pictures(self.total_steps + number) for number in range(SCALE_BATCHES)])
        deviation = float(self.autoencoder.encoder(pictures).std())
        self.autoencoder.register_to_config(scaling_factor=round(1 / deviation, 3))


def _difference(decoded: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """Of the values and, so that edges stay sharp, of their steps from pixel to pixel."""
    loss = l1_loss(decoded, pictures)
    for axis in (-1, -2):
        loss = loss + EDGE_WEIGHT * l1_loss(decoded.diff(dim=axis), pictures.diff(dim=axis))
    return loss
