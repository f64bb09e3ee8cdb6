"""What a checkpoint in one file is, seen from its header, and the configuration that such a file leaves out."""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.headers import BadModelFiles, Header

CONFIGS_DIR = Path(__file__).parent / "configs"
UNET = "model.diffusion_model."
FIRST_LAYER = UNET + "input_blocks.0.0.weight"
# In Stable Diffusion 1 and 2; in XL the first level has no attention.
PROMPT_WIDTHS = tuple(UNET + f"input_blocks.{block}.1.transformer_blocks.0.attn2.to_k.weight" for block in (1, 3, 4, 7))
SIZE_EMBEDDING = UNET + "label_emb.0.0.weight"
V_PREDICTION_MARK, ZERO_SNR_MARK = "v_pred", "ztsnr"
MODELSPEC_PREDICTION = "modelspec.prediction_type"
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
REFINER_WIDTH = 384
MASK_SEEING, PLAIN = 9, 4
CONVOLUTION = 4  # dimensions of its weights
PLACES = {
    "sd1": {"unet": UNET, "vae": "first_stage_model.", "text_encoder": "cond_stage_model.transformer."},
    "sd2": {"unet": UNET, "vae": "first_stage_model.", "text_encoder": "cond_stage_model.model."},
    "sdxl": {
        "unet": UNET,
        "vae": "first_stage_model.",
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
}
NAMES = {"sd1": "Stable Diffusion 1", "sd2": "Stable Diffusion 2", "sdxl": "Stable Diffusion XL"}
FAMILIES = {"sd1": "sd", "sd2": "sd", "sdxl": "sdxl"}
# A name, or a beginning of names, that only files of this kind have.
OTHERS = (
    (("control_model.", "input_hint_block.", "controlnet_cond_embedding."), "a ControlNet"),
    ((UNET + "joint_blocks.", "joint_blocks."), "a checkpoint of Stable Diffusion 3"),
    ((UNET + "double_blocks.", "double_blocks.", "single_transformer_blocks."), "a checkpoint of Flux"),
    ((UNET + "transformer_blocks.", "transformer_blocks."), "a transformer of a later family"),
    ((UNET + "input_blocks.1.0.time_stack.",), "a checkpoint of Stable Video Diffusion"),
    (("down_blocks.0.motion_modules.",), "a motion module of AnimateDiff"),
    (("down_blocks.", "conv_in.weight"), "the UNet of a folder in diffusers' layout; the whole folder is wanted"),
    (("text_model.", "transformer.resblocks."), "a text encoder alone"),
)


@dataclass(frozen=True)
class Checkpoint:
    """A Stable Diffusion model in its original layout.

    `layout`: sd1, sd2 or sdxl, which decides the configuration. `prediction_type` None: it cannot be seen.
    """

    layout: str
    channels: int
    prediction_type: str | None
    zero_terminal_snr: bool
    precision: str

    @property
    def family(self) -> str:
        return FAMILIES[self.layout]

    @property
    def predicts(self) -> str:
        """What it is taken to predict where nobody says. Of 2 the larger models predict v, those for inpainting not."""
        if self.prediction_type is not None:
            return self.prediction_type
        return "v_prediction" if self.layout == "sd2" and self.channels == PLAIN else "epsilon"

    @property
    def places(self) -> Mapping[str, str]:
        """Where each part's names begin."""
        return PLACES[self.layout]


def read_checkpoint(header: Header, name: str) -> Checkpoint:
    """What this file is; `name` is how it is called in texts. Raises BadModelFiles, saying what else it is or lacks."""
    if FIRST_LAYER not in header.shapes:
        raise BadModelFiles(f"{name} is {_other(header)}, no checkpoint of Stable Diffusion 1, 2 or XL")
    if len(header.shapes[FIRST_LAYER]) != CONVOLUTION:
        raise BadModelFiles(f"{name} has a first layer that is no convolution")
    layout = _layout(header, name)
    missing = [part for part, prefix in PLACES[layout].items() if not header.has(prefix)]
    if missing:
        raise BadModelFiles(f"{name} is a checkpoint of {NAMES[layout]}, but holds no {', no '.join(missing)}")
    marked = PREDICTIONS.get(header.metadata.get(MODELSPEC_PREDICTION, "").casefold())
    if V_PREDICTION_MARK in header.shapes:
        marked = "v_prediction"
    return Checkpoint(
        layout=layout,
        channels=header.shapes[FIRST_LAYER][1],
        prediction_type=marked,
        zero_terminal_snr=ZERO_SNR_MARK in header.shapes,
        precision=header.precision,
    )


def _layout(header: Header, name: str) -> str:
    if SIZE_EMBEDDING in header.shapes:
        if header.shapes[FIRST_LAYER][0] == REFINER_WIDTH:
            raise BadModelFiles(f"{name} is the refiner of Stable Diffusion XL, which only reworks finished pictures")
        return "sdxl"
    # Before the widths: what lacks a text encoder still shows by them what it is.
    for layout in ("sd1", "sd2"):
        if header.has(PLACES[layout]["text_encoder"]):
            return layout
    widths = next((header.shapes[each] for each in PROMPT_WIDTHS if each in header.shapes), ())
    return "sd2" if widths[1:] == (_config_width("sd2"),) else "sd1"


def _config_width(layout: str) -> int:
    return int(_layout_configs(layout)["unet"]["cross_attention_dim"])


def _other(header: Header) -> str:
    return next((what for beginnings, what in OTHERS if header.has(*beginnings)), "something unknown")


# -- configuration --------------------------------------------------------------------------------


def configs_of(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """The configuration of each part (`unet`, …) and `model_index`, as the published models of its kind have it."""
    configs = _layout_configs(checkpoint.layout)
    scheduler = configs["scheduler"] | {"prediction_type": checkpoint.predicts}
    if checkpoint.zero_terminal_snr:
        # Its first step must be the very last of the training. Source: Lin et al. 2023, arXiv 2305.08891.
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    unet = configs["unet"] | {"in_channels": checkpoint.channels}
    return configs | {"unet": unet, "scheduler": scheduler}


def write_configs(checkpoint: Checkpoint, folder: Path) -> None:
    """The same as a folder in diffusers' layout without weights; the tokenizers' vocabulary is CLIP's own."""
    for part, config in configs_of(checkpoint).items():
        if part == "model_index":
            (folder / "model_index.json").write_text(json.dumps(config))
            continue
        (folder / part).mkdir()
        if part.startswith("tokenizer"):
            (folder / part / "tokenizer_config.json").write_text(json.dumps(config))
            (folder / part / "merges.txt").write_text("\n".join(["#version: 0.2", *clip_merges(), ""]))
            (folder / part / "vocab.json").write_text(json.dumps(clip_vocabulary()))
        else:
            name = "scheduler_config.json" if part == "scheduler" else "config.json"
            (folder / part / name).write_text(json.dumps(config))


@functools.cache
def clip_merges() -> tuple[str, ...]:
    """The byte-pair merges of CLIP's tokenizer, in their order. Source and licence: configs/clip_merges.LICENSE."""
    return tuple(gzip.decompress((CONFIGS_DIR / "clip_merges.txt.gz").read_bytes()).decode().splitlines())


def clip_vocabulary() -> dict[str, int]:
    """The tokens in CLIP's order: 256 bytes, the same at a word's end, one for each merge, and the two marks.

    Bytes that are no visible character are written as the first characters beyond Latin-1, as GPT-2 has it.
    """
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [code for code in range(256) if code not in visible]
    letters = [chr(code) for code in visible] + [chr(256 + index) for index in range(len(hidden))]
    merged = ["".join(merge.split(" ")) for merge in clip_merges()]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *merged, "<|startoftext|>", "<|endoftext|>"]
    return {word: index for index, word in enumerate(words)}


@functools.cache
def _layout_configs(layout: str) -> dict[str, dict[str, Any]]:
    configs: dict[str, dict[str, Any]] = json.loads((CONFIGS_DIR / f"{layout}.json").read_text())
    return configs
