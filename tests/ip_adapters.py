"""Tiny IP-adapters with random weights, plain and plus, and the image encoder they belong to."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from storage.addons import IpAdapter

IMAGE_SIZE = 32
VISION_WIDTH = 32
EMBED_WIDTH = 24
TOKENS = 4
# Random weights hardly heed what they are shown; with this they plainly do.
GAIN = 40.0


def make_image_encoder(folder: Path, *, embed_width: int = EMBED_WIDTH) -> Path:
    torch.manual_seed(5)
    config = CLIPVisionConfig(
        hidden_size=VISION_WIDTH,
        projection_dim=embed_width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=8,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def adapter_tensors(*, plus: bool, token_width: int, inner_widths: list[int], seed: int = 6) -> dict[str, torch.Tensor]:
    """As their trainers name them."""
    torch.manual_seed(seed)
    state = _resampler(token_width) if plus else _projection(token_width)
    tensors = {f"image_proj.{name}": each for name, each in state.items()}
    for index, width in enumerate(inner_widths):
        for kind in ("k", "v"):
            name = f"ip_adapter.{2 * index + 1}.to_{kind}_ip.weight"
            tensors[name] = GAIN**0.5 * torch.randn(width, token_width) / token_width**0.5
    return tensors


def _projection(token_width: int) -> dict[str, torch.Tensor]:
    return {
        "proj.weight": torch.randn(TOKENS * token_width, EMBED_WIDTH),
        "proj.bias": torch.randn(TOKENS * token_width),
        "norm.weight": torch.ones(token_width),
        "norm.bias": torch.zeros(token_width),
    }


def _resampler(token_width: int) -> dict[str, torch.Tensor]:
    """In the words of the published files; diffusers has others."""
    module = IPAdapterPlusImageProjection(
        VISION_WIDTH, token_width, hidden_dims=16, depth=4, heads=1, num_queries=TOKENS
    )
    state = {}
    for name, each in module.state_dict().items():
        renamed = name
        for ours, theirs in (
            ("ln0", "0.norm1"),
            ("ln1", "0.norm2"),
            ("attn.to_out.0", "0.to_out"),
            ("attn", "0"),
            ("ff.0", "1.0"),
            ("ff.1.net.0.proj", "1.1"),
            ("ff.1.net.2", "1.3"),
        ):
            renamed = renamed.replace(f".{ours}.", f".{theirs}.")
        state[renamed] = each.clone()
    for layer in range(4):
        key, value = (state.pop(f"layers.{layer}.0.to_{kind}.weight") for kind in "kv")
        state[f"layers.{layer}.0.to_kv.weight"] = torch.cat([key, value])
    return state


def write_adapter(path: Path, encoder: Path, tensors: dict[str, torch.Tensor], *, family: str = "sd") -> IpAdapter:
    save_file({name: each.contiguous() for name, each in tensors.items()}, path)
    return IpAdapter(path.stem, (), path.stem, family, path, encoder)
