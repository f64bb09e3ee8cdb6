"""A LoRA's file to its low-rank layers: checked first, safetensors only, whichever trainer has named them."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import load

from worker.model_files import PICKLES, SAFETENSORS, WHY_NO_PICKLES

UNET = "unet"
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
PARTS = (UNET, *TEXT_ENCODERS)
# Where diffusers' trainers note how the file was made.
METADATA_KEY = "lora_adapter_metadata"
OTHER_METHODS = {
    "dora_scale": "DoRA in LyCORIS's format",
    "hada_w1": "LoHa",
    "lokr_w": "LoKr",
    "oft_blocks": "OFT",
}
WEIGHT = re.compile(r"(.+)\.lora_(A\.weight|B\.weight|B\.bias|magnitude_vector)(?:\.weight)?")
# What PEFT's patterns for alphas are in files: names of layers, their dots escaped or not.
PATTERN = re.compile(r"\^?(?:\w|\\?\.)+\$?")

Tensors = dict[str, torch.Tensor]
Value = TypeVar("Value")


class BadLora(Exception):
    """A LoRA cannot be used. The text is short, and names no path."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """What is added to one layer's output: up(down(input)) times `scale`.

    `down` is (rank, inputs) or (rank, inputs, height, width), `up` (outputs, rank) or (outputs, rank, 1, 1).
    `magnitude` (outputs,) is there in a DoRA: the length that each row of the layer's weights gets.
    """

    down: torch.Tensor
    up: torch.Tensor
    bias: torch.Tensor | None
    magnitude: torch.Tensor | None
    scale: float

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [each for each in (self.down, self.up, self.bias, self.magnitude) if each is not None]


@dataclass(frozen=True, eq=False)
class Lora:
    """A LoRA in memory: by part of the model, by layer. Layers are named as in the model, or as they once were."""

    parts: Mapping[str, Mapping[str, LowRank]]
    size_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        tensors = [each for part in self.parts.values() for layer in part.values() for each in layer.tensors]
        object.__setattr__(self, "size_bytes", sum(each.element_size() * each.nelement() for each in tensors))


def read_lora(path: Path, unet_config: Any, *, family: str, device: torch.device, dtype: torch.dtype) -> Lora:
    """What diffusers reads: its own format, old and new, PEFT's and kohya's. Raises BadLora.

    `unet_config` tells how kohya's numbers of blocks are to be read. Beside diffusers' own reading: the names
    are its, the arithmetic is in worker.loras.
    """
    tensors, metadata = _read(path)
    for word, method in OTHER_METHODS.items():
        if any(word in name for name in tensors):
            raise BadLora(f"it is a {method}, which is not supported")
    named, alphas = _renamed(tensors, unet_config, family)
    parts: dict[str, Mapping[str, LowRank]] = {}
    for part in PARTS:
        inside = {name.removeprefix(f"{part}."): each for name, each in named.items() if name.startswith(f"{part}.")}
        if inside:
            config = {name.removeprefix(f"{part}."): each for name, each in metadata.items()}
            parts[part] = _layers(_canonical(part, inside), _alphas_of(part, alphas), config, device, dtype)
    if not any(parts.values()):
        raise BadLora("its file holds no LoRA for a model of Stable Diffusion")
    return Lora(parts)


def import_reader(family: str) -> Any:
    """diffusers' class that knows the names in files. To be called early: an import holds everything up."""
    # Imported only here, once the libraries are quiet: it prints advice about image processors we do not use.
    from diffusers.loaders import (  # noqa: PLC0415
        StableDiffusionLoraLoaderMixin,
        StableDiffusionXLLoraLoaderMixin,
    )

    return StableDiffusionXLLoraLoaderMixin if family == "sdxl" else StableDiffusionLoraLoaderMixin


def _read(path: Path) -> tuple[Tensors, dict[str, Any]]:
    if path.suffix in PICKLES:
        raise BadLora(f"its file is a pickle: {WHY_NO_PICKLES}")
    if not path.is_file():
        raise BadLora("its file is not there")
    if path.suffix != SAFETENSORS:
        raise BadLora(f"its file is not a {SAFETENSORS} file")
    try:
        with safe_open(path, framework="pt") as file:
            noted = (file.metadata() or {}).get(METADATA_KEY)
        # Not by get_tensor of the above: in safetensors 0.8.0 each call of it leaves some bytes behind.
        tensors = load(path.read_bytes())
        config = json.loads(noted) if noted else {}
        return tensors, config if isinstance(config, dict) else {}
    except (SafetensorError, OSError, ValueError, KeyError, RecursionError) as error:
        raise BadLora("its file is no whole safetensors file") from error


