"""The stage that makes the doodle: UNet and text encoder learn to paint scenes in a finished autoencoder's latents."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import distributed
from torch.nn.utils import clip_grad_norm_

from worker.builtin.train.latents import Batch, Ring, encode_scenes
from worker.builtin.train.optimiser import Optimiser
from worker.builtin.train.parts import Painter
from worker.builtin.train.recipe import LATENT_FACTOR, SCHEDULER, TRAIN_TIMESTEPS, USUAL_SIZE, Recipe
from worker.builtin.train.rendering import batch_of_size, scenes_from, size_of_step
from worker.builtin.train.words import tokenize

MAX_GRADIENT = 1.0
MANY_TOKENS = 512
LEAST_LEARNING_RATE = 0.03
"""Of the full one, at the end."""
_OF_NOISE = 2  # see rendering


class _ProcessorAttention:
    """On a CPU torch's own attention is slow with few tokens and small heads, and faster with many."""

    def __init__(self) -> None:
        self._few, self._many = AttnProcessor(), AttnProcessor2_0()

    def __call__(self, attention: Any, hidden: torch.Tensor, *others: Any, **named: Any) -> Any:
        processor = self._many if hidden.shape[1] >= MANY_TOKENS else self._few
        return processor(attention, hidden, *others, **named)


