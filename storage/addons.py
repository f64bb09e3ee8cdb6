"""What goes onto a model, as the models file names it: LoRAs, VAEs, IP-adapters, textual inversions, the checker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, model_validator

Family = Literal["sd", "sdxl"]

# Of one job. Negative strengths do the opposite; far beyond these no picture is left.
MAX_LORAS = 8
MAX_EMBEDDINGS = 8
MIN_LORA_STRENGTH, MAX_LORA_STRENGTH = -5.0, 5.0


class NamedTwice(Exception):
    """Two of one kind go by one name; the text says which."""


@dataclass(frozen=True)
class Addon:
    """`family`: of the models it fits; its files say more, and are looked at when it is used."""

    id: str
    aliases: tuple[str, ...]
    name: str
    family: str
    path: Path


@dataclass(frozen=True)
class Lora(Addon):
    """A .safetensors file of any trainer that diffusers reads."""


@dataclass(frozen=True)
class Vae(Addon):
    """A folder in diffusers' layout (config.json and weights)."""


@dataclass(frozen=True)
class IpAdapter(Addon):
    """A .safetensors file, and the folder of the image encoder it was trained with."""

    image_encoder: Path


@dataclass(frozen=True)
class Embedding(Addon):
    """A textual inversion, a .safetensors file. `token`: the word in a prompt that stands for it."""

    token: str


@dataclass(frozen=True)
class Addons:
    """All of them, in the order of the file. `safety_checker`: diffusers' StableDiffusionSafetyChecker, a folder."""

    loras: tuple[Lora, ...] = ()
    vaes: tuple[Vae, ...] = ()
    ip_adapters: tuple[IpAdapter, ...] = ()
    embeddings: tuple[Embedding, ...] = ()
    safety_checker: Path | None = None


NO_ADDONS = Addons()

Kind = TypeVar("Kind", bound=Addon)


def find_addon(addons: Iterable[Kind], name: str) -> Kind | None:
    """The one with this id or alias."""
    return next((addon for addon in addons if name == addon.id or name in addon.aliases), None)


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    aliases: tuple[str, ...] = ()
    name: str = ""
    family: Family = "sd"


class _FileEntry(_Entry):
    file: Path


class _FolderEntry(_Entry):
    folder: Path


class _IpAdapterEntry(_FileEntry):
    image_encoder: Path


class _EmbeddingEntry(_FileEntry):
    token: str = ""


class _Checker(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: Path


class AddonFile(BaseModel):
    """The sections of a models file that are about what goes onto models."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    loras: dict[str, _FileEntry] = {}
    vaes: dict[str, _FolderEntry] = {}
    ip_adapters: dict[str, _IpAdapterEntry] = {}
    embeddings: dict[str, _EmbeddingEntry] = {}
    safety_checker: _Checker | None = None

    @model_validator(mode="after")
    def _check_names(self) -> AddonFile:
        for section in (self.loras, self.vaes, self.ip_adapters, self.embeddings):
            _refuse_commas(section)
        return self


def read_addons(file: AddonFile, base: Path) -> Addons:
    """Relative paths start at `base`. Raises NamedTwice."""
    loras = tuple(Lora(**_common(key, each), path=base / each.file) for key, each in file.loras.items())
    vaes = tuple(Vae(**_common(key, each), path=base / each.folder) for key, each in file.vaes.items())
    ip_adapters = tuple(
        IpAdapter(**_common(key, each), path=base / each.file, image_encoder=base / each.image_encoder)
        for key, each in file.ip_adapters.items()
    )
    embeddings = tuple(
        Embedding(**_common(key, each), path=base / each.file, token=each.token or key)
        for key, each in file.embeddings.items()
    )
    for kind in (loras, vaes, ip_adapters, embeddings):
        _refuse_shared_names(kind)
    checker = None if file.safety_checker is None else base / file.safety_checker.folder
    return Addons(loras, vaes, ip_adapters, embeddings, checker)


def _common(key: str, entry: _Entry) -> dict[str, Any]:
    return {"id": key, "aliases": entry.aliases, "name": entry.name or key, "family": entry.family}


def _refuse_shared_names(addons: Iterable[Addon]) -> None:
    owner: dict[str, str] = {}
    for addon in addons:
        for name in (addon.id, *addon.aliases):
            if owner.setdefault(name, addon.id) != addon.id:
                raise NamedTwice(f"the name {name!r} belongs to both {owner[name]!r} and {addon.id!r}")


def _refuse_commas(section: Mapping[str, _Entry]) -> None:
    """A job names several with commas between."""
    for key, entry in section.items():
        for name in (key, *entry.aliases):
            if "," in name or name != name.strip() or not name:
                raise ValueError(f"{name!r} cannot be a name: no commas, no blanks around it")
