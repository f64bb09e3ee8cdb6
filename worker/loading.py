"""A model's files to a model in memory: checked first, safetensors only, never a network."""

from __future__ import annotations

import functools
import json
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from numpy.typing import NDArray
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from storage.model_catalog import Folder, Hub, ModelEntry, NoWeights, SingleFile
from worker.checkpoints import NAMES, write_configs
from worker.encodings import PictureEncodings
from worker.graphs import GraphedUNet
from worker.ip_adapters import Looker
from worker.looking import cross_attentions
from worker.loras import NO_LORAS, LoraHost, LoraSet
from worker.model_files import PARTS, WEIGHT_PARTS, BadModelFiles, ModelFiles, find_files
from worker.prompts import PromptEncoder, TextTower
from worker.schedulers import Schedulers, inpainting_config

log = structlog.get_logger(__name__)

MASK_SEEING_CHANNELS = 9
PLAIN_CHANNELS = 4
NUM_TIME_IDS = 6
VAE_CLASSES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
# Held while a library builds something: it changes the default type and more for all threads, and puts back what it
# found. Two at once would leave the whole process with what the other had set.
LOADING = threading.Lock()


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model in memory. The engine's thread alone calls its parts."""

    id: str
    unet: Any
    vae: Any
    prompts: PromptEncoder
    encodings: PictureEncodings
    schedulers: Schedulers
    device: torch.device
    dtype: torch.dtype
    native_size: int = 512
    """Pixels along a side: the size for which CUDA graphs are made."""
    lora_host: LoraHost = field(default_factory=LoraHost)
    loras: LoraSet = NO_LORAS
    """Those with which its parts are to be called: see `put_on_loras`."""
    vae_id: str = ""
    """Of a VAE that is not its own."""
    looker: Looker | None = None
    """What looks at a job's picture for it."""
    plain: LoadedModel | None = None
    """The model as it was loaded, where this is the same with a job's LoRAs, VAE and IP-adapter."""

    @property
    def sees_mask(self) -> bool:
        """Made for inpainting: its UNet takes mask and masked picture beside the latents."""
        return bool(self.unet.config.in_channels == MASK_SEEING_CHANNELS)

    @property
    def draws_latents(self) -> bool:
        """Its VAE encodes to a distribution, not to one value."""
        return isinstance(self.vae, AutoencoderKL)

    def put_on_loras(self) -> None:
        """To be called before the UNet or a text encoder is: they are those of all jobs on this model."""
        self.lora_host.put_on(self.loras)
        self.prompts.worn = self.loras.text_uses

    @property
    def wears_its_loras(self) -> bool:
        return self.lora_host.worn == self.loras.uses

    @functools.cached_property
    def latent_colours(self) -> NDArray[np.float32]:
        """See previews.learn_colours."""
        if self.plain is not None and self.plain.vae is self.vae:
            return self.plain.latent_colours
        from worker.previews import learn_colours  # noqa: PLC0415  # it is about this class

        return learn_colours(self)

    @property
    def plain_unet(self) -> Any:
        """The UNet itself, without graphs."""
        return self.unet.unet if isinstance(self.unet, GraphedUNet) else self.unet

    @functools.cached_property
    def cross_attentions(self) -> tuple[Any, ...]:
        """See looking.cross_attentions."""
        if self.plain is not None:
            return self.plain.cross_attentions
        return cross_attentions(self.plain_unet)

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.latent_channels)

    @property
    def latent_factor(self) -> int:
        """Pixels per latent, along one side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))


def load_model(
    entry: ModelEntry,
    *,
    device: torch.device,
    dtype: torch.dtype,
    prompt_cache_entries: int,
    picture_cache_bytes: int = 0,
) -> LoadedModel:
    """Load a Stable Diffusion model from local files. Raises BadModelFiles; everything else is a fault."""
    quieten_libraries()
    started = time.monotonic()
    if isinstance(entry.source, NoWeights):
        raise BadModelFiles("it has no weights")
    files = find_files(entry.source)
    if files.family != entry.family:
        raise BadModelFiles(f"its files are of family {files.family}, the models file says {entry.family}")
    parts = _load_parts(entry, entry.source, files, dtype)
    for name in WEIGHT_PARTS[files.family]:
        parts[name].to(device).eval().requires_grad_(False)
    parts["vae"].to(vae_dtype(parts["vae"], dtype))
    lora_host = LoraHost({name: parts[name] for name in WEIGHT_PARTS[files.family] if name != "vae"})
    unet = parts["unet"]
    if device.type == "cuda":
        for name in ("unet", "vae"):
            parts[name].to(memory_format=torch.channels_last)
        unet = GraphedUNet(unet, is_adapted=lambda: lora_host.adapts)
    log.info(
        "model_loaded",
        model=entry.id,
        seconds=round(time.monotonic() - started, 2),
        device=str(device),
        dtype=str(dtype),
        file_bytes=files.size_bytes,
    )
    return LoadedModel(
        id=entry.id,
        unet=unet,
        vae=parts["vae"],
        prompts=_prompt_encoder(parts, files, prompt_cache_entries),
        encodings=PictureEncodings(picture_cache_bytes),
        schedulers=Schedulers(inpainting_config(parts["scheduler_config"], corrects_offset=files.family == "sd")),
        device=device,
        dtype=dtype,
        native_size=entry.native_size,
        lora_host=lora_host,
    )


def _load_parts(
    entry: ModelEntry, source: Folder | Hub | SingleFile, files: ModelFiles, dtype: torch.dtype
) -> dict[str, Any]:
    """As the files have them, but for what the models file knows better. Raises BadModelFiles."""
    if isinstance(source, SingleFile):
        parts = _load_single_file(source, files, dtype)
    else:
        parts = _load_folder(files.root or source.path, files, dtype)
    if entry.prediction_type is not None:
        parts["scheduler_config"] = {**parts["scheduler_config"], "prediction_type": entry.prediction_type}
    _check_family(parts, files.family)
    return parts


def _prompt_encoder(parts: Mapping[str, Any], files: ModelFiles, cache_entries: int) -> PromptEncoder:
    towers = [TextTower(parts["tokenizer"], parts["text_encoder"])]
    if files.family == "sd":
        return PromptEncoder(towers, cache_entries=cache_entries)
    towers.append(TextTower(parts["tokenizer_2"], parts["text_encoder_2"]))
    # The default is the stock pipeline's.
    zeros = bool(files.index.get("force_zeros_for_empty_prompt", True))
    return PromptEncoder(towers, cache_entries=cache_entries, zeros_for_empty=zeros)


def vae_dtype(vae: Any, dtype: torch.dtype) -> torch.dtype:
    """The VAE of Stable Diffusion XL says of itself that it overflows in float16; in bfloat16 it does not."""
    overflows = dtype is torch.float16 and getattr(vae.config, "force_upcast", False)
    return torch.bfloat16 if overflows and isinstance(vae, AutoencoderKL) else dtype


def quieten_libraries() -> None:
    """Their progress bars and advice go nowhere: what matters of it is checked and logged here."""
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def _load_folder(root: Path, files: ModelFiles, dtype: torch.dtype) -> dict[str, Any]:
    vae_class = VAE_CLASSES.get(str(_read_json(root / "vae" / "config.json").get("_class_name")))
    if vae_class is None:
        raise BadModelFiles(f"its VAE is none of {', '.join(VAE_CLASSES)}")
    parts = {
        "unet": _load_part(UNet2DConditionModel, root / "unet", files.variant, dtype=dtype),
        "vae": _load_part(vae_class, root / "vae", files.variant, dtype=dtype),
        "text_encoder": _load_part(CLIPTextModel, root / "text_encoder", files.variant, dtype=dtype),
        "tokenizer": CLIPTokenizer.from_pretrained(root / "tokenizer", local_files_only=True),
        "scheduler_config": _read_json(root / "scheduler" / "scheduler_config.json"),
    }
    if files.family == "sdxl":
        parts |= {
            "text_encoder_2": _load_part(
                CLIPTextModelWithProjection, root / "text_encoder_2", files.variant, dtype=dtype
            ),
            "tokenizer_2": CLIPTokenizer.from_pretrained(root / "tokenizer_2", local_files_only=True),
        }
    return parts


def _load_part(part_class: Any, folder: Path, variant: str | None, **dtype: torch.dtype) -> Any:
    """Both libraries fill missing weights with random numbers and only warn: here that is an error."""
    try:
        part, report = part_class.from_pretrained(
            folder,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **dtype,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise BadModelFiles(f"{folder.name} does not fit its configuration") from error
    for problem in ("missing_keys", "mismatched_keys", "error_msgs"):
        if report.get(problem):
            raise BadModelFiles(f"{folder.name} does not fit its configuration: {len(report[problem])} {problem}")
    return part


def _load_single_file(source: SingleFile, files: ModelFiles, dtype: torch.dtype) -> dict[str, Any]:
    """With the configuration that its owner gives, or else with that of its kind."""
    if source.config is not None or files.checkpoint is None:
        return _load_checkpoint(source.path, str(source.config), files.family, dtype)
    with tempfile.TemporaryDirectory(prefix="inpaintd-config-") as folder:
        write_configs(files.checkpoint, Path(folder))
        try:
            return _load_checkpoint(source.path, folder, files.family, dtype)
        except BadModelFiles as error:
            kind = NAMES[files.checkpoint.layout]
            raise BadModelFiles(f"{error}, which is that of {kind}; another can be given with config") from error


def _load_checkpoint(path: Path, config: str, family: str, dtype: torch.dtype) -> dict[str, Any]:
    # Imported only here, after quieten_libraries: it prints advice about image processors we do not use.
    from diffusers import StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline  # noqa: PLC0415
    from diffusers.loaders.single_file_utils import SingleFileComponentError  # noqa: PLC0415

    options: dict[str, Any] = {"safety_checker": None} if family == "sd" else {"add_watermarker": False}
    pipeline_class = StableDiffusionInpaintPipeline if family == "sd" else StableDiffusionXLInpaintPipeline
    try:
        pipeline = pipeline_class.from_single_file(
            str(path), config=config, local_files_only=True, dtype=dtype, **options
        )
    except (OSError, ValueError, RuntimeError, KeyError, SingleFileComponentError) as error:
        raise BadModelFiles(f"{path.name} does not fit its configuration") from error
    parts = {name: getattr(pipeline, name) for name in PARTS[family] if name != "scheduler"}
    for name in WEIGHT_PARTS[family]:
        if any(weight.is_meta for weight in parts[name].parameters()):
            raise BadModelFiles(f"{path.name} lacks weights of {name}")
    return parts | {"scheduler_config": dict(pipeline.scheduler.config)}


def _check_family(parts: Mapping[str, Any], family: str) -> None:
    """The engine's loop is that of Stable Diffusion 1, 2 and XL; what it would have to add is refused here."""
    config = parts["unet"].config
    if config.in_channels not in (MASK_SEEING_CHANNELS, PLAIN_CHANNELS):
        raise BadModelFiles(f"its UNet has {config.in_channels} input channels; 9 and 4 are supported")
    told = {"sd": None, "sdxl": "text_time"}[family]
    if config.addition_embed_type != told or config.encoder_hid_dim or config.time_cond_proj_dim:
        raise BadModelFiles("its UNet wants to be told other things than one of its family")
    vae = parts["vae"].config
    if vae.latent_channels != PLAIN_CHANNELS:
        raise BadModelFiles(f"its VAE has {vae.latent_channels} latent channels; 4 are supported")
    if getattr(vae, "latents_mean", None) is not None or getattr(vae, "latents_std", None) is not None:
        raise BadModelFiles("its VAE moves its latents by a mean of its own, which is not supported")
    widths = [parts[name].config.hidden_size for name in ("text_encoder", "text_encoder_2") if name in parts]
    if config.cross_attention_dim != sum(widths):
        raise BadModelFiles("its UNet and its text encoders do not belong together")
    if family == "sdxl":
        _check_size_embedding(parts)


def _check_size_embedding(parts: Mapping[str, Any]) -> None:
    """Six numbers about the size; refiners want an aesthetic score among them."""
    config = parts["unet"].config
    expected = NUM_TIME_IDS * config.addition_time_embed_dim + parts["text_encoder_2"].config.projection_dim
    if config.projection_class_embeddings_input_dim != expected:
        raise BadModelFiles("its UNet wants to be told other things than one of its family")


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content
