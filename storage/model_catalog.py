"""The models file as both sides read it: which models there are, and each one's defaults."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from storage.addons import NO_ADDONS, AddonFile, Addons, NamedTwice, read_addons
from storage.schedulers import SCHEDULERS
from storage.settings import StorageSettings

SIZE_STEP = 8
SHORTEST_SIDE = 64
"""No side that a model works at is shorter, but where its `min_size` is."""
BUILTIN_MODELS_FILE = Path(__file__).parent / "builtin_models.toml"
BUILTIN_DIR = Path(__file__).parent.parent / "worker" / "builtin"


class BadModelsFile(Exception):
    """The models file cannot be used; the text says where and why."""


@dataclass(frozen=True)
class Folder:
    """A folder in diffusers' layout."""

    path: Path


@dataclass(frozen=True)
class SingleFile:
    """One .safetensors checkpoint.

    `config`: a folder in diffusers' layout, for a configuration that is not that of the published models.
    """

    path: Path
    config: Path | None = None


@dataclass(frozen=True)
class Hub:
    """A repository of the Hugging Face hub; `inpaintd models pull` puts it into `path`."""

    repo_id: str
    revision: str | None
    path: Path


@dataclass(frozen=True)
class NoWeights:
    """Nothing to load: a model that is a program."""


Source = Folder | SingleFile | Hub | NoWeights


@dataclass(frozen=True)
class ModelEntry:
    """One model: how it is called, where it lies, what it does when a job does not say. Sizes in pixels."""

    id: str
    aliases: tuple[str, ...]
    name: str
    description: str
    family: str
    source: Source
    native_size: int
    min_size: int
    max_size: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    prompt_suffix: str
    negative_prompt: str
    prediction_type: str | None = None
    """What the UNet predicts, where its files do not say it right."""
    empty_prompt: str = ""
    """What the model is told where a job has no prompt."""

    @property
    def has_weights(self) -> bool:
        """One without takes no prompt, steps, guidance, scheduler or strength."""
        return not isinstance(self.source, NoWeights)

    def worked_size(self, width: int, height: int) -> tuple[int, int]:
        """The size at which the model works for a result of `width` × `height`.

        Multiples of 8, the shape kept. What is larger than `max_size` is scaled down to it; what is smaller than
        `min_size` is scaled up, until the shorter side has that or the longer one is as long as it may be. A model
        without weights takes any.
        """
        if not self.has_weights:
            return width, height
        most = self.max_size / max(width, height)
        scale = min(most, max(1.0, self.min_size / min(width, height)))
        return self._supported(width * scale), self._supported(height * scale)

    def _supported(self, length: float) -> int:
        multiple = int(length / SIZE_STEP + 0.5) * SIZE_STEP
        return max(min(self.min_size, SHORTEST_SIDE), min(self.max_size, multiple))


@dataclass(frozen=True)
class ModelCatalog:
    entries: tuple[ModelEntry, ...]
    default: ModelEntry
    addons: Addons = NO_ADDONS

    def find(self, name: str) -> ModelEntry | None:
        """The model with this id or alias."""
        return self._by_name.get(name)

    @cached_property
    def _by_name(self) -> dict[str, ModelEntry]:
        names = {alias: entry for entry in self.entries for alias in entry.aliases}
        return names | {entry.id: entry for entry in self.entries}


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    aliases: tuple[str, ...] = ()
    name: str = ""
    description: str = ""
    family: Literal["sd", "sdxl", "remove"] = "sd"
    folder: Path | None = None
    file: Path | None = None
    config: Path | None = None
    hub: str | None = None
    revision: str | None = None
    native_size: PositiveInt = 512
    min_size: Annotated[int, Field(ge=SIZE_STEP, multiple_of=SIZE_STEP)] = 64
    max_size: Annotated[int, Field(ge=SIZE_STEP, multiple_of=SIZE_STEP)] = 1024
    num_inference_steps: PositiveInt = 20
    guidance_scale: float = 7.5
    scheduler: str = "DDIMScheduler"
    prompt_suffix: str = ""
    negative_prompt: str = ""
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    empty_prompt: str = ""

    @model_validator(mode="after")
    def _check(self) -> _Entry:
        places = sum(place is not None for place in (self.folder, self.file, self.hub))
        if self.family == "remove" and places:
            raise ValueError("family remove has no weights: no folder, file or hub")
        if self.family != "remove" and places != 1:
            raise ValueError("give exactly one of folder, file and hub")
        if self.config is not None and self.file is None:
            raise ValueError("config (a folder with the model's configuration) is for a file; a folder has its own")
        if self.scheduler not in SCHEDULERS:
            raise ValueError(f"scheduler must be one of {', '.join(SCHEDULERS)}")
        if self.min_size > self.max_size:
            raise ValueError("min_size is above max_size")
        return self


