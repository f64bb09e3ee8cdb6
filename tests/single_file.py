"""Writes a tiny diffusers model as one checkpoint in Stable Diffusion's original layout."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

# Of one tiny UNet: two levels, one layer each, attention in the second. Diffusers' place -> the original's.
UNET_PLACES = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET_PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION_PARTS = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
VAE_LEVELS = 4
MATRIX_DIMENSIONS = 2


def write_single_file(folder: Path, target: Path) -> Path:
    """The weights of `folder` (a model of tests/tiny_models.py) as one .safetensors file."""
    unet = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    text = load_file(folder / "text_encoder" / "model.safetensors")
    checkpoint = {f"model.diffusion_model.{_unet_name(name)}": weights for name, weights in unet.items()}
    checkpoint |= {f"first_stage_model.{_vae_name(name)}": _vae_weights(name, w) for name, w in vae.items()}
    checkpoint |= {f"cond_stage_model.transformer.{_text_name(name)}": w for name, w in text.items()}
    save_file({name: weights.contiguous() for name, weights in checkpoint.items()}, target)
    return target


def _unet_name(name: str) -> str:
    place = max((place for place in UNET_PLACES if name.startswith(f"{place}.")), key=len)
    rest = name.removeprefix(f"{place}.")
    if ".resnets." in f".{place}":
        part, kind = rest.rsplit(".", 1)
        rest = f"{RESNET_PARTS[part]}.{kind}"
    return f"{UNET_PLACES[place]}.{rest}"


def _vae_name(name: str) -> str:
    def level(match: re.Match[str]) -> str:
        side, index, rest = match.groups()
        number = int(index) if side == "down" else VAE_LEVELS - 1 - int(index)
        rest = rest.replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")
        return f"{side}.{number}.{rest.replace('resnets.', 'block.')}"

    name = re.sub(r"(down|up)_blocks\.(\d)\.(.*)", level, name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
    if "mid_block.attentions.0." in name:
        before, rest = name.split("mid_block.attentions.0.")
        part, kind = rest.rsplit(".", 1)
        name = f"{before}mid.attn_1.{VAE_ATTENTION_PARTS[part]}.{kind}"
    return name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")


def _vae_weights(name: str, weights: torch.Tensor) -> torch.Tensor:
    """The original's attention is a convolution of one pixel, diffusers' a matrix."""
    is_matrix = ".attentions." in name and name.endswith("weight") and weights.ndim == MATRIX_DIMENSIONS
    return weights[:, :, None, None] if is_matrix else weights


def _text_name(name: str) -> str:
    return name if name.startswith("text_model.") else f"text_model.{name}"
