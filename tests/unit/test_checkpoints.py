"""Checkpoints in one file: what they are, seen from their header, and the configuration that they leave out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.single_file import original_layout
from tests.tiny_models import clip_tokenizer
from worker.checkpoints import CONFIGS_DIR, Checkpoint, clip_merges, configs_of, read_checkpoint
from worker.headers import BadModelFiles, Header

CLASSES = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}
# Weights of the published models.
PUBLISHED = {
    ("sd1", 4): {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    ("sd1", 9): {"unet": 859_535_364, "vae": 83_653_863, "text_encoder": 123_060_480},
    ("sd2", 4): {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    ("sdxl", 4): {
        **{"unet": 2_567_463_684, "vae": 83_653_863},
        **{"text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
    },
}
PLAIN = Checkpoint("sd1", 4, None, zero_terminal_snr=False, precision="float32")


def header_of(names: Mapping[str, tuple[int, ...]], **metadata: str) -> Header:
    return Header(names, frozenset({"F16"}), metadata)


def parts_of(layout: str, channels: int) -> dict[str, Any]:
    """Its parts in their true size, without numbers in them."""
    configs = configs_of(Checkpoint(layout, channels, None, zero_terminal_snr=False, precision="float16"))
    parts = {}
    with init_empty_weights():
        for name, kind in CLASSES.items():
            if name in configs:
                is_text = name.startswith("text")
                parts[name] = kind(CLIPTextConfig(**configs[name])) if is_text else kind.from_config(configs[name])
    return parts


@pytest.fixture(scope="module", params=PUBLISHED, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def published(request: pytest.FixtureRequest) -> tuple[str, int, dict[str, Any]]:
    layout, channels = request.param
    return layout, channels, parts_of(layout, channels)


def test_the_configurations_are_those_of_the_published_models(published: tuple[str, int, dict[str, Any]]) -> None:
    layout, channels, parts = published
    counted = {name: sum(weights.numel() for weights in part.parameters()) for name, part in parts.items()}
    assert counted == PUBLISHED[layout, channels]


def test_a_checkpoint_is_known_by_its_header(published: tuple[str, int, dict[str, Any]]) -> None:
    layout, channels, parts = published
    weights = original_layout({name: part.state_dict() for name, part in parts.items()}, layout=layout)
    shapes = {name: tuple(each.shape) for name, each in weights.items()}
    found = read_checkpoint(header_of(shapes), "it")
    assert (found.layout, found.channels, found.family) == (layout, channels, "sdxl" if layout == "sdxl" else "sd")
    assert found.prediction_type is None
    for part, prefix in found.places.items():
        left = {name: shape for name, shape in shapes.items() if not name.startswith(prefix)}
        told = "no checkpoint of" if part == "unet" else f"but holds no {part}"
        with pytest.raises(BadModelFiles, match=told):
            read_checkpoint(header_of(left), "it")


TINY = {
    "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
    "first_stage_model.x": (1,),
    "cond_stage_model.model.x": (1,),
}


def test_what_a_checkpoint_predicts_is_seen_by_its_marks_or_taken_from_its_kind() -> None:
    assert read_checkpoint(header_of(TINY), "it").predicts == "v_prediction"
    nine = TINY | {"model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3)}
    assert read_checkpoint(header_of(nine), "it").predicts == "epsilon"
    assert read_checkpoint(header_of(TINY, **{"modelspec.prediction_type": "epsilon"}), "it").predicts == "epsilon"
    marked = read_checkpoint(header_of(nine | {"v_pred": (), "ztsnr": ()}), "it")
    assert marked.prediction_type == "v_prediction"
    scheduler = configs_of(marked)["scheduler"]
    assert (scheduler["rescale_betas_zero_snr"], scheduler["timestep_spacing"]) == (True, "trailing")
    assert PLAIN.predicts == "epsilon"
    assert "rescale_betas_zero_snr" not in configs_of(PLAIN)["scheduler"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "a checkpoint of Flux"),
        ("model.diffusion_model.joint_blocks.0.x", "Stable Diffusion 3"),
        ("control_model.input_blocks.0.0.weight", "a ControlNet"),
        ("down_blocks.0.resnets.0.conv1.weight", "folder in diffusers' layout"),
        ("text_model.embeddings.position_embedding.weight", "a text encoder alone"),
        ("whatever", "something unknown"),
    ],
)
def test_a_file_of_another_kind_is_named(name: str, told: str) -> None:
    with pytest.raises(BadModelFiles, match=rf"it is .*{told}.*no checkpoint of Stable Diffusion 1, 2 or XL"):
        read_checkpoint(header_of({name: (1,)}), "it")


def test_the_refiner_of_xl_is_named() -> None:
    names = {
        "model.diffusion_model.input_blocks.0.0.weight": (384, 4, 3, 3),
        "model.diffusion_model.label_emb.0.0.weight": (1, 1),
    }
    with pytest.raises(BadModelFiles, match="it is the refiner"):
        read_checkpoint(header_of(names), "it")


def test_the_vocabulary_is_clips() -> None:
    tokenizer = clip_tokenizer()
    assert len(tokenizer) == 49408
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer.decode(tokenizer("ein Gemälde 猫 🐈").input_ids[1:-1]) == "ein gemälde 猫 🐈"
    assert len(clip_merges()) == 48894
    assert "MIT License" in (CONFIGS_DIR / "clip_merges.LICENSE").read_text()
