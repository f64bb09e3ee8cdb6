"""Writes a diffusers model as one checkpoint in Stable Diffusion's original layout."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

UNET_PLACES = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
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
OPEN_CLIP_PARTS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
OPEN_CLIP_PLACES = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
VAE_LEVELS = 4
MATRIX_DIMENSIONS = 2
Weights = Mapping[str, torch.Tensor]


def write_single_file(
    folder: Path, target: Path, *, layout: str = "sd1", dtype: torch.dtype | None = None, marks: Weights | None = None
) -> Path:
    """The weights of `folder` as one .safetensors file; `marks` are written beside them."""
    parts = {
        "unet": load_file(folder / "unet" / "diffusion_pytorch_model.safetensors"),
        "vae": load_file(folder / "vae" / "diffusion_pytorch_model.safetensors"),
        "text_encoder": load_file(folder / "text_encoder" / "model.safetensors"),
    }
    if layout == "sdxl":
        parts["text_encoder_2"] = load_file(folder / "text_encoder_2" / "model.safetensors")
    checkpoint = original_layout(parts, layout=layout)
    weights = {name: each.contiguous().to(dtype or each.dtype) for name, each in checkpoint.items()}
    save_file(weights | dict(marks or {}), target)
    return target


def original_layout(parts: Mapping[str, Weights], *, layout: str) -> dict[str, torch.Tensor]:
    """The weights of the parts (diffusers' folders) under the names of the original checkpoints."""
    text = {_text_name(name): weights for name, weights in parts["text_encoder"].items()}
    checkpoint = {f"model.diffusion_model.{name}": each for name, each in _unet(parts["unet"]).items()}
    checkpoint |= {f"first_stage_model.{_vae_name(name)}": _vae_weights(name, w) for name, w in parts["vae"].items()}
    if layout == "sd1":
        return checkpoint | {f"cond_stage_model.transformer.{name}": each for name, each in text.items()}
    if layout == "sd2":
        return checkpoint | {f"cond_stage_model.model.{name}": each for name, each in _open_clip(text).items()}
    checkpoint |= {f"conditioner.embedders.0.transformer.{name}": each for name, each in text.items()}
    second = _open_clip(parts["text_encoder_2"])
    return checkpoint | {f"conditioner.embedders.1.model.{name}": each for name, each in second.items()}


def _unet(weights: Weights) -> dict[str, torch.Tensor]:
    layers = 1 + max(int(name.split(".")[3]) for name in weights if name.startswith("down_blocks.0.resnets."))
    with_attention = {name.split(".")[1] for name in weights if re.match(r"up_blocks\.\d\.attentions", name)}

    def place(match: re.Match[str]) -> str:
        side, level, kind, index = match[1], int(match[2]), match[3], int(match[4])
        if side == "down":
            block = 1 + level * (layers + 1) + (layers if kind == "downsamplers" else index)
            return f"input_blocks.{block}." + {"resnets": "0", "attentions": "1", "downsamplers": "0.op"}[kind]
        block = level * (layers + 1) + (layers if kind == "upsamplers" else index)
        above = 2 if match[2] in with_attention else 1
        return f"output_blocks.{block}." + {"resnets": "0", "attentions": "1", "upsamplers": f"{above}.conv"}[kind]

    renamed = {}
    for name, each in weights.items():
        found = re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)(?:\.conv(?=\.))?", name)
        if found:
            start, rest = place(found), name[found.end() + 1 :]
        else:
            known = next(known for known in UNET_PLACES if name.startswith(f"{known}."))
            start, rest = UNET_PLACES[known], name.removeprefix(f"{known}.")
        if ".resnets." in name:
            part, kind = rest.rsplit(".", 1)
            rest = f"{RESNET_PARTS[part]}.{kind}"
        renamed[f"{start}.{rest}"] = each
    return renamed


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


def _open_clip(weights: Weights) -> dict[str, torch.Tensor]:
    """As OpenCLIP has it: queries, keys and values in one matrix, the projection the other way round."""
    plain = {name.removeprefix("text_model."): each for name, each in weights.items()}
    renamed = {place: plain[name] for name, place in OPEN_CLIP_PLACES.items()}
    if "text_projection.weight" in plain:
        renamed["text_projection"] = plain["text_projection.weight"].T
    for name, each in plain.items():
        found = re.match(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)$", name)
        if found and found[2] in OPEN_CLIP_PARTS:
            renamed[f"transformer.resblocks.{found[1]}.{OPEN_CLIP_PARTS[found[2]]}.{found[3]}"] = each
        elif found and found[2] == "self_attn.q_proj":
            three = [plain[name.replace("q_proj", which)] for which in ("q_proj", "k_proj", "v_proj")]
            renamed[f"transformer.resblocks.{found[1]}.attn.in_proj_{found[3]}"] = torch.cat(three)
    return renamed