class PainterTraining:
    """The state of the stage. Equal recipes give equal runs on one machine, however often they are interrupted.

    With several processes (`rank` of `world_size`) each draws its own scenes; gradients are averaged.
    """

    def __init__(
        self,
        recipe: Recipe,
        painter: Painter,
        autoencoder: Any,
        *,
        samples: int,
        device: torch.device,
        renderers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.recipe, self.painter, self.autoencoder = recipe, painter, autoencoder
        self.device, self.target_samples = device, samples
        self.step, self.samples = 0, 0
        self._rank, self._world_size, self._renderers = rank, world_size, renderers
        for module in (painter.unet, painter.text_encoder, autoencoder):
            module.to(device)
        autoencoder.to(memory_format=torch.channels_last).eval().requires_grad_(False)
        painter.unet.to(memory_format=torch.channels_last)
        if device.type == "cpu":
            painter.unet.set_attn_processor(_ProcessorAttention())
        self._weights = painter.parameters()
        self._averages = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._optimiser = Optimiser(self._weights)
        self._noising = DDPMScheduler(**SCHEDULER)
        self._rings = {
            size: Ring(max(recipe.ring_scenes, 8 * batch_of_size(recipe, size)), size, device)
            for size, _share in recipe.sizes
        }
        self._unprompted = tokenize(painter.tokenizer, [""]).to(device)
        self._scenes: Iterator[Any] | None = None

    @property
    def is_done(self) -> bool:
        return self.samples >= self.target_samples

    @property
    def learning_rate(self) -> float:
        warm = min(1.0, (self.step + 1) / self.recipe.warmup_steps)
        left = max(0.0, 1 - self.samples / self.target_samples)
        cool = min(1.0, left / self.recipe.cool_down_share)
        return self.recipe.learning_rate * warm * max(LEAST_LEARNING_RATE, cool)

    def advance(self) -> float:
        """One step; its loss in this process."""
        size = size_of_step(self.recipe, self._rank, self.step)
        if self._scenes is None:
            self._scenes = scenes_from(self.recipe, self._rank, self.step, renderers=self._renderers)
        ring, amount = self._rings[size], batch_of_size(self.recipe, size)
        ring.add(encode_scenes(next(self._scenes), self.autoencoder, self.painter.tokenizer))
        seeds = np.random.SeedSequence((self.recipe.seed, _OF_NOISE, self._rank, self.step))
        random = torch.Generator().manual_seed(int(seeds.generate_state(1)[0]))
        self.painter.set_training(True)
        loss = self._loss(ring.draw(amount, random), random)
        for weight in self._weights.values():
            weight.grad = None
        torch.autograd.backward(loss)
        self._share_gradients()
        clip_grad_norm_(self._weights.values(), MAX_GRADIENT)
        self._optimiser.step(self.learning_rate)
        self.samples += self._pictures_of(self.step)
        self.step += 1
        if self.step % self.recipe.average_every_steps == 0:
            self._average()
        return float(loss.detach())

    def _pictures_of(self, step: int) -> int:
        """In all processes."""
        sizes = (size_of_step(self.recipe, rank, step) for rank in range(self._world_size))
        return sum(batch_of_size(self.recipe, size) for size in sizes)

    def _loss(self, batch: Batch, random: torch.Generator) -> torch.Tensor:
        """Of the predicted velocity. Source: Salimans and Ho, "Progressive Distillation" (2022), appendix D."""
        recipe, amount = self.recipe, len(batch.target)
        unprompted = torch.rand(amount, generator=random) < recipe.unprompted_share
        tokens = torch.where(unprompted.to(self.device)[:, None], self._unprompted, batch.tokens)
        noisy = torch.rand(amount, generator=random) < recipe.noisy_share
        floors = torch.where(noisy, _noisy_from(recipe, LATENT_FACTOR * batch.target.shape[-1]), 0)
        timesteps = floors + (torch.rand(amount, generator=random) * (TRAIN_TIMESTEPS - floors)).long()
        timesteps = timesteps.to(self.device)
        noise = torch.randn(batch.target.shape, generator=random).to(self.device)
        noised = self._noising.add_noise(batch.target, noise, timesteps)
        wanted = self._noising.get_velocity(batch.target, noise, timesteps)
        with torch.autocast(self.device.type, torch.bfloat16):
            hidden = self.painter.text_encoder(tokens)[0]
            seen = torch.cat([noised, batch.mask, batch.context], dim=1)
            predicted = self.painter.unet(seen, timesteps, hidden).sample
        weight = recipe.outside_weight + (1 - recipe.outside_weight) * batch.mask
        loss: torch.Tensor = (weight * (predicted.float() - wanted) ** 2).mean() / weight.mean()
        return loss

    def _share_gradients(self) -> None:
        if self._world_size == 1:
            return
        gradients = [weight.grad for weight in self._weights.values() if weight.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients]) / self._world_size
        distributed.all_reduce(flat)
        parts = torch.split(flat, [each.numel() for each in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    @torch.no_grad()
    def _average(self) -> None:
        # Young averages forget faster, or the first weights would stay in them for long.
        decay = min(self.recipe.average_decay, (self.step + 10) / (self.step + 110))
        for name, average in self._averages.items():
            average.lerp_(self._weights[name].detach(), 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[Painter]:
        """The painter with the averages of its weights, which paint better; they are put back afterwards."""
        own = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._set_weights(self._averages)
        self.painter.set_training(False)
        try:
            yield self.painter
        finally:
            self._set_weights(own)

    def _set_weights(self, values: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(values[name])

    def state(self) -> dict[str, Any]:
        return {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "samples": self.samples,
            "weights": {name: weight.detach() for name, weight in self._weights.items()},
            "averages": self._averages,
            "optimiser": self._optimiser.state(),
            "rings": {size: ring.state() for size, ring in self._rings.items()},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from there. Whatever of the recipe is no shape of a tensor may have changed meanwhile."""
        self.step, self.samples = state["step"], state["samples"]
        self._set_weights(state["weights"])
        for name, average in self._averages.items():
            average.copy_(state["averages"][name])
        self._optimiser.load(state["optimiser"])
        for size, ring in self._rings.items():
            if size in state["rings"]:
                ring.load(state["rings"][size])
        self._scenes = None


def _noisy_from(recipe: Recipe, size: int) -> int:
    """The timestep above which a shape in a picture of that size is hidden. Its noise is a mean of more values."""
    return max(0, int(recipe.noisy_from + recipe.noisier_by * np.log2(size / USUAL_SIZE)))