def _renamed(tensors: Tensors, unet_config: Any, family: str) -> tuple[Tensors, Mapping[str, float]]:
    """The tensors by part, as diffusers names them, and kohya's alphas."""
    try:
        named, alphas = import_reader(family).lora_state_dict(tensors, unet_config=unet_config)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        raise BadLora("the names in its file are none of a LoRA for its family") from error
    return named, alphas or {}


def _canonical(part: str, tensors: Mapping[str, Value]) -> dict[str, Value]:
    """The same, each named LAYER.lora_A.weight and so on. The order of conversions is diffusers' own."""
    try:
        if any(".lora_A." in name for name in tensors):
            converted = tensors
        elif part == UNET:
            converted = convert_unet_state_dict_to_peft(tensors)
        else:
            converted = convert_state_dict_to_peft(convert_state_dict_to_diffusers(tensors))
    except ValueError as error:
        raise BadLora("the names in its file are none of a LoRA for its family") from error
    return dict(converted)


def _alphas_of(part: str, alphas: Mapping[str, float]) -> dict[str, float]:
    """Kohya's alphas by layer: diffusers names some by the layer, some by one of its weights."""
    inside = {
        name.removeprefix(f"{part}.").removesuffix(".alpha"): float(alpha)
        for name, alpha in alphas.items()
        if name.startswith(f"{part}.")
    }
    by_weight = {name: alpha for name, alpha in inside.items() if name.endswith(".weight")}
    found = {name: alpha for name, alpha in inside.items() if name not in by_weight}
    if by_weight:
        for name, alpha in _canonical(part, by_weight).items():
            match = WEIGHT.fullmatch(name)
            found |= {match[1]: alpha} if match else {}
    return found


def _layers(
    tensors: Tensors,
    alphas: Mapping[str, float],
    config: Mapping[str, Any],
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, LowRank]:
    found: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        match = WEIGHT.fullmatch(name)
        if match is None:
            raise BadLora("its file holds weights that belong to no layer")
        found[match[1]][match[2]] = tensor
    layers = {}
    for layer, weights in found.items():
        down, up = weights.get("A.weight"), weights.get("B.weight")
        if down is None or up is None or down.ndim != up.ndim or up.ndim not in (2, 4):
            raise BadLora("its file holds half a layer")
        if not all(each.is_floating_point() for each in weights.values()):
            raise BadLora("its file holds weights of a kind that is not supported")
        if not all(torch.isfinite(each.float()).all() for each in weights.values()):
            raise BadLora("its file holds weights that are no numbers")
        bias, magnitude = weights.get("B.bias"), weights.get("magnitude_vector")
        layers[layer] = LowRank(
            down=down.to(device, dtype),
            up=up.to(device, dtype),
            bias=None if bias is None else bias.to(device, dtype),
            magnitude=None if magnitude is None else magnitude.flatten().to(device, dtype),
            scale=_scale(layer, down.shape[0], alphas, config),
        )
    return layers


def _scale(layer: str, rank: int, alphas: Mapping[str, float], config: Mapping[str, Any]) -> float:
    """Alpha over rank. Source: PEFT's LoraConfig, whose patterns are ends of layers' names."""
    try:
        patterns = dict(config.get("alpha_pattern") or {})
        # As regular expressions they could keep the whole process for hours.
        if not all(PATTERN.fullmatch(pattern) for pattern in patterns):
            raise BadLora("what its file says of its alphas cannot be read")
        fitting = (alpha for pattern, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", layer))
        alpha = float(next(fitting, config.get("lora_alpha", alphas.get(layer, rank))))
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    except (re.error, TypeError, ValueError, ArithmeticError) as error:
        raise BadLora("what its file says of its alphas cannot be read") from error
    if not math.isfinite(scale):
        raise BadLora("what its file says of its alphas cannot be read")
    return scale
