"""LoRA files of tiny models, in the formats of several trainers, and VAEs: what jobs put onto models in tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import save_file
from torch.nn import Conv2d, Linear, Module

from storage.addons import Addons, Lora, Vae
from worker.loading import LoadedModel
from worker.lora_files import PARTS

# kohya_blocks: as kohya trains XL, whose UNet has numbered blocks there.
Format = Literal["diffusers", "old_diffusers", "kohya", "kohya_blocks"]
Tensors = dict[str, torch.Tensor]
Pair = tuple[torch.Tensor, torch.Tensor]

UNET_LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
CONV_LAYERS = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv")
TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
KOHYA = {"text_encoder": "lora_te"}
KOHYA_XL = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
OLD_NAMES = {"to_q": "to_q_lora", "to_k": "to_k_lora", "to_v": "to_v_lora", "to_out.0": "to_out_lora"}
# Strong enough to be seen with random weights.
SPREAD = 0.25
TEXT_SPREAD = 1.0


def write_lora(
    path: Path,
    model: LoadedModel,
    *,
    seed: int = 0,
    file_format: Format = "diffusers",
    rank: int = 4,
    alpha: float | None = None,
    unet: bool = True,
    convs: bool = False,
    texts: bool = False,
    notes_alpha: bool = False,
    dora: bool = False,
) -> Path:
    """Random weights for the layers that trainers change. `notes_alpha`: in the file's metadata, as PEFT has it.

    `dora`: with magnitudes, in diffusers' format.
    """
    chance = torch.Generator("cpu").manual_seed(seed)
    tensors: Tensors = {}
    metadata: dict[str, str] = {}
    for part, modules in _parts(model, unet=unet, texts=texts).items():
        spread = SPREAD if part == "unet" else TEXT_SPREAD
        for name, layer in _layers(part, modules, convs=convs, only_attention=file_format == "old_diffusers"):
            pair = _pair(layer, rank, spread, chance)
            if dora:
                tensors[f"{part}.{name}.lora_magnitude_vector"] = _magnitude(layer, chance)
            tensors |= NAMERS[file_format](len(model.prompts.towers) > 1, part, name, pair, alpha)
    if notes_alpha:
        parts = _parts(model, unet=unet, texts=texts)
        noted = {
            f"{part}.{key}": value for part in parts for key, value in _peft_config(part, rank, alpha, convs).items()
        }
        metadata = {"lora_adapter_metadata": json.dumps(noted), "format": "pt"}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata=metadata or None)
    return path


def _peft_config(part: str, rank: int, alpha: float | None, convs: bool) -> dict[str, Any]:
    targets = (UNET_LAYERS + (CONV_LAYERS if convs else ())) if part == "unet" else TEXT_LAYERS
    return {"r": rank, "lora_alpha": alpha or rank, "target_modules": list(targets)}


def _parts(model: LoadedModel, *, unet: bool, texts: bool) -> dict[str, Mapping[str, Module]]:
    wanted = (unet, texts, texts)
    names = [name for name, is_wanted in zip(PARTS, wanted, strict=True) if is_wanted]
    return {name: model.lora_host.parts[name] for name in names if name in model.lora_host.parts}


def _layers(part: str, modules: Mapping[str, Module], *, convs: bool, only_attention: bool) -> list[tuple[str, Any]]:
    if part != "unet":
        ends: tuple[str, ...] = TEXT_LAYERS
    elif only_attention:
        ends = tuple(OLD_NAMES)
    else:
        ends = UNET_LAYERS + (CONV_LAYERS if convs else ())
    found = [(name, each) for name, each in modules.items() if name.endswith(ends)]
    return [(name, each) for name, each in found if isinstance(each, Linear | Conv2d)]


def _pair(layer: Any, rank: int, spread: float, chance: torch.Generator) -> Pair:
    if isinstance(layer, Conv2d):
        down = (rank, layer.in_channels, *layer.kernel_size)
        up: tuple[int, ...] = (layer.out_channels, rank, 1, 1)
        fan = layer.in_channels * layer.kernel_size[0] ** 2
    else:
        down, up, fan = (rank, layer.in_features), (layer.out_features, rank), layer.in_features
    return (
        torch.randn(down, generator=chance) / fan**0.5,
        spread * torch.randn(up, generator=chance) / rank**0.5,
    )


def _magnitude(layer: Any, chance: torch.Generator) -> torch.Tensor:
    lengths = torch.linalg.vector_norm(layer.weight.detach().flatten(1), dim=1)
    changed = lengths * (1 + 0.2 * torch.rand(len(lengths), generator=chance))
    return changed.view(1, -1, 1, 1) if isinstance(layer, Conv2d) else changed


def _name_diffusers(_is_xl: bool, part: str, name: str, pair: Pair, _alpha: float | None) -> Tensors:
    return {f"{part}.{name}.lora_A.weight": pair[0], f"{part}.{name}.lora_B.weight": pair[1]}


def _name_old_diffusers(_is_xl: bool, part: str, name: str, pair: Pair, _alpha: float | None) -> Tensors:
    if part != "unet":
        stem = f"{part}.text_model.{name.removeprefix('text_model.')}.lora_linear_layer"
    else:
        end = next(end for end in OLD_NAMES if name.endswith(end))
        stem = f"unet.{name.removesuffix(end)}processor.{OLD_NAMES[end]}"
    return {f"{stem}.down.weight": pair[0], f"{stem}.up.weight": pair[1]}


def _name_kohya(is_xl: bool, part: str, name: str, pair: Pair, alpha: float | None) -> Tensors:
    if part == "unet":
        stem = f"lora_unet_{name}"
    else:
        stem = f"{(KOHYA_XL if is_xl else KOHYA)[part]}_text_model_{name.removeprefix('text_model.')}"
    stem = stem.replace(".", "_")
    return {
        f"{stem}.lora_down.weight": pair[0],
        f"{stem}.lora_up.weight": pair[1],
        f"{stem}.alpha": torch.tensor(float(alpha or pair[0].shape[0])),
    }


def _name_kohya_blocks(is_xl: bool, part: str, name: str, pair: Pair, alpha: float | None) -> Tensors:
    return _name_kohya(is_xl, part, _numbered(name) if part == "unet" else name, pair, alpha)


def _numbered(name: str) -> str:
    """The attention of a block of a tiny UNet (one layer in each going down) by the original's numbers."""
    kind, *rest = name.split(".")
    if kind == "mid_block":
        return ".".join(["middle_block", "1", *rest[2:]])
    block, layer = int(rest[0]), int(rest[2])
    number, side = (2 * block + layer + 1, "input") if kind == "down_blocks" else (2 * block + layer, "output")
    return ".".join([f"{side}_blocks", str(number), "1", *rest[3:]])