class _File(AddonFile):
    default: str | None = None
    models: dict[str, _Entry] = Field(default_factory=dict)


def load_catalog(settings: StorageSettings) -> ModelCatalog:
    """Read the models file beside the built-in models.

    A model of the file whose id is a built-in's replaces it; the file's `default` (an id) takes the
    place of the built-in default, whose aliases then lead to it too. Relative paths start at the file.
    Raises BadModelsFile.
    """
    builtin = _read(BUILTIN_MODELS_FILE)
    entries = _entries(builtin, BUILTIN_DIR, settings)
    default_id = builtin.default
    addons = NO_ADDONS
    if settings.models_file is not None:
        own = _read(settings.models_file)
        base = settings.models_file.resolve().parent
        entries |= _entries(own, base, settings)
        default_id = own.default or default_id
        try:
            addons = read_addons(own, base)
        except NamedTwice as error:
            raise BadModelsFile(f"The models file {settings.models_file} is wrong: {error}") from error
    if default_id not in entries:
        raise BadModelsFile(f"The default model {default_id!r} is not among: {', '.join(entries)}")
    return replace(_catalog(entries, default_id, moved_from=builtin.default), addons=addons)


def _catalog(entries: dict[str, ModelEntry], default_id: str, moved_from: str | None) -> ModelCatalog:
    if moved_from and moved_from != default_id and moved_from in entries:
        old, new = entries[moved_from], entries[default_id]
        named = {name for entry in entries.values() if entry is not old for name in (entry.id, *entry.aliases)}
        inherited = tuple(alias for alias in old.aliases if alias not in named)
        entries = entries | {
            old.id: _with_aliases(old, ()),
            new.id: _with_aliases(new, (*new.aliases, *inherited)),
        }
    _refuse_shared_names(entries)
    return ModelCatalog(entries=tuple(entries.values()), default=entries[default_id])


def _refuse_shared_names(entries: dict[str, ModelEntry]) -> None:
    owner: dict[str, str] = {}
    for entry in entries.values():
        for name in (entry.id, *entry.aliases):
            if owner.setdefault(name, entry.id) != entry.id:
                raise BadModelsFile(f"The name {name!r} belongs to both {owner[name]!r} and {entry.id!r}")


def _with_aliases(entry: ModelEntry, aliases: tuple[str, ...]) -> ModelEntry:
    return replace(entry, aliases=aliases)


def _read(path: Path) -> _File:
    try:
        return _File.model_validate(tomllib.loads(path.read_text("utf-8")))
    except OSError as error:
        raise BadModelsFile(f"The models file {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadModelsFile(f"The models file {path} is not TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadModelsFile(f"The models file {path} is wrong at {where}: {first['msg']}") from error


def _entries(file: _File, base: Path, settings: StorageSettings) -> dict[str, ModelEntry]:
    return {
        model_id: ModelEntry(
            id=model_id,
            aliases=entry.aliases,
            name=entry.name or model_id,
            description=entry.description,
            family=entry.family,
            source=_source(model_id, entry, base, settings),
            native_size=entry.native_size,
            min_size=entry.min_size,
            max_size=entry.max_size,
            num_inference_steps=entry.num_inference_steps,
            guidance_scale=entry.guidance_scale,
            scheduler=entry.scheduler,
            prompt_suffix=entry.prompt_suffix,
            negative_prompt=entry.negative_prompt,
            prediction_type=entry.prediction_type,
            empty_prompt=entry.empty_prompt,
        )
        for model_id, entry in file.models.items()
    }


def _source(model_id: str, entry: _Entry, base: Path, settings: StorageSettings) -> Source:
    if entry.family == "remove":
        return NoWeights()
    if entry.hub is not None:
        return Hub(repo_id=entry.hub, revision=entry.revision, path=settings.models_dir / model_id)
    if entry.file is not None:
        return SingleFile(path=base / entry.file, config=None if entry.config is None else base / entry.config)
    if entry.folder is not None:
        return Folder(path=base / entry.folder)
    raise AssertionError("_Entry has checked that there is one")
