"""IP-adapters: a picture that the model looks at while it paints, through attention layers of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from storage.addons import Addons, IpAdapter, find_addon
from storage.job import IpAdapterUse
from worker.encodings import PictureEncodings
from worker.errors import AddonUnavailable
from worker.ip_adapter_files import BadIpAdapter, ImageEncoder, IpAdapterWeights
from worker.versions import Version

ID_FIELD = "ip_adapter_id"
MAX_STRIP = 4


@dataclass(frozen=True)
class Look:
    """What a painting asks for: the picture (H, W, 3) RGB to be looked at; `scale` from 0 = not at all to 1."""

    adapter: IpAdapter
    picture: NDArray[np.uint8] = field(repr=False)
    scale: float


@dataclass(frozen=True, eq=False)
class Looker:
    """An adapter that fits a model, with its image encoder; what of their files was read."""

    adapter: IpAdapter
    weights: IpAdapterWeights
    encoder: ImageEncoder
    version: Version = ()
    encoder_version: Version = ()

    @property
    def name(self) -> tuple[str, Version]:
        """Equal for those that may share a call."""
        return self.adapter.id, self.version


@dataclass(frozen=True, eq=False)
class PreparedLook:
    """A look before the device has seen the picture. `key` is a hash of the picture and of who looks at it."""

    looker: Looker
    pixels: torch.Tensor
    key: bytes
    scale: float


@dataclass(frozen=True, eq=False)
class Glance:
    """What the UNet is shown for one sample: tokens (1, tokens, width), and those for what not to paint."""

    looker: Looker
    tokens: torch.Tensor
    unconditional_tokens: torch.Tensor
    scale: float


def find_look(addons: Addons, use: IpAdapterUse | None, picture: NDArray[np.uint8] | None) -> Look | None:
    """What a job asks for, from the models file. Raises AddonUnavailable."""
    if use is None or picture is None:
        return None
    adapter = find_addon(addons.ip_adapters, use.id)
    if adapter is None:
        raise AddonUnavailable(f"There is no IP-adapter {use.id} here any more.", field=ID_FIELD)
    return Look(adapter, picture, use.scale)


def fit_looker(
    adapter: IpAdapter, weights: IpAdapterWeights, encoder: ImageEncoder, attentions: Sequence[Any]
) -> Looker:
    """`attentions` are the UNet's layers that look at the prompt. Raises BadIpAdapter where they are not alike."""
    if len(weights.layers) != len(attentions):
        raise BadIpAdapter(f"it has {len(weights.layers)} attention layers, the model has {len(attentions)}")
    for layer, attention in zip(weights.layers, attentions, strict=True):
        if layer.key.shape != (attention.inner_dim, attention.cross_attention_dim):
            raise BadIpAdapter("its attention layers are of another size than the model's")
    config = encoder.model.config
    width = config.hidden_size if weights.sees_patches else config.projection_dim
    if width != weights.image_width:
        raise BadIpAdapter(f"it was made for another image encoder: of width {weights.image_width}, not {width}")
    return Looker(adapter, weights, encoder)


def prepare_look(looker: Looker, look: Look) -> PreparedLook:
    """What needs no device."""
    digest = hashlib.sha256(
        f"{looker.adapter.image_encoder} {looker.encoder_version} {looker.weights.sees_patches} "
        f"{look.picture.shape}".encode()
    )
    digest.update(np.ascontiguousarray(look.picture).data)
    middle = _middle(Image.fromarray(look.picture))
    pixels = looker.encoder.process(middle, return_tensors="pt").pixel_values
    return PreparedLook(looker, pixels, digest.digest(), look.scale)


def _middle(picture: Image.Image) -> Image.Image:
    """CLIP sees the middle square, but enlarges all of a strip before it takes that: thousands of times, of a line."""
    longest = MAX_STRIP * min(picture.size)
    width, height = (min(length, longest) for length in picture.size)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def glance_at(look: PreparedLook, encodings: PictureEncodings, device: torch.device, dtype: torch.dtype) -> Glance:
    """Each picture is encoded once for all that look at it in the same way.

    Source: encode_image and prepare_ip_adapter_image_embeds of the stock pipelines.
    """
    encoded = encodings.get(look.key, lambda: _encode(look, look.pixels.to(device, dtype)))
    wanted, unwanted = (look.looker.weights.projection(embeds) for embeds in encoded.unbind())
    return Glance(look.looker, wanted, unwanted, look.scale)


def _encode(look: PreparedLook, pixels: torch.Tensor) -> torch.Tensor:
    """What the picture looks like, and what nothing looks like: (2, 1, ...)."""
    model = look.looker.encoder.model
    if not look.looker.weights.sees_patches:
        embeds = model(pixels).image_embeds
        return torch.stack([embeds, torch.zeros_like(embeds)])
    patches = [model(each, output_hidden_states=True).hidden_states[-2] for each in (pixels, torch.zeros_like(pixels))]
    return torch.stack(patches)
