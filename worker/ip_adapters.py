"""IP-adapters: a picture that the model looks at while it paints, through attention layers of its own."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from PIL import Image

from storage.addons import Addons, IpAdapter, find_addon
from storage.job import IpAdapterUse
from worker.adapter_files import BadIpAdapter, ImageEncoder, IpAdapterWeights, load_image_encoder, load_weights
from worker.encodings import PictureEncodings
from worker.errors import AddonUnavailable

log = structlog.get_logger(__name__)

ID_FIELD = "ip_adapter_id"

Kind = TypeVar("Kind", ImageEncoder, IpAdapterWeights)


@dataclass(frozen=True)
class Look:
    """What a painting asks for: the picture (H, W, 3) RGB to be looked at; `scale` from 0 = not at all to 1."""

    adapter: IpAdapter
    picture: NDArray[np.uint8] = field(repr=False)
    scale: float


@dataclass(frozen=True, eq=False)
class PreparedLook:
    """The same, loaded, before the device has seen the picture. `key` is a hash of it and of who looks."""

    id: str
    weights: IpAdapterWeights
    encoder: ImageEncoder
    pixels: torch.Tensor
    key: bytes
    scale: float


@dataclass(frozen=True, eq=False)
class Glance:
    """What the UNet is shown for one sample: tokens (1, tokens, width), and those for what not to paint."""

    id: str
    weights: IpAdapterWeights
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


class IpAdapters:
    """The adapters and image encoders used last, in `capacity_bytes`, and what pictures look like to them.

    Loading may be asked for in many threads; `glance` is for the engine's alone.
    """

    def __init__(
        self, *, device: torch.device, dtype: torch.dtype, capacity_bytes: int, picture_cache_bytes: int = 0
    ) -> None:
        self._device = device
        self._dtype = dtype
        self._capacity_bytes = capacity_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[Path, ImageEncoder | IpAdapterWeights] = OrderedDict()
        self._encodings = PictureEncodings(picture_cache_bytes)
        self.loads = 0

    @property
    def held_bytes(self) -> int:
        return sum(each.size_bytes for each in list(self._kept.values()))

    @property
    def encodes(self) -> int:
        """How often an image encoder has looked at a picture."""
        return self._encodings.encodes

    def prepare(self, look: Look, attentions: Sequence[Any]) -> PreparedLook:
        """Load what it takes; `attentions` are the UNet's layers that look at the prompt. Raises AddonUnavailable."""
        adapter = look.adapter
        try:
            with self._lock:
                weights = self._get(adapter.path, IpAdapterWeights, load_weights)
                encoder = self._get(adapter.image_encoder, ImageEncoder, load_image_encoder)
            _check_fit(weights, encoder, attentions)
        except BadIpAdapter as reason:
            log.warning("ip_adapter_unavailable", ip_adapter=adapter.id, path=str(adapter.path), reason=str(reason))
            raise AddonUnavailable(f"The IP-adapter {adapter.id} cannot be used.", field=ID_FIELD) from reason
        who = f"{adapter.image_encoder} {weights.sees_patches} {look.picture.shape}"
        key = hashlib.sha256(who.encode() + np.ascontiguousarray(look.picture).tobytes()).digest()
        pixels = encoder.process(Image.fromarray(look.picture), return_tensors="pt").pixel_values
        return PreparedLook(adapter.id, weights, encoder, pixels, key, look.scale)

    def glance(self, look: PreparedLook) -> Glance:
        """Source: encode_image and prepare_ip_adapter_image_embeds of the stock pipelines."""
        pixels = look.pixels.to(self._device, self._dtype)
        wanted, unwanted = (
            look.weights.projection(embeds)
            for embeds in self._encodings.get(look.key, lambda: _encode(look, pixels)).unbind()
        )
        return Glance(look.id, look.weights, wanted, unwanted, look.scale)

    def _get(self, path: Path, kind: type[Kind], load: Callable[..., Kind]) -> Kind:
        known = self._kept.get(path)
        if not isinstance(known, kind):
            self.loads += 1
            known = load(path, device=self._device, dtype=self._dtype)
            self._kept[path] = known
            # What is used by a job stays in memory until that is done.
            while self.held_bytes > self._capacity_bytes and len(self._kept) > 1:
                dropped, _ = self._kept.popitem(last=False)
                log.info("ip_adapter_evicted", path=str(dropped))
        self._kept.move_to_end(path)
        return known


def _encode(look: PreparedLook, pixels: torch.Tensor) -> torch.Tensor:
    """What the picture looks like, and what nothing looks like: (2, 1, ...)."""
    if not look.weights.sees_patches:
        embeds = look.encoder.model(pixels).image_embeds
        return torch.stack([embeds, torch.zeros_like(embeds)])
    patches = [
        look.encoder.model(each, output_hidden_states=True).hidden_states[-2]
        for each in (pixels, torch.zeros_like(pixels))
    ]
    return torch.stack(patches)


def _check_fit(weights: IpAdapterWeights, encoder: ImageEncoder, attentions: Sequence[Any]) -> None:
    if len(weights.layers) != len(attentions):
        raise BadIpAdapter(f"it has {len(weights.layers)} attention layers, the model has {len(attentions)}")
    for layer, attention in zip(weights.layers, attentions, strict=True):
        if layer.key.shape != (attention.inner_dim, attention.cross_attention_dim):
            raise BadIpAdapter("its attention layers are of another size than the model's")
    config = encoder.model.config
    width = config.hidden_size if weights.sees_patches else config.projection_dim
    if width != weights.image_width:
        raise BadIpAdapter(f"it was made for another image encoder: of width {weights.image_width}, not {width}")
