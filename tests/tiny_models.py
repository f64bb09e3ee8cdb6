"""Tiny random Stable Diffusion models in diffusers' layout: what the engine's tests paint with."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from storage.model_catalog import Folder, Hub, ModelCatalog, ModelEntry, SingleFile
from worker.loading import quieten_libraries

WORDS = ("a", "red", "blue", "cat", "dog", "circle", "on", "the", "white", "background")
TEXT_WIDTH = 32
MAX_TOKENS = 77
START, END = "<|startoftext|>", "<|endoftext|>"
# Random weights hardly heed prompt and mask; with these a mix-up of samples is plainly visible.
PROMPT_GAIN = 30.0
MASK_GAIN = 6.0
WORD_END = "</w>"


def make_tiny_model(folder: Path, *, channels: int = 9, prediction_type: str = "epsilon", weight_seed: int = 1) -> Path:
    """Write a model whose UNet has 9 or 4 input channels (5 MB), unless it is there; returns its folder."""
    model = folder / f"sd{channels}-{prediction_type}-{weight_seed}"
    if model.is_dir():
        return model
    quieten_libraries()
    tokenizer = _tokenizer(folder / "words")
    torch.manual_seed(weight_seed)
    pipeline = StableDiffusionInpaintPipeline(
        vae=_vae(),
        text_encoder=_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=_unet(channels),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=prediction_type,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(model)
    return model


def tiny_entry(model_id: str, source: Folder | SingleFile | Hub | Path) -> ModelEntry:
    return ModelEntry(
        id=model_id,
        aliases=(),
        name=model_id,
        description="",
        family="sd",
        source=Folder(source) if isinstance(source, Path) else source,
        native_size=64,
        min_size=64,
        max_size=256,
        num_inference_steps=4,
        guidance_scale=4.0,
        scheduler="DDIMScheduler",
        prompt_suffix="",
        negative_prompt="",
    )


def catalog_of(*entries: ModelEntry) -> ModelCatalog:
    return ModelCatalog(entries=entries, default=entries[0])


def _tokenizer(folder: Path) -> CLIPTokenizer:
    """Single characters and a few whole words, in CLIP's byte-pair form."""
    characters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    vocabulary = characters + [character + WORD_END for character in characters]
    merges: list[str] = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + WORD_END]
        while len(pieces) > 1:
            merge = f"{pieces[0]} {pieces[1]}"
            if merge not in merges:
                merges.append(merge)
                vocabulary.append(pieces[0] + pieces[1])
            pieces[:2] = [pieces[0] + pieces[1]]
    vocabulary += [START, END]
    folder.mkdir(parents=True, exist_ok=True)
    ids = {token: index for index, token in enumerate(vocabulary)}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return CLIPTokenizer(
        vocab=str(folder / "vocab.json"),
        merges=str(folder / "merges.txt"),
        model_max_length=MAX_TOKENS,
        unk_token=END,
        pad_token=END,
    )


def _text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    size = len(tokenizer)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=size,
            hidden_size=TEXT_WIDTH,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=size - 2,
            eos_token_id=size - 1,
            pad_token_id=size - 1,
        )
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 16, 32, 32),
        norm_num_groups=8,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        sample_size=64,
    )


def _unet(channels: int) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        norm_num_groups=8,
        layers_per_block=1,
        sample_size=8,
        in_channels=channels,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        cross_attention_dim=TEXT_WIDTH,
    )
    with torch.no_grad():
        for name, weights in unet.named_parameters():
            if "attn2.to_out" in name:
                weights.mul_(PROMPT_GAIN)
        unet.conv_in.weight[:, 4:] *= MASK_GAIN
    return unet
