"""Tiny random Stable Diffusion models in diffusers' layout: what the engine's tests paint with."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLInpaintPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from storage.model_catalog import Folder, Hub, ModelCatalog, ModelEntry, SingleFile
from worker.checkpoints import clip_merges, clip_vocabulary
from worker.loading import quieten_libraries

WORDS = ("a", "red", "blue", "cat", "dog", "circle", "on", "the", "white", "background")
TEXT_WIDTH = 32
WIDE_TEXT_WIDTH = 48
TIME_WIDTH = 8
MAX_TOKENS = 77
START, END = "<|startoftext|>", "<|endoftext|>"
# Random weights hardly heed prompt and mask; with these a mix-up of samples is plainly visible.
PROMPT_GAIN = 30.0
MASK_GAIN = 6.0
WORD_END = "</w>"


def make_tiny_model(
    folder: Path,
    *,
    family: str = "sd",
    channels: int = 9,
    prediction_type: str = "epsilon",
    weight_seed: int = 1,
    like_2: bool = False,
    own_words: bool = True,
    two_widths: bool = False,
    **pipeline_config: bool,
) -> Path:
    """Write a model whose UNet has 9 or 4 input channels (5 MB), unless it is there; returns its folder.

    `like_2`: built as Stable Diffusion 2 is. Not `own_words`: with the vocabulary of CLIP. `two_widths`: XL's second
    text encoder is wider than its first, as in the published ones (diffusers tells the two in a checkpoint by it).
    """
    words = [f"{family}{channels}", prediction_type, str(weight_seed), *map(str, pipeline_config.values())]
    words += ["like-2"] * like_2 + ["clip"] * (not own_words) + ["two-widths"] * two_widths
    model = folder / "-".join(words)
    if model.is_dir():
        return model
    quieten_libraries()
    tokenizer = make_tokenizer(folder / "words") if own_words else clip_tokenizer()
    torch.manual_seed(weight_seed)
    make_xl = functools.partial(_stable_diffusion_xl, second_width=WIDE_TEXT_WIDTH if two_widths else TEXT_WIDTH)
    make = {"sd": _stable_diffusion_2 if like_2 else _stable_diffusion, "sdxl": make_xl}[family]
    make(tokenizer, channels, _scheduler(prediction_type), pipeline_config).save_pretrained(model)
    config = model / "scheduler" / "scheduler_config.json"
    # As published models have it, whatever scheduler is theirs.
    config.write_text(json.dumps({**json.loads(config.read_text()), "skip_prk_steps": True}))
    return model


def _scheduler(prediction_type: str) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def _stable_diffusion(
    tokenizer: CLIPTokenizer, channels: int, scheduler: DDIMScheduler, config: Mapping[str, bool]
) -> StableDiffusionInpaintPipeline:
    return StableDiffusionInpaintPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config(tokenizer)),
        tokenizer=tokenizer,
        unet=_unet(channels),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **config,
    )


def _stable_diffusion_2(
    tokenizer: CLIPTokenizer, channels: int, scheduler: DDIMScheduler, config: Mapping[str, bool]
) -> StableDiffusionInpaintPipeline:
    """With linear projections, a number of heads for each level, and its text encoder's activation."""
    pipeline = _stable_diffusion(tokenizer, channels, scheduler, config)
    pipeline.register_modules(
        unet=_unet(channels, use_linear_projection=True, attention_head_dim=(4, 8)),
        text_encoder=CLIPTextModel(_text_config(tokenizer, hidden_act="gelu")),
    )
    return pipeline


def _stable_diffusion_xl(
    tokenizer: CLIPTokenizer,
    channels: int,
    scheduler: DDIMScheduler,
    config: Mapping[str, bool],
    *,
    second_width: int,
) -> StableDiffusionXLInpaintPipeline:
    return StableDiffusionXLInpaintPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config(tokenizer)),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer, width=second_width, hidden_act="gelu")),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=_unet(
            channels,
            cross_attention_dim=TEXT_WIDTH + second_width,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=TIME_WIDTH,
            projection_class_embeddings_input_dim=6 * TIME_WIDTH + second_width,
            transformer_layers_per_block=(1, 2),
        ),
        scheduler=scheduler,
        **config,
    )


def tiny_entry(model_id: str, source: Folder | SingleFile | Hub | Path, *, family: str = "sd") -> ModelEntry:
    return ModelEntry(
        id=model_id,
        aliases=(),
        name=model_id,
        description="",
        family=family,
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


def make_tokenizer(folder: Path) -> CLIPTokenizer:
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


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's own, from the vocabulary that ships with the worker."""
    merges = [tuple(merge.split(" ")) for merge in clip_merges()]
    return CLIPTokenizer(vocab=clip_vocabulary(), merges=merges, model_max_length=MAX_TOKENS)


def _text_config(tokenizer: CLIPTokenizer, *, width: int = TEXT_WIDTH, **changes: Any) -> CLIPTextConfig:
    size = len(tokenizer)
    return CLIPTextConfig(
        vocab_size=size,
        hidden_size=width,
        projection_dim=width,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
        **changes,
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


def _unet(channels: int, **changes: Any) -> UNet2DConditionModel:
    config = {"cross_attention_dim": TEXT_WIDTH, "attention_head_dim": 4, **changes}
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        norm_num_groups=8,
        layers_per_block=1,
        sample_size=8,
        in_channels=channels,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **config,
    )
    with torch.no_grad():
        for name, weights in unet.named_parameters():
            if "attn2.to_out" in name:
                weights.mul_(PROMPT_GAIN)
        unet.conv_in.weight[:, 4:] *= MASK_GAIN
    return unet
