"""A glimpse of a picture in the making: from its latents by their colours, without the VAE's decoder."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from worker.loading import LoadedModel
from worker.masks import composite, paste_weight
from worker.sample import PIXEL_MAX, Painting, Sample

# 128 x 128 x 3 bytes are less than 50 kB.
MAX_SIDE = 128
# The colours are learnt from a picture of this many flat patches along a side, of two latents each.
PATCHES = 16
LATENTS_PER_PATCH = 2
MIN_ALPHA = 1e-4
JPEG_QUALITY = 80


@dataclass(frozen=True)
class Preview:
    """A glimpse of a sample after `step` of its UNet evaluations. `pixels`: (h, w, 3) RGB."""

    step: int
    pixels: NDArray[np.uint8]


def make_preview(sample: Sample, prediction: torch.Tensor) -> NDArray[np.uint8]:
    """What the sample is going to be, as far as this step's prediction tells: (h, w, 3) RGB, one pixel a latent.

    At most MAX_SIDE pixels along a side. To be called before the sample's step.
    """
    clean = _clean_latents(sample, prediction)[0].float().cpu().numpy()
    channels, height, width = clean.shape
    linear = np.concatenate([clean.reshape(channels, -1), np.ones((1, height * width), np.float32)])
    colours = (sample.model.latent_colours.T @ linear).reshape(3, height, width).transpose(1, 2, 0)
    preview = np.rint(np.clip(colours, 0, 1) * PIXEL_MAX).astype(np.uint8)
    shrink = MAX_SIDE / max(height, width)
    if shrink < 1:
        size = (max(1, int(width * shrink)), max(1, int(height * shrink)))
        preview = cv2.resize(preview, size, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(preview)


def paste_preview(preview: NDArray[np.uint8], painting: Painting) -> NDArray[np.uint8]:
    """The preview in the picture that was given, made small: where nothing is repainted, only that is seen.

    As large as the preview; or, where a part of a picture is worked on, that whole picture (see framing.Whole).
    """
    if painting.whole is None:
        return _pasted(preview, cv2.resize(painting.picture, _size(preview), interpolation=cv2.INTER_AREA), painting)
    shown, part = painting.whole.small.copy(), painting.whole.small_part
    shrinks = shown[part].size < preview.size
    scaled = cv2.resize(
        preview, _size(shown[part]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    ).astype(np.uint8)
    shown[part] = _pasted(scaled, shown[part], painting)
    return shown


def encode_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """(h, w, 3) RGB as a JPEG: under 50 kB for the largest preview."""
    encoded, data = cv2.imencode(
        ".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    )
    if not encoded:
        raise ValueError(f"a preview of shape {pixels.shape} cannot be encoded")
    return data.tobytes()


def learn_colours(model: LoadedModel) -> NDArray[np.float32]:
    """(channels + 1, 3): the linear map from latents, and 1, to RGB in 0..1 that fits this VAE best.

    By least squares over a picture of random flat colours, as the VAE encodes it.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    patches = torch.rand((1, 3, PATCHES, PATCHES), generator=generator, dtype=torch.float32)
    per_latent = patches.repeat_interleave(LATENTS_PER_PATCH, 2).repeat_interleave(LATENTS_PER_PATCH, 3)
    pixels = per_latent.repeat_interleave(model.latent_factor, 2).repeat_interleave(model.latent_factor, 3)
    encoded = model.vae.encode((2 * pixels - 1).to(model.device, model.vae.dtype))
    latents = encoded.latent_dist.mode() if model.draws_latents else encoded.latents
    known = (latents * model.vae.config.scaling_factor)[0].float().cpu().numpy()
    linear = np.concatenate([known.reshape(len(known), -1), np.ones((1, known[0].size), np.float32)])
    colours: NDArray[np.float32] = np.linalg.lstsq(linear.T, per_latent[0].reshape(3, -1).numpy().T, rcond=None)[0]
    return colours


def _pasted(preview: NDArray[np.uint8], picture: NDArray[np.generic], painting: Painting) -> NDArray[np.uint8]:
    """Both of one size."""
    weight = cv2.resize(paste_weight(painting.mask), _size(preview), interpolation=cv2.INTER_AREA)
    return composite(picture.astype(np.uint8), preview, weight.astype(np.uint8))


def _size(pixels: NDArray[np.uint8]) -> tuple[int, int]:
    """As OpenCV has it: width, height."""
    return pixels.shape[1], pixels.shape[0]


def _clean_latents(sample: Sample, prediction: torch.Tensor) -> torch.Tensor:
    """The latents without their noise, if the prediction is right.

    Source for epsilon and v-prediction: Salimans and Ho, "Progressive distillation", appendix D.
    """
    kind = getattr(sample.scheduler.config, "prediction_type", "epsilon")
    if kind == "sample":
        return prediction
    one, zero = torch.ones_like(sample.latents), torch.zeros_like(sample.latents)
    alpha, sigma = (
        float(each.flatten()[0])
        for each in (sample.noised(one, zero, sample.index), sample.noised(zero, one, sample.index))
    )
    if kind == "v_prediction":
        length = (alpha**2 + sigma**2) ** 0.5
        clean: torch.Tensor = (alpha / length) * (sample.latents / length) - (sigma / length) * prediction
    else:
        clean = (sample.latents - sigma * prediction) / max(alpha, MIN_ALPHA)
    return clean
