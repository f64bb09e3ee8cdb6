"""Everything about a training that can be chosen."""

from __future__ import annotations

from dataclasses import dataclass

LATENT_FACTOR = 8
LATENT_CHANNELS = 4


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The doodle's architecture and training. Sizes in pixels; shares are probabilities; one sample is one picture."""

    seed: int = 0

    unet_channels: tuple[int, ...] = (48, 96, 128)
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

    small_size: int = 128
    large_size: int = 256
    large_share: float = 0.1
    """Of the steps; those have fewer pictures, so that they take as long."""
    narrow_share: float = 0.75
    """Of the scenes; the others are wide."""
    batch: int = 64
    uses_of_a_scene: int = 3
    ring_scenes: int = 1024
    """How many are kept; at least eight batches are."""
    learning_rate: float = 4e-4
    warmup_steps: int = 100
    cool_down_share: float = 0.25
    """The last part of the samples, over which the learning rate falls."""
    noisy_share: float = 0.65
    """Of the timesteps, drawn above `noisy_from` only: there the shapes are decided."""
    noisy_from: int = 400
    unprompted_share: float = 0.1
    """Trained without their caption, so that guidance has something to start from."""
    outside_weight: float = 0.3
    """Of the loss where nothing is repainted."""
    average_decay: float = 0.98
    average_every_steps: int = 4


TRAIN_TIMESTEPS = 1000
SCHEDULER = {
    "num_train_timesteps": TRAIN_TIMESTEPS,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "prediction_type": "v_prediction",
}
