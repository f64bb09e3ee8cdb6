"""A model's files to a model in memory: checked first, safetensors only, never a network."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from storage.model_catalog import ModelEntry, SingleFile
from worker.model_files import BadModelFiles, ModelFiles, find_files
from worker.prompts import PromptEncoder
from worker.schedulers import inpainting_config

log = structlog.get_logger(__name__)

MASK_SEEING_CHANNELS = 9
PLAIN_CHANNELS = 4
VAE_CLASSES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model in memory. The engine's thread alone calls its parts."""

    id: str
    unet: Any
    vae: Any
    prompts: PromptEncoder
    scheduler_config: Mapping[str, Any]
    device: torch.device
    dtype: torch.dtype

    @property
    def sees_mask(self) -> bool:
        """Made for inpainting: its UNet takes mask and masked picture beside the latents."""
        return bool(self.unet.config.in_channels == MASK_SEEING_CHANNELS)

    @property
    def draws_latents(self) -> bool:
        """Its VAE encodes to a distribution, not to one value."""
        return isinstance(self.vae, AutoencoderKL)

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.latent_channels)

    @property
    def latent_factor(self) -> int:
        """Pixels per latent, along one side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))


def load_model(
    entry: ModelEntry, *, device: torch.device, dtype: torch.dtype, prompt_cache_entries: int
) -> LoadedModel:
    """Load a Stable Diffusion model from local files. Raises BadModelFiles; everything else is a fault."""
    quieten_libraries()
    started = time.monotonic()
    files = find_files(entry.source)
    if isinstance(entry.source, SingleFile):
        parts = _load_single_file(entry.source, files, dtype)
    else:
        parts = _load_folder(files, dtype)
    _check_family(parts)
    for name in ("unet", "vae", "text_encoder"):
        parts[name].to(device).eval().requires_grad_(False)
    log.info(
        "model_loaded",
        model=entry.id,
        seconds=round(time.monotonic() - started, 2),
        device=str(device),
        dtype=str(dtype),
        file_bytes=files.size_bytes,
    )
    prompts = PromptEncoder(parts["tokenizer"], parts["text_encoder"], cache_entries=prompt_cache_entries)
    config = inpainting_config(parts["scheduler_config"])
    return LoadedModel(entry.id, parts["unet"], parts["vae"], prompts, config, device, dtype)


def quieten_libraries() -> None:
    """Their progress bars and advice go nowhere: what matters of it is checked and logged here."""
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def _load_folder(files: ModelFiles, dtype: torch.dtype) -> dict[str, Any]:
    root = files.root
    vae_class = VAE_CLASSES.get(str(_read_json(root / "vae" / "config.json").get("_class_name")))
    if vae_class is None:
        raise BadModelFiles(f"its VAE is none of {', '.join(VAE_CLASSES)}")
    return {
        "unet": _load_part(UNet2DConditionModel, files, "unet", dtype=dtype),
        "vae": _load_part(vae_class, files, "vae", dtype=dtype),
        "text_encoder": _load_part(CLIPTextModel, files, "text_encoder", dtype=dtype),
        "tokenizer": CLIPTokenizer.from_pretrained(root / "tokenizer", local_files_only=True),
        "scheduler_config": _read_json(root / "scheduler" / "scheduler_config.json"),
    }


def _load_part(part_class: Any, files: ModelFiles, name: str, **dtype: torch.dtype) -> Any:
    """Both libraries fill missing weights with random numbers and only warn: here that is an error."""
    try:
        part, report = part_class.from_pretrained(
            files.root / name,
            variant=files.variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **dtype,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise BadModelFiles(f"{name} does not fit its configuration") from error
    for problem in ("missing_keys", "mismatched_keys", "error_msgs"):
        if report.get(problem):
            raise BadModelFiles(f"{name} does not fit its configuration: {len(report[problem])} {problem}")
    return part


def _load_single_file(source: SingleFile, files: ModelFiles, dtype: torch.dtype) -> dict[str, Any]:
    # Imported only here, after quieten_libraries: it prints advice about image processors we do not use.
    from diffusers import StableDiffusionInpaintPipeline  # noqa: PLC0415

    try:
        pipeline = StableDiffusionInpaintPipeline.from_single_file(
            str(source.path),
            config=str(files.root),
            local_files_only=True,
            dtype=dtype,
            safety_checker=None,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise BadModelFiles(f"{source.path.name} does not fit its configuration") from error
    for name in ("unet", "vae", "text_encoder"):
        if any(weight.is_meta for weight in getattr(pipeline, name).parameters()):
            raise BadModelFiles(f"{source.path.name} lacks weights of {name}")
    return {
        "unet": pipeline.unet,
        "vae": pipeline.vae,
        "text_encoder": pipeline.text_encoder,
        "tokenizer": pipeline.tokenizer,
        "scheduler_config": dict(pipeline.scheduler.config),
    }


def _check_family(parts: Mapping[str, Any]) -> None:
    """The engine's loop is that of Stable Diffusion 1 and 2; what it would have to add is refused here."""
    config = parts["unet"].config
    if config.in_channels not in (MASK_SEEING_CHANNELS, PLAIN_CHANNELS):
        raise BadModelFiles(f"its UNet has {config.in_channels} input channels; 9 and 4 are supported")
    if config.addition_embed_type or config.encoder_hid_dim or config.time_cond_proj_dim:
        raise BadModelFiles("its UNet wants more than a prompt: not a Stable Diffusion 1 or 2 model")
    if parts["vae"].config.latent_channels != PLAIN_CHANNELS:
        raise BadModelFiles(f"its VAE has {parts['vae'].config.latent_channels} latent channels; 4 are supported")
    if config.cross_attention_dim != parts["text_encoder"].config.hidden_size:
        raise BadModelFiles("its UNet and its text encoder do not belong together")


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content
