"""Tiny random safety checkers in diffusers' layout, that find something always, never, or in one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import CLIPConfig

from worker.loading import quieten_libraries

SIDE = 32
ALWAYS, NEVER = -2.0, 2.0
# The cosine between a picture's embedding and itself is 1, less what half precision takes.
LOOKS_THE_SAME = 0.998


def make_tiny_checker(
    folder: Path, *, threshold: float = NEVER, like: NDArray[np.uint8] | None = None, processor: bool = True
) -> Path:
    """Write a checker (100 kB). `like`: it finds something in this picture (square, RGB) and no other."""
    quieten_libraries()
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker  # noqa: PLC0415

    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPConfig(
        projection_dim=16,
        vision_config={**vision, "image_size": SIDE, "patch_size": 8},
        text_config={**vision, "vocab_size": 8},
    )
    torch.manual_seed(5)
    checker = StableDiffusionSafetyChecker(config)
    with torch.no_grad():
        # As random weights come, all pictures look the same to it.
        checker.vision_model.embeddings.patch_embedding.weight.mul_(50)
        for layer in checker.vision_model.encoder.layers:
            layer.self_attn.v_proj.weight.mul_(50)
            layer.self_attn.out_proj.weight.mul_(50)
        checker.concept_embeds_weights.fill_(threshold)
        checker.special_care_embeds_weights.fill_(NEVER)
        if like is not None:
            pixels = tiny_processor()(images=[like], return_tensors="pt").pixel_values
            seen = checker.visual_projection(checker.vision_model(pixels)[1])
            checker.concept_embeds[0] = seen[0]
            checker.concept_embeds_weights.fill_(NEVER)[0] = LOOKS_THE_SAME
    checker.save_pretrained(folder)
    if processor:
        tiny_processor().save_pretrained(folder)
    return folder


def tiny_processor() -> Any:
    from transformers import CLIPImageProcessor  # noqa: PLC0415

    return CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
