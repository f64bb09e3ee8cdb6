"""A file or folder that somebody brings: what it is and for which family, seen without reading any weight."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from storage.model_catalog import Folder, SingleFile
from worker.checkpoints import FIRST_LAYER, NAMES, read_checkpoint
from worker.headers import SAFETENSORS, BadModelFiles, Header, read_header
from worker.model_files import find_files

FAMILY_NAMES = {"sd": "Stable Diffusion 1 or 2", "sdxl": "Stable Diffusion XL"}
# What the UNet's attention to the prompt takes in, which differs between the three.
KIND_OF_WIDTH = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
FAMILY_OF_KIND = {"sd1": "sd", "sd2": "sd", "sdxl": "sdxl"}
VAE_CLASSES = ("AutoencoderKL", "AutoencoderTiny")
FAMILY_OF_SCALE = {0.18215: "sd", 0.13025: "sdxl"}
LORA_WORDS = ("lora_down", "lora_up", "lora_A", "lora_B", "lora.down", "lora.up", "lora_linear_layer")
OTHER_METHODS = {
    "hada_w1": "LoHa",
    "lokr_w": "LoKr",
    "oft_blocks": "OFT",
    "dora_scale": "DoRA",
}
# Words in the names of LoRAs for models that are not read here.
OTHER_FAMILIES = {
    "joint_blocks": "Stable Diffusion 3",
    "double_blocks": "Flux",
    "single_blocks": "Flux",
    "single_transformer_blocks": "Flux",
    "prior_unet": "Stable Cascade",
    "diffusion_model.blocks": "a video model",
    "motion_modules": "AnimateDiff",
    "transformer.": "a transformer of a later family (Stable Diffusion 3, Flux and others)",
    "transformer_blocks_0_": "a transformer of a later family (Stable Diffusion 3, Flux and others)",
}
# Other kinds see a picture as a face recogniser does, or through more layers.
IP_ADAPTER_KINDS = {"image_proj.proj.weight": "plain", "image_proj.latents": "plus"}
MATRIX = 2
BYTES_PER_PIXEL_SIDE = 8
UNSEEN = ", for a family that cannot be seen in it"


@dataclass(frozen=True)
class Found:
    """`section`: that of the models file; `family` None: it cannot be seen. `path`: what the entry is to name."""

    section: str
    path: Path
    family: str | None
    says: str
    values: dict[str, Any] = field(default_factory=dict)
    """What else the entry should say."""


def of_family(found: Found, family: str) -> Found:
    """The same where its owner says which family a file is for, if that cannot be seen in it."""
    if UNSEEN not in found.says:
        return found
    return replace(found, family=family, says=found.says.replace(UNSEEN, f" for {FAMILY_NAMES.get(family, family)}"))


def recognise(path: Path) -> Found:
    """What lies here. Raises BadModelFiles, saying what else it is and why it is not read."""
    if path.is_dir():
        return _recognise_folder(path)
    header = read_header(path)
    if FIRST_LAYER in header.shapes:
        return _checkpoint(path, header)
    for recognise_one in (_lora, _ip_adapter, _vae_file, _embedding):
        found = recognise_one(path, header)
        if found is not None:
            return found
    read_checkpoint(header, path.name)  # says what else it is
    raise AssertionError("a file without a first layer is no checkpoint")


# -- models ---------------------------------------------------------------------------------------


def _checkpoint(path: Path, header: Header) -> Found:
    checkpoint = read_checkpoint(header, path.name)
    native = {"sd1": 512, "sd2": 768 if checkpoint.predicts == "v_prediction" else 512, "sdxl": 1024}[checkpoint.layout]
    says = f"a checkpoint of {NAMES[checkpoint.layout]} in {checkpoint.precision}, its UNet with {checkpoint.channels} "
    says += f"channels, predicting {checkpoint.predicts}"
    values = _sizes(native)
    if checkpoint.prediction_type is None and checkpoint.layout == "sd2":
        says += " (which cannot be seen in the file: where pictures come out as noise, change prediction_type)"
        values["prediction_type"] = checkpoint.predicts
    find_files(SingleFile(path))
    return Found("models", path, checkpoint.family, says, values)


def _recognise_folder(path: Path) -> Found:
    if (path / "model_index.json").is_file():
        files = find_files(Folder(path))
        unet = _read_json(path / "unet" / "config.json")
        says = f"a folder of {FAMILY_NAMES[files.family]}, its UNet with {unet.get('in_channels')} channels, "
        says += (
            f"predicting {_read_json(path / 'scheduler' / 'scheduler_config.json').get('prediction_type', 'epsilon')}"
        )
        sample_size = unet.get("sample_size")
        sizes = _sizes(sample_size * BYTES_PER_PIXEL_SIDE) if isinstance(sample_size, int) else {}
        return Found("models", path, files.family, says, sizes)
    config = _read_json(path / "config.json")
    kinds = [str(config.get("_class_name")), *map(str, config.get("architectures") or ())]
    if "StableDiffusionSafetyChecker" in kinds:
        _expect_weights(path)
        return Found("safety_checker", path, None, "a safety checker")
    if not config.keys().isdisjoint(("_class_name",)) and kinds[0] in VAE_CLASSES:
        return _vae_folder(path, config)
    if any(kind.startswith("CLIPVision") for kind in kinds):
        raise BadModelFiles(f"{path.name} is an image encoder: name it with --image-encoder beside its IP-adapter")
    raise BadModelFiles(f"{path.name} is a folder without a model_index.json, and no VAE or safety checker")


def _sizes(native: int) -> dict[str, Any]:
    return {"native_size": native, "min_size": native // 16 * 8, "max_size": native * 3 // 16 * 8}


def _vae_folder(path: Path, config: dict[str, Any]) -> Found:
    _expect_weights(path)
    family = FAMILY_OF_SCALE.get(config.get("scaling_factor", 0))
    return Found("vaes", path, family, f"a VAE ({config['_class_name']}){_for(family)}")


def _expect_weights(folder: Path) -> None:
    weights = sorted(folder.glob(f"*{SAFETENSORS}"))
    if not weights:
        raise BadModelFiles(f"{folder.name} has no {SAFETENSORS} file")
    for path in weights:
        read_header(path)


# -- add-ons in one file --------------------------------------------------------------------------


def _lora(path: Path, header: Header) -> Found | None:
    names = header.shapes
    method = next((method for word, method in OTHER_METHODS.items() if any(word in name for name in names)), None)
    if method is None and not any(word in name for name in names for word in LORA_WORDS):
        return None
    kind = _kind_of_lora(header)
    if method is not None:
        whose = NAMES[kind] if kind else _other_family(names) or "a family that cannot be seen"
        raise BadModelFiles(f"{path.name} is a {method} for {whose}; of these only plain LoRAs are read")
    if kind is None and (other := _other_family(names)):
        raise BadModelFiles(f"{path.name} is a LoRA for {other}, which is not painted with here")
    family = FAMILY_OF_KIND[kind] if kind else ("sdxl" if _has_second_encoder(names) else None)
    whose = f" for {NAMES[kind]}" if kind else _for(family)
    return Found("loras", path, family, f"a LoRA{whose}, in {_format_of_lora(path, names)} format")


def _kind_of_lora(header: Header) -> str | None:
    """By the width of what its layers are told about the prompt."""
    for name, shape in header.shapes.items():
        spelled = name.replace("_", ".")
        told = "attn2.to.k" in spelled or "attn2.to.v" in spelled or "attn2.processor.to.k" in spelled
        if told and any(word in spelled for word in ("lora.down", "lora.A")) and len(shape) >= MATRIX:
            return KIND_OF_WIDTH.get(shape[1])
    return None


def _other_family(names: Iterable[str]) -> str | None:
    named = list(names)
    if any(name.startswith(("unet.", "lora_unet_down_", "lora_unet_mid_", "lora_unet_up_")) for name in named):
        return None
    return next((family for word, family in OTHER_FAMILIES.items() if any(word in name for name in named)), None)


def _has_second_encoder(names: Iterable[str]) -> bool:
    return any(name.startswith(("lora_te2_", "text_encoder_2.")) for name in names)


def _format_of_lora(path: Path, names: Iterable[str]) -> str:
    named = list(names)
    if any(name.startswith("base_model.model.") for name in named):
        raise BadModelFiles(
            f"{path.name} is a LoRA as PEFT alone writes it, which does not say for which part it is: "
            "save it with diffusers' save_lora_weights"
        )
    return "kohya's" if any(name.startswith(("lora_unet_", "lora_te")) for name in named) else "diffusers'"


def _ip_adapter(path: Path, header: Header) -> Found | None:
    if not (header.has("image_proj.") and header.has("ip_adapter.")):
        return None
    sort = next((sort for name, sort in IP_ADAPTER_KINDS.items() if name in header.shapes), None)
    if sort is None:
        raise BadModelFiles(f"{path.name} is an IP-adapter of another kind than plain and plus, which alone are read")
    shape = next((shape for name, shape in header.shapes.items() if name.endswith(".to_k_ip.weight")), ())
    kind = KIND_OF_WIDTH.get(shape[-1]) if shape else None
    family = FAMILY_OF_KIND[kind] if kind else None
    says = f"an IP-adapter ({sort}){f' for {NAMES[kind]}' if kind else _for(None)}"
    encoder = path.parent / "image_encoder"
    return Found("ip_adapters", path, family, says, {"image_encoder": encoder} if encoder.is_dir() else {})


def _vae_file(path: Path, header: Header) -> Found | None:
    if header.has("first_stage_model.", "encoder.down.0.", "encoder.layers."):
        raise BadModelFiles(
            f"{path.name} is a VAE in its original layout; wanted is a folder in diffusers' layout, with a config.json"
        )
    if not header.has("encoder.down_blocks."):
        return None
    if not (path.parent / "config.json").is_file():
        raise BadModelFiles(f"{path.name} is a VAE, but there is no config.json beside it")
    return _vae_folder(path.parent, _read_json(path.parent / "config.json"))


def _embedding(path: Path, header: Header) -> Found | None:
    """Source: the two formats of the trainers; XL's has a vector for each of its text encoders."""
    names = header.shapes.keys()
    if names == {"clip_l", "clip_g"}:
        return Found("embeddings", path, "sdxl", f"a textual inversion for {NAMES['sdxl']}")
    if len(names) != 1:
        return None
    [(name, shape)] = header.shapes.items()
    # A layer of a model has a place in it: names with dots.
    if "." in name or len(shape) not in (1, MATRIX):
        return None
    kind = KIND_OF_WIDTH.get(shape[-1])
    if kind == "sdxl":
        kind = None
    whose = f" for {NAMES[kind]}" if kind else _for(None)
    return Found("embeddings", path, FAMILY_OF_KIND[kind] if kind else None, f"a textual inversion{whose}")


def _for(family: str | None) -> str:
    return f" for {FAMILY_NAMES[family]}" if family else UNSEEN


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
