"""The files of a model, looked at before any is opened: complete, and safetensors only. No torch here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.model_catalog import Folder, Hub, NoWeights, SingleFile, Source
from worker.checkpoints import NAMES, Checkpoint, configs_of, read_checkpoint
from worker.headers import PICKLES, SAFETENSORS, WHY_NO_PICKLES, BadModelFiles, read_header

__all__ = ["PICKLES", "SAFETENSORS", "WHY_NO_PICKLES", "BadModelFiles", "ModelFiles", "count_weights", "find_files"]

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
HALF_PRECISION = "fp16"


@dataclass(frozen=True)
class ModelFiles:
    """What will be loaded. `variant` is diffusers' word for files such as `model.fp16.safetensors`.

    `root` is the folder with the configuration: None for a single file without one, which `checkpoint` describes.
    """

    root: Path | None
    weights: tuple[Path, ...]
    variant: str | None = None
    family: str = "sd"
    checkpoint: Checkpoint | None = None

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.weights)

    @property
    def index(self) -> Mapping[str, Any]:
        """The content of model_index.json."""
        if self.root is not None:
            return _read_index(self.root)
        return configs_of(self.checkpoint)["model_index"] if self.checkpoint else {}


def find_files(source: Source) -> ModelFiles:
    """The files of a model. Raises BadModelFiles when one is missing, is a pickle or is no safetensors file."""
    if isinstance(source, NoWeights):
        raise BadModelFiles("it has no weights")
    if isinstance(source, SingleFile):
        return _find_single(source)
    files = _find_folder(source)
    for path in files.weights:
        read_header(path)
    return files


def find_part(folder: Path) -> str | None:
    """diffusers' word for the files of a part that stands alone in its folder, None for the plain ones.

    Raises BadModelFiles as find_files does.
    """
    return None if _without_variant(_part_weights(folder)) else HALF_PRECISION


def count_part(folder: Path) -> int:
    """How many numbers the weights of such a part are. Raises BadModelFiles."""
    return sum(read_header(path).count() for path in _part_weights(folder))


def _part_weights(folder: Path) -> list[Path]:
    """Those that are loaded."""
    if not (folder / "config.json").is_file():
        raise BadModelFiles(f"{folder.name} has no config.json")
    weights = _weights_of(folder)
    usable = _without_variant(weights) or _of_variant(weights)
    if not usable:
        raise BadModelFiles(f"{folder.name} has no weights under a name that is known")
    for path in usable:
        read_header(path)
    return usable


def count_weights(files: ModelFiles) -> int:
    """How many numbers the weights are, from the files' headers; of a single file those that are loaded."""
    loaded = tuple(files.checkpoint.places.values()) if files.checkpoint else ()
    return sum(read_header(path).count(*loaded) for path in files.weights)


def _find_single(source: SingleFile) -> ModelFiles:
    header = read_header(source.path)
    checkpoint = read_checkpoint(header, source.path.name)
    if source.config is not None:
        _check_config_folder(source.config, checkpoint, source.path.name)
    return ModelFiles(root=source.config, weights=(source.path,), family=checkpoint.family, checkpoint=checkpoint)


def _check_config_folder(folder: Path, checkpoint: Checkpoint, name: str) -> None:
    if not (folder / "model_index.json").is_file():
        raise BadModelFiles("its config folder has no model_index.json")
    family = _family_of(folder)
    if family != checkpoint.family:
        raise BadModelFiles(
            f"its config folder is that of a model of family {family}, {name} is {NAMES[checkpoint.layout]}"
        )
    _check_configs(folder, family)
    channels = json.loads((folder / "unet" / CONFIG_NAMES["unet"]).read_text()).get("in_channels")
    if channels != checkpoint.channels:
        raise BadModelFiles(
            f"its config folder is for a UNet of {channels} input channels, {name} has {checkpoint.channels}"
        )


def _find_folder(source: Folder | Hub) -> ModelFiles:
    root = source.path
    if not (root / "model_index.json").is_file():
        if isinstance(source, Hub):
            raise BadModelFiles("it has not been pulled; the operator can, with `inpaintd models pull`")
        raise BadModelFiles("there is no model_index.json where the models file says it lies")
    family = _family_of(root)
    _check_configs(root, family)
    found = _all_weights(root, family)
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
    index = _read_index(root)
    if "_class_name" not in index:
        raise BadModelFiles("model_index.json does not say what it is")
    return "sdxl" if str(index["_class_name"]).startswith(XL_CLASSES) else "sd"


def _read_index(root: Path) -> dict[str, Any]:
    try:
        index = json.loads((root / "model_index.json").read_text())
    except (OSError, ValueError) as error:
        raise BadModelFiles("model_index.json does not say what it is") from error
    if not isinstance(index, dict):
        raise BadModelFiles("model_index.json does not say what it is")
    return index


def _check_configs(root: Path, family: str) -> None:
    missing = []
    for part in PARTS[family]:
        name = f"{part}/{CONFIG_NAMES[part]}"
        try:
            json.loads((root / name).read_text())
        except (OSError, ValueError):
            missing.append(name)
    if missing:
        raise BadModelFiles(f"{', '.join(missing)}: not there, or not JSON")


def _all_weights(root: Path, family: str) -> dict[str, list[Path]]:
    """The weights of each part, whichever precision. Raises BadModelFiles with everything that is missing."""
    found, problems = {}, []
    for part in WEIGHT_PARTS[family]:
        try:
            found[part] = _weights_of(root / part)
        except BadModelFiles as problem:
            problems.append(str(problem))
    if problems:
        raise BadModelFiles("; ".join(problems))
    return found


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
