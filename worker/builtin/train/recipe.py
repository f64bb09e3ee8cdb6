"""Everything about a training that can be chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LATENT_FACTOR = 8
LATENT_CHANNELS = 4
USUAL_SIZE = 256

Shares = tuple[tuple[Any, float], ...]
"""What there is to choose from, and how probable each is."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The doodle's architecture and training. Sizes in pixels; shares are probabilities; one sample is one picture."""

    seed: int = 0

    unet_channels: tuple[int, ...] = (48, 48, 96, 128)
    """Level by level, each of half the size."""
    text_levels: int = 3
    """How many of them, from the lowest, see the text: so fine can what is said have its place."""
    unet_groups: int = 16
    heads: int = 4
    text_width: int = 128
    text_layers: int = 2
    vae_channels: int = 32

    vae_batch: int = 16
    vae_joint_steps: int = 12_000
    vae_decoder_steps: int = 12_000
    vae_learning_rate: float = 1e-3
    vae_crop: int = 64

    sizes: Shares = (
        (64, 0.02),
        (96, 0.03),
        (128, 0.1),
        (192, 0.25),
        (256, 0.42),
        (320, 0.06),
        (384, 0.06),
        (512, 0.06),
    )
    """How often a step is of that size; each has about as many pixels, and takes as long."""
    worlds: Shares = (("narrow", 0.3), ("things", 0.55), ("wide", 0.15))
    """How often a scene is of that world (see scenes)."""
    batch: int = 32
    """Pictures of 256 pixels in a step; more of smaller ones, fewer of larger ones."""
    largest_batch: int = 256
    uses_of_a_scene: int = 5
    ring_scenes: int = 1024
    """How many are kept of each size; at least eight batches are."""
    learning_rate: float = 5e-4
    warmup_steps: int = 100
    cool_down_share: float = 0.22
    """The last part of the samples, over which the learning rate falls."""
    noisy_share: float = 0.55
    """Of the timesteps, drawn above `noisy_from` only: there the shapes are decided."""
    noisy_from: int = 510
    """For 256 pixels: the larger a picture, the more noise it takes to hide a shape in it."""
    noisier_by: int = 110
    """Where the sides are twice as long."""
    unprompted_share: float = 0.1
    """Trained without their caption, so that guidance has something to start from."""
    outside_weight: float = 0.3
    """Of the loss where nothing is repainted."""
    average_decay: float = 0.99
    average_every_steps: int = 4


TRAIN_TIMESTEPS = 1000
SCHEDULER = {
    "num_train_timesteps": TRAIN_TIMESTEPS,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "prediction_type": "v_prediction",
}
