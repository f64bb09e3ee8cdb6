"""The files of a model, looked at before any is opened: complete, and safetensors only. No torch here."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from storage.model_catalog import Folder, Hub, NoWeights, SingleFile, Source

WEIGHT_PARTS = {
    "sd": ("unet", "vae", "text_encoder"),
    "sdxl": ("unet", "vae", "text_encoder", "text_encoder_2"),
}
PARTS = {
    "sd": (*WEIGHT_PARTS["sd"], "tokenizer", "scheduler"),
    "sdxl": (*WEIGHT_PARTS["sdxl"], "tokenizer", "tokenizer_2", "scheduler"),
}
CONFIG_NAMES = dict.fromkeys(WEIGHT_PARTS["sdxl"], "config.json") | {
    "tokenizer": "tokenizer_config.json",
    "tokenizer_2": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
}
XL_CLASSES = "StableDiffusionXL"
SAFETENSORS = ".safetensors"
PICKLES = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle"})
WHY_NO_PICKLES = "reading a pickle can run any program; only safetensors are loaded"
HALF_PRECISION = "fp16"
# Where the parts of a single-file Stable Diffusion checkpoint begin; source: its original layout.
CHECKPOINT_PREFIXES = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.",),
    "text_encoder": ("cond_stage_model.",),
}
HEADER_LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the format's own limit


class BadModelFiles(Exception):
    """The files of a model cannot be used. The text names files by their place in the model, no paths."""


@dataclass(frozen=True)
class ModelFiles:
    """What will be loaded. `variant` is diffusers' word for files such as `model.fp16.safetensors`."""

    root: Path
    weights: tuple[Path, ...]
    variant: str | None = None
    family: str = "sd"

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.weights)


def find_files(source: Source) -> ModelFiles:
    """The files of a model. Raises BadModelFiles when one is missing, is a pickle or is no safetensors file."""
    if isinstance(source, NoWeights):
        raise BadModelFiles("it has no weights")
    files = _find_single(source) if isinstance(source, SingleFile) else _find_folder(source)
    for path in files.weights:
        _read_header(path)
    return files


def count_weights(files: ModelFiles) -> int:
    """How many numbers the weights are, from the files' headers."""
    return sum(
        math.prod(tensor["shape"])
        for path in files.weights
        for name, tensor in _read_header(path).items()
        if name != "__metadata__"
    )


def _find_single(source: SingleFile) -> ModelFiles:
    if source.path.suffix in PICKLES:
        raise BadModelFiles(f"{source.path.name} is a pickle: {WHY_NO_PICKLES}")
    if not source.path.is_file():
        raise BadModelFiles(f"{source.path.name} is not there")
    if source.path.suffix != SAFETENSORS:
        raise BadModelFiles(f"{source.path.name} is not a {SAFETENSORS} file")
    if not (source.config / "model_index.json").is_file():
        raise BadModelFiles("its config folder has no model_index.json")
    if _family_of(source.config) != "sd":
        raise BadModelFiles("its config folder is not that of a Stable Diffusion 1 or 2 model")
    _check_configs(source.config, "sd")
    names = _read_header(source.path)
    for part, prefixes in CHECKPOINT_PREFIXES.items():
        if not any(name.startswith(prefixes) for name in names):
            raise BadModelFiles(f"{source.path.name} holds no {part}")
    return ModelFiles(root=source.config, weights=(source.path,))


def _find_folder(source: Folder | Hub) -> ModelFiles:
    root = source.path
    if not (root / "model_index.json").is_file():
        if isinstance(source, Hub):
            raise BadModelFiles("it has not been pulled; the operator can, with `inpaintd models pull`")
        raise BadModelFiles("there is no model_index.json where the models file says it lies")
    family = _family_of(root)
    _check_configs(root, family)
    found = {part: _weights_of(root / part) for part in WEIGHT_PARTS[family]}
    plain = all(_without_variant(paths) for paths in found.values())
    variant = None if plain else HALF_PRECISION
    chosen: list[Path] = []
    for part, paths in found.items():
        usable = _without_variant(paths) if plain else _of_variant(paths)
        if not usable:
            raise BadModelFiles(f"{part} lacks weights in the same precision as the other parts")
        chosen += usable
    return ModelFiles(root=root, weights=tuple(chosen), variant=variant, family=family)


def _family_of(root: Path) -> str:
    """By the name of the pipeline that the model was saved from."""
    try:
        index = json.loads((root / "model_index.json").read_text())
        return "sdxl" if str(index["_class_name"]).startswith(XL_CLASSES) else "sd"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadModelFiles("model_index.json does not say what it is") from error


def _check_configs(root: Path, family: str) -> None:
    for part in PARTS[family]:
        name = CONFIG_NAMES[part]
        try:
            json.loads((root / part / name).read_text())
        except (OSError, ValueError) as error:
            raise BadModelFiles(f"{part}/{name} is not there or not JSON") from error


def _weights_of(folder: Path) -> list[Path]:
    present = sorted(path for path in folder.iterdir() if path.is_file())
    weights = [path for path in present if path.suffix == SAFETENSORS]
    pickles = [path for path in present if path.suffix in PICKLES]
    if not weights and pickles:
        raise BadModelFiles(f"{folder.name} is there as a pickle only ({pickles[0].name}): {WHY_NO_PICKLES}")
    if not weights:
        raise BadModelFiles(f"{folder.name} has no {SAFETENSORS} file")
    return weights


def _of_variant(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if f".{HALF_PRECISION}" in path.name]


def _without_variant(paths: Iterable[Path]) -> list[Path]:
    """Files without a word between name and suffix (`model.safetensors`); parts of one are plain too."""
    return [path for path in paths if "." not in path.name.removesuffix(SAFETENSORS)]


def _read_header(path: Path) -> dict[str, dict[str, list[int]]]:
    """The tensors' names, types and shapes. Source: the safetensors format (length, then JSON)."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(HEADER_LENGTH_BYTES), "little")
            if length > MAX_HEADER_BYTES:
                raise BadModelFiles(f"{path.name} is no safetensors file")
            header: dict[str, dict[str, list[int]]] = json.loads(file.read(length))
    except (OSError, ValueError) as error:
        raise BadModelFiles(f"{path.name} is no safetensors file") from error
    data_bytes = max((entry["data_offsets"][1] for entry in header.values() if "data_offsets" in entry), default=0)
    if path.stat().st_size < HEADER_LENGTH_BYTES + length + data_bytes:
        raise BadModelFiles(f"{path.name} is cut short")
    return header
