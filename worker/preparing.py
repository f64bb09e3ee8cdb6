"""From a painting to its samples: pictures and prompts encoded once, and drawn by each sample's own generator."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import NDArray

from storage.job import MaskedAreaInit
from worker.errors import PromptTooLong
from worker.graphs import ROW_BUCKETS, bucket_of
from worker.inversions import Inversion, load_inversions
from worker.ip_adapters import Glance, PreparedLook, glance_at, prepare_look
from worker.loading import LoadedModel
from worker.masks import KEEP, REPAINT, latent_mask, latent_strength
from worker.prompts import Conditioning, Reading
from worker.sample import PIXEL_MAX, Painting, Sample, predict_noise
from worker.schedulers import step_arguments

FILL_SEED = 2**32  # beyond every seed of a job

Draw = Callable[[torch.Generator | None], torch.Tensor]


@dataclass(frozen=True)
class Canvas:
    """A painting's picture as tensors on the CPU: what can be made before the engine's turn.

    Pictures in -1..1, (1, 3, H, W); mask and strength in latents, (1, 1, h, w), see masks.latent_mask and
    masks.latent_strength. The keys are hashes of the pictures' content. `inversions` are what words of the
    prompts stand for; `look` is the picture to be looked at.
    """

    picture: torch.Tensor
    masked_picture: torch.Tensor
    mask: torch.Tensor
    strength: torch.Tensor | None
    picture_key: bytes
    masked_key: bytes
    inversions: tuple[Inversion, ...]
    look: PreparedLook | None


def make_canvas(model: LoadedModel, painting: Painting) -> Canvas:
    """Wherever the mask asks for any repainting, a UNet that sees the masked picture does not see it.

    Finds the scheduler's walk, too, and reads textual inversions. Raises ValueError for a scheduler
    that is not offered, and AddonUnavailable.
    """
    model.schedulers.prepare(painting.plan)
    pixels = torch.from_numpy(painting.picture.astype(np.float32)[np.newaxis] / PIXEL_MAX)
    picture = (2.0 * pixels - 1.0).permute(0, 3, 1, 2)
    visible = painting.mask <= KEEP
    strength = latent_strength(painting.mask, model.latent_factor)
    return Canvas(
        picture=picture,
        masked_picture=picture * torch.from_numpy(visible),
        mask=torch.from_numpy(latent_mask(painting.mask, model.latent_factor))[None, None],
        strength=None if strength is None else torch.from_numpy(strength)[None, None],
        picture_key=_key(painting.picture),
        masked_key=_key(painting.picture, visible),
        inversions=load_inversions(painting.embeddings, model.prompts.widths),
        look=prepare_look(model.looker, painting.look) if model.looker and painting.look else None,
    )


def begin_samples(model: LoadedModel, painting: Painting, canvas: Canvas | None = None) -> list[Sample]:
    """The samples of a painting, each ready for its first step. The canvas is the painting's, if made already.

    What the seed does not touch is computed once for all of them. Every generator draws in the order of
    the stock pipelines (StableDiffusionInpaintPipeline and its XL twin, diffusers 0.42.1): the picture's
    latents where they are needed, the noise, the masked picture's latents (a UNet of 4 channels needs none,
    but the draw is made).
    """
    shared = _prepare(model, painting, canvas or make_canvas(model, painting))
    return [_begin(model, painting, shared, seed) for seed in painting.seeds]


@dataclass(frozen=True)
class _Shared:
    """What the samples of one painting have in common."""

    mask: torch.Tensor
    strength: torch.Tensor | None
    picture_latents: Draw | None
    masked_latents: Draw | None
    conditioning: Conditioning
    unconditional: Conditioning | None
    glance: Glance | None


def _prepare(model: LoadedModel, painting: Painting, canvas: Canvas) -> _Shared:
    model.put_on_loras()
    needs_picture = painting.strength < 1 or not model.sees_mask or canvas.strength is not None
    conditioning, unconditional = _conditionings(model, painting, canvas.inversions)
    on_device = functools.partial(torch.Tensor.to, device=model.device, dtype=model.dtype)
    return _Shared(
        mask=on_device(canvas.mask),
        # In full precision: a threshold must not fall between two of half precision's numbers.
        strength=None if canvas.strength is None else canvas.strength.to(model.device),
        picture_latents=_encode(model, canvas.picture, canvas.picture_key) if needs_picture else None,
        masked_latents=_encode(model, canvas.masked_picture, canvas.masked_key) if model.sees_mask else None,
        conditioning=conditioning,
        unconditional=unconditional,
        glance=glance_at(canvas.look, model.encodings, model.device, model.dtype) if canvas.look else None,
    )


def _conditionings(
    model: LoadedModel, painting: Painting, inversions: tuple[Inversion, ...]
) -> tuple[Conditioning, Conditioning | None]:
    """What to paint and, with guidance, what not: of one length. Raises PromptTooLong.

    As in the stock pipelines, layers are left out for what to paint only.
    """
    skipping, whole = Reading(_clip_skip(model, painting), inversions), Reading(inversions=inversions)
    with _naming("prompt"):
        conditioning = _conditioning(model, painting, skipping)
    if painting.guidance_scale <= 1:
        return conditioning, None
    with _naming("negative_prompt"):
        unconditional = _unconditional(model, painting, conditioning, whole)
    length = max(conditioning.hidden.shape[1], unconditional.hidden.shape[1])
    prompts = model.prompts
    return prompts.lengthen(conditioning, length, skipping), prompts.lengthen(unconditional, length, whole)


def _clip_skip(model: LoadedModel, painting: Painting) -> int | None:
    """No more layers than there are; the job is told of it."""
    if painting.clip_skip is None:
        return None
    possible = min(painting.clip_skip, model.prompts.max_clip_skip)
    if possible < painting.clip_skip:
        painting.notes["clip_skip"] = possible
    return possible


@contextmanager
def _naming(field: str) -> Iterator[None]:
    try:
        yield
    except PromptTooLong as error:
        raise PromptTooLong(f"{field} has more words than are read.", field=field) from error


def _conditioning(model: LoadedModel, painting: Painting, reading: Reading) -> Conditioning:
    """What to paint."""
    if not painting.weighted_prompts:
        return model.prompts.encode(painting.prompt, reading)
    wanted = [each for each in painting.weighted_prompts if each.weight > 0]
    return model.prompts.encode_mean(wanted, reading) if wanted else model.prompts.encode("", reading)


def _unconditional(
    model: LoadedModel, painting: Painting, conditioning: Conditioning, reading: Reading
) -> Conditioning:
    """What not to paint."""
    unwanted = [each for each in painting.weighted_prompts if each.weight < 0]
    if unwanted:
        return model.prompts.encode_mean(unwanted, reading)
    text = "" if painting.weighted_prompts else painting.negative_prompt
    return model.prompts.encode_negative(text, conditioning, reading)


def _begin(model: LoadedModel, painting: Painting, shared: _Shared, seed: int) -> Sample:
    generator = torch.Generator("cpu").manual_seed(seed)
    scheduler, timesteps, walk = model.schedulers.begin(painting.plan)
    shape = (1, model.latent_channels, *shared.mask.shape[2:])
    begins_from_picture = painting.strength < 1
    draws_original = begins_from_picture or not model.sees_mask

    original = None
    if shared.picture_latents is not None:
        # Only for gray masks: nothing is drawn, so that white is painted as it is with a mask without gray.
        original = shared.picture_latents(generator if draws_original else None)
    noise = _draw_noise(model, shape, generator)
    masked = shared.masked_latents(generator) if shared.masked_latents else None
    if masked is None and model.draws_latents:
        _draw_noise(model, shape, generator)

    if begins_from_picture and original is not None:
        start = _filled(painting.masked_area_init, original, shared.mask, seed)
        latents = scheduler.add_noise(start, noise, timesteps[:1])
    else:
        latents = noise * scheduler.init_noise_sigma
    sample = Sample(
        model=model,
        generator=generator,
        scheduler=scheduler,
        walk=walk,
        step_arguments=step_arguments(scheduler, generator),
        timesteps=timesteps,
        unet_timesteps=timesteps.float().tolist(),
        guidance_scale=painting.guidance_scale,
        conditioning=shared.conditioning,
        unconditional=shared.unconditional,
        latents=latents,
        noise=noise,
        mask=shared.mask,
        strength=shared.strength,
        masked_latents=masked,
        kept_latents=None if model.sees_mask and shared.strength is None else original,
        glance=shared.glance,
    )
    if shared.strength is not None:
        sample.latents = sample.held_back(sample.latents, 0)
    return sample


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


def warm_up_graphs(model: LoadedModel, *, max_rows: int) -> None:
    """Make calls of the model's native size with every number of rows that calls are padded to, up to `max_rows`."""
    model = model.plain or model
    empty = Painting(
        job_id="graphs",
        model=model.id,
        prompt="",
        negative_prompt="",
        picture=np.zeros((model.native_size, model.native_size, 3), np.uint8),
        mask=np.full((model.native_size, model.native_size), REPAINT, np.uint8),
        seeds=(0,),
        num_inference_steps=1,
        guidance_scale=1.0,
        strength=1.0,
        scheduler="DDIMScheduler",
    )
    [sample] = begin_samples(model, empty)
    for rows in ROW_BUCKETS:
        if rows <= bucket_of(max_rows):
            predict_noise([sample] * rows)


def _encode(model: LoadedModel, picture: torch.Tensor, key: bytes) -> Draw:
    """The picture's latents, as a draw: encoded once, drawn by each sample's own generator; by none: the middle."""
    encoded = model.encodings.get(model.vae_id.encode() + key, lambda: _run_vae(model, picture))
    scale = model.vae.config.scaling_factor
    if isinstance(encoded, torch.Tensor):
        latents: torch.Tensor = scale * encoded.to(model.dtype)
        return lambda _generator: latents

    def draw(generator: torch.Generator | None) -> torch.Tensor:
        drawn = encoded.mode() if generator is None else encoded.sample(generator)
        latents: torch.Tensor = scale * drawn.to(model.dtype)
        return latents

    return draw


def _run_vae(model: LoadedModel, picture: torch.Tensor) -> Any:
    encoded = model.vae.encode(picture.to(model.device, model.vae.dtype))
    return encoded.latent_dist if model.draws_latents else encoded.latents


def _draw_noise(model: LoadedModel, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    noise: torch.Tensor = randn_tensor(shape, generator=generator, device=model.device, dtype=model.dtype)
    return noise


def _key(*arrays: NDArray[Any]) -> bytes:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()
