"""Models of the true sizes of Stable Diffusion 1.5 and XL for inpainting, with random weights.

Speed does not depend on the weights, as long as no number runs away: see `check_activations`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.tiny_models import make_tokenizer
from worker.encodings import PictureEncodings
from worker.graphs import GraphedUNet
from worker.loading import LoadedModel, quieten_libraries
from worker.lora_files import PARTS
from worker.loras import LoraHost
from worker.prompts import PromptEncoder, TextTower
from worker.schedulers import Schedulers, inpainting_config

STD_LOW, STD_HIGH = 0.1, 10.0

# Source: the configurations published with the models.
UNETS: Mapping[str, Mapping[str, Any]] = {
    "sd": {
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
    },
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "cross_attention_dim": 2048,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
TEXT_WIDE = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}


class BadActivations(Exception):
    """The random weights make numbers that a real model would not: a time measured with them means nothing."""


@dataclass(frozen=True)
class RandomModel:
    """The same parts for the engine and, without graphs, for the stock pipeline."""

    loaded: LoadedModel
    pipeline: Any


def make_random_model(
    family: str, folder: Path, *, device: torch.device, dtype: torch.dtype, small: bool = False
) -> RandomModel:
    """`small`: a fraction of the size, to see on a CPU that it runs."""
    quieten_libraries()
    torch.manual_seed(0)
    tokenizer = make_tokenizer(folder)
    # The XL VAE would run in another type than its UNet; here one type does, since weights are random.
    vae_dtype = torch.bfloat16 if family == "sdxl" and dtype is torch.float16 else dtype
    unet = UNet2DConditionModel(in_channels=9, out_channels=4, **_shrunk(UNETS[family], small))
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 32, 32) if small else (128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=0.18215 if family == "sd" else 0.13025,
    )
    texts: list[Any] = [CLIPTextModel(_text_config(TEXT, tokenizer))]
    if family == "sdxl":
        texts.append(CLIPTextModelWithProjection(_text_config(TEXT_WIDE, tokenizer, projection_dim=1280)))
    for part in (unet, *texts):
        part.to(device, dtype).eval().requires_grad_(False)
    vae.to(device, vae_dtype).eval().requires_grad_(False)
    _tame(unet, vae)
    for part in (unet, vae):
        part.to(memory_format=torch.channels_last)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    config = inpainting_config(dict(scheduler.config), corrects_offset=family == "sd")
    lora_host = LoraHost(dict(zip(PARTS, (unet, *texts), strict=False)))
    loaded = LoadedModel(
        id=family,
        unet=GraphedUNet(unet, is_adapted=lambda: lora_host.adapts) if device.type == "cuda" else unet,
        vae=vae,
        prompts=PromptEncoder([TextTower(tokenizer, each) for each in texts], cache_entries=256),
        encodings=PictureEncodings(2**26),
        schedulers=Schedulers(config),
        device=device,
        dtype=dtype,
        native_size=512 if family == "sd" else 1024,
        lora_host=lora_host,
    )
    parts = {"unet": unet, "vae": vae, "texts": texts, "tokenizer": tokenizer, "scheduler": scheduler}
    return RandomModel(loaded, _pipeline(family, **parts))


def check_activations(name: str, values: torch.Tensor) -> None:
    """Raises BadActivations unless all are finite, with a spread as in a real model."""
    spread = float(values.float().std())
    if not (bool(torch.isfinite(values).all()) and STD_LOW < spread < STD_HIGH):
        raise BadActivations(f"{name}: standard deviation {spread:.3g}, wanted {STD_LOW} to {STD_HIGH}")


@torch.inference_mode()
def _tame(unet: Any, vae: Any) -> None:
    """Scale the last layers so that noise goes in and something of the size of noise comes out."""
    device, dtype = unet.device, unet.dtype
    rows, side = 1, 16
    added = None
    if unet.config.addition_embed_type:
        pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        added = {
            "text_embeds": torch.randn(rows, pooled, device=device, dtype=dtype),
            "time_ids": torch.full((rows, 6), float(8 * side), device=device, dtype=dtype),
        }
    noise = unet(
        torch.randn(rows, 9, side, side, device=device, dtype=dtype),
        torch.full((rows,), 500.0, device=device),
        encoder_hidden_states=torch.randn(rows, 77, unet.config.cross_attention_dim, device=device, dtype=dtype),
        added_cond_kwargs=added,
        return_dict=False,
    )[0]
    unet.conv_out.weight.div_(noise.float().std())
    pixels = vae.decode(torch.randn(rows, 4, side, side, device=device, dtype=vae.dtype), return_dict=False)[0]
    vae.decoder.conv_out.weight.div_(2 * pixels.float().std())


def _shrunk(config: Mapping[str, Any], small: bool) -> dict[str, Any]:
    if not small:
        return dict(config)
    narrow = {"block_out_channels": tuple(width // 10 for width in config["block_out_channels"]), "norm_num_groups": 8}
    heads = {"attention_head_dim": 4, "transformer_layers_per_block": 1}
    return {**config, **narrow, **heads}


def _text_config(config: Mapping[str, int], tokenizer: Any, **changes: int) -> CLIPTextConfig:
    size = len(tokenizer)
    special = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
    return CLIPTextConfig(vocab_size=size, max_position_embeddings=77, **special, **config, **changes)


def _pipeline(family: str, *, unet: Any, vae: Any, texts: list[Any], tokenizer: Any, scheduler: Any) -> Any:
    if family == "sd":
        return diffusers.StableDiffusionInpaintPipeline(
            vae=vae,
            text_encoder=texts[0],
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    return diffusers.StableDiffusionXLInpaintPipeline(
        vae=vae,
        text_encoder=texts[0],
        text_encoder_2=texts[1],
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=scheduler,
    )
