"""One image of a job inside the engine: from picture and seed to latents, step by step, and back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import NDArray

from storage.job import MaskedAreaInit, WeightedPrompt
from worker.errors import InternalError
from worker.loading import LoadedModel
from worker.masks import KEEP, latent_mask
from worker.schedulers import make_scheduler, plan_timesteps, step_arguments

PIXEL_MAX = 255.0
FILL_SEED = 2**32  # beyond every seed of a job

Draw = Callable[[torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class Painting:
    """What a job asks of the engine, at the size at which the model works.

    `picture` is (H, W, 3) RGB, `mask` (H, W) with 255 = repaint .. 0 = keep; `deadline` is a
    time.monotonic(). One image per seed.
    """

    job_id: str
    model: str
    prompt: str
    negative_prompt: str
    picture: NDArray[np.uint8] = field(repr=False)
    mask: NDArray[np.uint8] = field(repr=False)
    seeds: tuple[int, ...]
    num_inference_steps: int
    guidance_scale: float
    strength: float
    scheduler: str
    use_karras_sigmas: bool = False
    weighted_prompts: tuple[WeightedPrompt, ...] = ()
    masked_area_init: MaskedAreaInit = MaskedAreaInit.ORIGINAL
    deadline: float | None = None


@dataclass(frozen=True)
class CallShape:
    """What must be equal for samples to share a UNet call."""

    model: str
    latent_shape: tuple[int, ...]
    conditioning_length: int
    dtype: torch.dtype


@dataclass(eq=False, kw_only=True)
class Sample:
    """One image being made. Tensors have one row and lie on the model's device; timesteps on the CPU.

    `masked_latents` is for UNets of 9 channels (they are shown mask and masked picture), `kept_latents`
    for those of 4 (what is not masked is put back after every step).
    """

    model: LoadedModel
    generator: torch.Generator
    scheduler: Any
    step_arguments: Mapping[str, Any]
    timesteps: torch.Tensor
    guidance_scale: float
    conditioning: torch.Tensor
    unconditional: torch.Tensor | None
    latents: torch.Tensor
    noise: torch.Tensor
    mask: torch.Tensor
    masked_latents: torch.Tensor | None
    kept_latents: torch.Tensor | None
    index: int = 0

    @property
    def finished(self) -> bool:
        return self.index >= len(self.timesteps)

    @property
    def call_shape(self) -> CallShape:
        return CallShape(
            model=self.model.id,
            latent_shape=tuple(self.latents.shape[1:]),
            conditioning_length=self.conditioning.shape[1],
            dtype=self.latents.dtype,
        )

    def unet_input(self) -> torch.Tensor:
        scaled: torch.Tensor = self.scheduler.scale_model_input(self.latents, self.timesteps[self.index])
        if self.masked_latents is None:
            return scaled
        return torch.cat([scaled, self.mask, self.masked_latents], dim=1)

    def advance(self, noise_prediction: torch.Tensor) -> None:
        """One step of this sample's scheduler."""
        timestep = self.timesteps[self.index]
        self.latents = self.scheduler.step(
            noise_prediction, timestep, self.latents, **self.step_arguments, return_dict=False
        )[0]
        self.index += 1
        if self.kept_latents is not None:
            self._put_back(self.kept_latents)

    def _put_back(self, kept: torch.Tensor) -> None:
        if not self.finished:
            kept = self.scheduler.add_noise(kept, self.noise, self.timesteps[self.index : self.index + 1])
        self.latents = (1 - self.mask) * kept + self.mask * self.latents

    def decode(self) -> NDArray[np.uint8]:
        """The finished picture, (H, W, 3) RGB."""
        vae = self.model.vae
        scaled = self.latents / vae.config.scaling_factor
        pixels: torch.Tensor = vae.decode(scaled, return_dict=False, generator=self.generator)[0]
        if not torch.isfinite(pixels).all():
            raise InternalError("The model gave values that are no picture.")
        levels = (pixels.float() * 0.5 + 0.5).clamp(0, 1) * PIXEL_MAX
        picture: NDArray[np.uint8] = levels.round().to(torch.uint8)[0].permute(1, 2, 0).contiguous().cpu().numpy()
        return picture


def begin_samples(model: LoadedModel, painting: Painting) -> list[Sample]:
    """The samples of a painting, each ready for its first step.

    What the seed does not touch is computed once for all of them. Every generator draws in the order of
    StableDiffusionInpaintPipeline (diffusers 0.42.1): the picture's latents where they are needed, the
    noise, the masked picture's latents (a UNet of 4 channels needs none, but the draw is made).
    """
    shared = _prepare(model, painting)
    return [_begin(model, painting, shared, seed) for seed in painting.seeds]


@dataclass(frozen=True)
class _Shared:
    """What the samples of one painting have in common."""

    mask: torch.Tensor
    picture_latents: Draw | None
    masked_latents: Draw | None
    conditioning: torch.Tensor
    unconditional: torch.Tensor | None


def _prepare(model: LoadedModel, painting: Painting) -> _Shared:
    picture, masked_picture, mask = _tensors(model, painting)
    needs_picture = painting.strength < 1 or not model.sees_mask
    guided = painting.guidance_scale > 1
    return _Shared(
        mask=mask,
        picture_latents=_encode(model, picture) if needs_picture else None,
        masked_latents=_encode(model, masked_picture) if model.sees_mask else None,
        conditioning=_conditioning(model, painting, 1),
        unconditional=_conditioning(model, painting, -1) if guided else None,
    )


