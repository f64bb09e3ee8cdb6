"""A training's result as a model: diffusers' layout, half precision, with the list of the words it knows."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline

from worker.builtin.train.captions import KNOWN_WORDS
from worker.builtin.train.parts import Painter
from worker.builtin.train.recipe import SCHEDULER
from worker.builtin.train.words import save_tokenizer
from worker.known_words import WORDS_FILE


def make_pipeline(painter: Painter, autoencoder: Any) -> Any:
    """With the parts themselves, in the precision they have."""
    scheduler = DDIMScheduler(
        **SCHEDULER, clip_sample=False, set_alpha_to_one=True, steps_offset=1, timestep_spacing="trailing"
    )
    pipeline = StableDiffusionInpaintPipeline(
        vae=autoencoder,
        text_encoder=painter.text_encoder,
        tokenizer=painter.tokenizer,
        unet=painter.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def export_model(folder: Path, painter: Painter, autoencoder: Any) -> None:
    """Write the model; what is trained on is left as it is."""
    halves = [
        copy.deepcopy(part).to("cpu", torch.float16, memory_format=torch.contiguous_format)
        for part in (painter.unet, painter.text_encoder, autoencoder)
    ]
    unet, text_encoder, tiny = halves
    for part in (unet, tiny):
        # Where it was once read from is nobody's business.
        part.register_to_config(_name_or_path="")
    pipeline = make_pipeline(Painter(unet, text_encoder, painter.tokenizer), tiny)
    pipeline.save_pretrained(folder, safe_serialization=True)
    save_tokenizer(folder / "tokenizer", painter.tokenizer)
    (folder / WORDS_FILE).write_text(json.dumps(list(KNOWN_WORDS)) + "\n")
