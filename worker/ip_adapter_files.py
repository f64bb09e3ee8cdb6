"""The files of IP-adapters and of their image encoders: safetensors only, whole, of the kinds that are known here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.unet import UNet2DConditionLoadersMixin
from safetensors import SafetensorError
from safetensors.torch import load
from transformers import CLIPVisionModelWithProjection

SUFFIX = ".safetensors"
PROJECTION, LAYERS = "image_proj.", "ip_adapter."
KEY, VALUE = "to_k_ip.weight", "to_v_ip.weight"
# By these the two kinds are known: those that look at one vector for the whole picture, and "plus" at its patches.
WHOLE_PICTURE_MARK, PATCHES_MARK = "proj.weight", "latents"


class BadIpAdapter(Exception):
    """The files cannot be used; the text says why, for the operator."""


@dataclass(frozen=True, eq=False)
class IpLayer:
    """Of one cross-attention layer: from an image token to key and to value, (inner width, token width)."""

    key: torch.Tensor
    value: torch.Tensor


@dataclass(frozen=True, eq=False)
class IpAdapterWeights:
    """One adapter. `projection` makes image tokens of what the encoder gives, whose width is `image_width`."""

    projection: Any
    layers: tuple[IpLayer, ...]
    sees_patches: bool
    image_width: int
    size_bytes: int


@dataclass(frozen=True, eq=False)
class ImageEncoder:
    """CLIP's, and what makes its input of a picture."""

    model: Any
    process: Callable[..., Any]
    size_bytes: int


def load_weights(path: Path, *, device: torch.device, dtype: torch.dtype) -> IpAdapterWeights:
    """Raises BadIpAdapter."""
    if path.suffix != SUFFIX:
        raise BadIpAdapter("only safetensors files are read")
    try:
        # Not mapped: the file may be overwritten while this is in use.
        tensors = load(path.read_bytes())
    except (SafetensorError, OSError) as error:
        raise BadIpAdapter("it is not there, or not a whole safetensors file") from error
    projection_state = _below(PROJECTION, tensors)
    sees_patches = PATCHES_MARK in projection_state
    if not sees_patches and WHOLE_PICTURE_MARK not in projection_state:
        raise BadIpAdapter("it is none of the kinds plain and plus")
    layers = _layers(_below(LAYERS, tensors))
    try:
        # A method in name only: it looks at nothing but the tensors. It knows every trainer's names for them.
        convert = UNet2DConditionLoadersMixin._convert_ip_adapter_image_proj_to_diffusers
        projection = convert(None, projection_state, low_cpu_mem_usage=False)
        norm = projection.norm_out if sees_patches else projection.norm
        width = projection.proj_in.in_features if sees_patches else projection.image_embeds.in_features
    except (RuntimeError, KeyError, IndexError, ValueError, AttributeError) as error:
        raise BadIpAdapter("its projection is not that of its kind") from error
    if any(each.key.shape[1:] != norm.normalized_shape for each in layers):
        raise BadIpAdapter("its projection and its attention layers do not belong together")
    if not all(torch.isfinite(each.float()).all() for each in tensors.values()):
        raise BadIpAdapter("its weights are no numbers")
    projection.to(device, dtype).eval().requires_grad_(False)
    return IpAdapterWeights(
        projection=projection,
        layers=tuple(IpLayer(each.key.to(device, dtype), each.value.to(device, dtype)) for each in layers),
        sees_patches=sees_patches,
        image_width=width,
        size_bytes=sum(each.nelement() for each in tensors.values()) * dtype.itemsize,
    )


def load_image_encoder(folder: Path, *, device: torch.device, dtype: torch.dtype) -> ImageEncoder:
    """Raises BadIpAdapter."""
    # Imported late: it prints advice about image processors that are not used.
    from transformers import CLIPImageProcessor  # noqa: PLC0415

    try:
        model, report = CLIPVisionModelWithProjection.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            dtype=dtype,
            disable_mmap=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BadIpAdapter("its image encoder is not there, or cannot be read") from error
    if report.get("missing_keys") or report.get("mismatched_keys"):
        raise BadIpAdapter("its image encoder lacks weights")
    model.to(device).eval().requires_grad_(False)
    size = model.config.image_size
    # As the stock pipelines make it.
    process = CLIPImageProcessor(size=size, crop_size=size)
    weights = sum(each.nelement() for each in model.parameters())
    return ImageEncoder(model, process, weights * dtype.itemsize)


def _below(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}


def _layers(state: dict[str, torch.Tensor]) -> list[IpLayer]:
    """Numbered 1, 3, 5, … by those who train them."""
    count = len(state) // 2
    names = [(f"{2 * index + 1}.{KEY}", f"{2 * index + 1}.{VALUE}") for index in range(count)]
    if not count or {name for pair in names for name in pair} != state.keys():
        raise BadIpAdapter("its attention layers are not numbered as those of an IP-adapter")
    layers = [IpLayer(state[key], state[value]) for key, value in names]
    if any(each.key.ndim != 2 or each.key.shape != each.value.shape for each in layers):  # noqa: PLR2004  # matrices
        raise BadIpAdapter("its attention layers are no matrices")
    return layers
