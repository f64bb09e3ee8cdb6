"""A VAE that a job brings in place of its model's: from a folder in diffusers' layout, checked as a model is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from worker.loading import PLAIN_CHANNELS, VAE_CLASSES, quieten_libraries, vae_dtype
from worker.model_files import HALF_PRECISION, PICKLES, SAFETENSORS, WHY_NO_PICKLES

WEIGHTS_NAME = "diffusion_pytorch_model"


class BadVae(Exception):
    """A VAE cannot be used. The text is short, and names no path."""


@dataclass(frozen=True, eq=False)
class LoadedVae:
    vae: Any

    @property
    def size_bytes(self) -> int:
        return sum(weight.element_size() * weight.nelement() for weight in self.vae.parameters())

    @property
    def latent_factor(self) -> int:
        """Pixels per latent, along one side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))


def load_vae(folder: Path, *, device: torch.device, dtype: torch.dtype) -> LoadedVae:
    """Raises BadVae. In the type that it needs, see loading.vae_dtype."""
    quieten_libraries()
    config = _read_config(folder)
    vae_class = VAE_CLASSES.get(str(config.get("_class_name")))
    if vae_class is None:
        raise BadVae(f"it is none of {', '.join(VAE_CLASSES)}")
    if config.get("latent_channels", PLAIN_CHANNELS) != PLAIN_CHANNELS:
        raise BadVae(f"it has {config['latent_channels']} latent channels; {PLAIN_CHANNELS} are supported")
    if config.get("latents_mean") is not None or config.get("latents_std") is not None:
        raise BadVae("it moves its latents by a mean of its own, which is not supported")
    try:
        vae, report = vae_class.from_pretrained(
            folder,
            variant=_variant(folder),
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            torch_dtype=dtype,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise BadVae("its weights do not fit its configuration") from error
    if any(report.get(problem) for problem in ("missing_keys", "mismatched_keys", "error_msgs")):
        raise BadVae("its weights do not fit its configuration")
    if not all(torch.isfinite(weight).all() for weight in vae.parameters()):
        raise BadVae("its weights are no numbers")
    vae.to(device, vae_dtype(vae, dtype)).eval().requires_grad_(False)
    if device.type == "cpu":
        for weight in vae.parameters():
            # Off the file that it may be mapped from: that may be overwritten while this is in use.
            weight.data = weight.data.clone()
    if device.type == "cuda":
        vae.to(memory_format=torch.channels_last)
    return LoadedVae(vae)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise BadVae("its config.json is not there or not JSON") from error
    if not isinstance(config, dict):
        raise BadVae("its config.json is not there or not JSON")
    return config


def _variant(folder: Path) -> str | None:
    """diffusers' word for the file that is there, once it is seen to be whole."""
    for variant in (None, HALF_PRECISION):
        path = folder / f"{WEIGHTS_NAME}{f'.{variant}' if variant else ''}{SAFETENSORS}"
        if path.is_file():
            try:
                with safe_open(path, framework="pt") as file:
                    file.keys()
            except (SafetensorError, OSError) as error:
                raise BadVae(f"{path.name} is no whole safetensors file") from error
            return variant
    if any(path.suffix in PICKLES for path in folder.iterdir()):
        raise BadVae(f"it is there as a pickle only: {WHY_NO_PICKLES}")
    raise BadVae(f"there is no {WEIGHTS_NAME}{SAFETENSORS} in its folder")