NAMERS: Mapping[str, Callable[..., Tensors]] = {
    "diffusers": _name_diffusers,
    "old_diffusers": _name_old_diffusers,
    "kohya": _name_kohya,
    "kohya_blocks": _name_kohya_blocks,
}


def write_vae(folder: Path, *, seed: int, is_tiny: bool = False, scaling_factor: float = 0.18215) -> Path:
    """A VAE of the tiny models' kind, with weights of its own."""
    torch.manual_seed(seed)
    if is_tiny:
        AutoencoderTiny(
            encoder_block_out_channels=(16,) * 4,
            decoder_block_out_channels=(16,) * 4,
            num_encoder_blocks=(1,) * 4,
            num_decoder_blocks=(1,) * 4,
        ).save_pretrained(folder)
        return folder
    AutoencoderKL(
        block_out_channels=(16, 16, 32, 32),
        norm_num_groups=8,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        sample_size=64,
        scaling_factor=scaling_factor,
    ).save_pretrained(folder)
    return folder


def addons_of(
    loras: Mapping[str, Path] | None = None, vaes: Mapping[str, Path] | None = None, *, family: str = "sd"
) -> Addons:
    return Addons(
        loras=tuple(Lora(name, (), name, family, path) for name, path in (loras or {}).items()),
        vaes=tuple(Vae(name, (), name, family, path) for name, path in (vaes or {}).items()),
    )