def _conditioning(model: LoadedModel, painting: Painting, sign: int) -> torch.Tensor:
    """What to paint (1), or what not (-1)."""
    weighted = [each for each in painting.weighted_prompts if each.weight * sign > 0]
    if weighted:
        return model.prompts.encode_mean(weighted)
    text = painting.prompt if sign > 0 else painting.negative_prompt
    return model.prompts.encode("" if painting.weighted_prompts else text)


def _begin(model: LoadedModel, painting: Painting, shared: _Shared, seed: int) -> Sample:
    generator = torch.Generator("cpu").manual_seed(seed)
    scheduler = make_scheduler(painting.scheduler, model.scheduler_config, use_karras_sigmas=painting.use_karras_sigmas)
    timesteps = plan_timesteps(scheduler, painting.num_inference_steps, painting.strength)
    shape = (1, model.latent_channels, *shared.mask.shape[2:])

    original = shared.picture_latents(generator) if shared.picture_latents else None
    noise = _draw_noise(model, shape, generator)
    masked = shared.masked_latents(generator) if shared.masked_latents else None
    if masked is None and model.draws_latents:
        _draw_noise(model, shape, generator)

    if painting.strength < 1 and original is not None:
        start = _filled(painting.masked_area_init, original, shared.mask, seed)
        latents = scheduler.add_noise(start, noise, timesteps[:1])
    else:
        latents = noise * scheduler.init_noise_sigma
    return Sample(
        model=model,
        generator=generator,
        scheduler=scheduler,
        step_arguments=step_arguments(scheduler, generator),
        timesteps=timesteps,
        guidance_scale=painting.guidance_scale,
        conditioning=shared.conditioning,
        unconditional=shared.unconditional,
        latents=latents,
        noise=noise,
        mask=shared.mask,
        masked_latents=masked,
        kept_latents=None if model.sees_mask else original,
    )


def _filled(fill: MaskedAreaInit, latents: torch.Tensor, mask: torch.Tensor, seed: int) -> torch.Tensor:
    """The picture's latents with something else under the mask, before noise is added to them.

    Zero is the mean of all latents. The random ones come from a generator of their own, so that the
    sample's own draws what it always does.
    """
    if fill is MaskedAreaInit.ORIGINAL:
        return latents
    under = torch.zeros_like(latents)
    if fill is MaskedAreaInit.RANDOM:
        own = torch.Generator("cpu").manual_seed(seed ^ FILL_SEED)
        under = randn_tensor(latents.shape, generator=own, device=latents.device, dtype=latents.dtype)
    return (1 - mask) * latents + mask * under


def predict_noise(samples: Sequence[Sample]) -> list[torch.Tensor]:
    """One UNet call for samples of one call shape: the guided noise prediction of each, (1, 4, h, w).

    Rows: the unconditional ones of the samples with guidance, then one of every sample (for a sample
    alone the stock pipeline's order).
    """
    model = samples[0].model
    inputs = {sample: sample.unet_input() for sample in samples}
    guided = [(sample, sample.unconditional) for sample in samples if sample.unconditional is not None]
    rows = [sample for sample, _ in guided] + list(samples)
    conditioning = [unconditional for _, unconditional in guided] + [sample.conditioning for sample in samples]
    timesteps = torch.tensor([float(sample.timesteps[sample.index]) for sample in rows])
    noise: torch.Tensor = model.unet(
        torch.cat([inputs[sample] for sample in rows]),
        timesteps.to(model.device),
        encoder_hidden_states=torch.cat(conditioning),
        return_dict=False,
    )[0]
    unconditional_of = {sample: noise[row : row + 1] for row, (sample, _) in enumerate(guided)}
    return [
        _guide(sample, unconditional_of.get(sample), noise[row : row + 1])
        for row, sample in enumerate(samples, start=len(guided))
    ]


def _guide(sample: Sample, unconditional: torch.Tensor | None, conditional: torch.Tensor) -> torch.Tensor:
    if unconditional is None:
        return conditional
    return unconditional + sample.guidance_scale * (conditional - unconditional)


def _tensors(model: LoadedModel, painting: Painting) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Picture and masked picture in -1..1, (1, 3, H, W); the mask in latents, 0 or 1, (1, 1, h, w).

    Wherever the mask asks for any repainting, a UNet that sees the masked picture does not see it.
    """
    pixels = torch.from_numpy(painting.picture.astype(np.float32)[np.newaxis] / PIXEL_MAX)
    picture = (2.0 * pixels - 1.0).permute(0, 3, 1, 2)
    visible = torch.from_numpy(painting.mask <= KEEP)
    mask = torch.from_numpy(latent_mask(painting.mask, model.latent_factor))[None, None]
    on_device = functools.partial(torch.Tensor.to, device=model.device, dtype=model.dtype)
    return on_device(picture), on_device(picture * visible), on_device(mask)


def _encode(model: LoadedModel, picture: torch.Tensor) -> Draw:
    """The picture's latents, as a draw: encoded once, drawn by each sample's own generator."""
    encoded = model.vae.encode(picture)
    scale = model.vae.config.scaling_factor
    if model.draws_latents:
        distribution = encoded.latent_dist
        return lambda generator: scale * distribution.sample(generator)
    latents: torch.Tensor = scale * encoded.latents
    return lambda generator: latents


def _draw_noise(model: LoadedModel, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    noise: torch.Tensor = randn_tensor(shape, generator=generator, device=model.device, dtype=model.dtype)
    return noise
