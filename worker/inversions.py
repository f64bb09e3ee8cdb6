"""Textual inversions: words of a prompt that stand for vectors, learned elsewhere, that no vocabulary has."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import structlog
import torch
from safetensors import SafetensorError
from safetensors.torch import load

from storage.addons import Addons, Embedding, find_addon
from worker.errors import AddonUnavailable

log = structlog.get_logger(__name__)

FIELD = "embeddings_model"
MAX_FILE_BYTES = 16 * 2**20
MAX_VECTORS = 75
FILES_KEPT = 64
SUFFIX = ".safetensors"
# The keys under which trainers write their vectors, in the order of a model's text encoders; A1111's, and XL's.
ONE_ENCODER, TWO_ENCODERS = ("emb_params",), ("clip_l", "clip_g")
VECTOR_DIMENSIONS = 2


class BadInversion(Exception):
    """The file cannot be used; the text says why, for the operator."""


@dataclass(frozen=True, eq=False)
class Inversion:
    """`token` stands for `vectors`: one tensor (vectors, width) for each of the model's text encoders."""

    token: str
    vectors: tuple[torch.Tensor, ...]


class HasVectors(Protocol):
    """A window of tokens."""

    @property
    def vectors(self) -> Any: ...


def find_embeddings(addons: Addons, ids: Sequence[str]) -> tuple[Embedding, ...]:
    """Those of the models file. Raises AddonUnavailable."""
    found = []
    for each in ids:
        embedding = find_addon(addons.embeddings, each)
        if embedding is None:
            raise AddonUnavailable(f"There is no embedding {each} here any more.", field=FIELD)
        found.append(embedding)
    return tuple(found)


def load_inversions(embeddings: Sequence[Embedding], widths: Sequence[int]) -> tuple[Inversion, ...]:
    """In the order given; `widths` are those of the model's text encoders. Raises AddonUnavailable."""
    loaded = []
    for embedding in embeddings:
        try:
            inversion = _read(embedding.path, embedding.token, *_version(embedding.path))
            _check(inversion, widths)
        except (BadInversion, OSError) as reason:
            log.warning("embedding_unavailable", embedding=embedding.id, path=str(embedding.path), reason=str(reason))
            raise AddonUnavailable(f"The embedding {embedding.id} cannot be used.", field=FIELD) from reason
        loaded.append(inversion)
    return tuple(loaded)


@contextmanager
def giving_vectors(encoder: Any, windows: Sequence[HasVectors]) -> Iterator[None]:
    """While a text encoder reads these windows, their vectors stand where their tokens' own would.

    The encoder itself is not changed; where no window has any, nothing is done at all.
    """
    if not any(window.vectors for window in windows):
        yield
        return

    def put_in(_module: Any, _arguments: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        for row, window in enumerate(windows):
            for place, vector in window.vectors.items():
                output[row, place] = vector.to(output)
        return output

    hook = encoder.get_input_embeddings().register_forward_hook(put_in)
    try:
        yield
    finally:
        hook.remove()


def _version(path: Path) -> tuple[int, int]:
    """Changes when the file does."""
    found = path.stat()
    if found.st_size > MAX_FILE_BYTES:
        raise BadInversion(f"it has more than {MAX_FILE_BYTES} bytes")
    return found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=FILES_KEPT)
def _read(path: Path, token: str, _size: int, _time: int) -> Inversion:
    if path.suffix != SUFFIX:
        raise BadInversion("only safetensors files are read")
    try:
        # Not mapped: the file may be overwritten while this is in use.
        tensors = load(path.read_bytes())
    except SafetensorError as error:
        raise BadInversion("it is not a whole safetensors file") from error
    keys = next((keys for keys in (TWO_ENCODERS, ONE_ENCODER) if tensors.keys() == set(keys)), tuple(tensors))
    if keys != TWO_ENCODERS and len(keys) != 1:
        raise BadInversion(f"its {len(keys)} tensors are of no textual inversion")
    vectors = tuple(tensors[key][None] if tensors[key].ndim == 1 else tensors[key] for key in keys)
    if any(each.ndim != VECTOR_DIMENSIONS or not each.is_floating_point() for each in vectors):
        raise BadInversion("its tensors are no vectors")
    if not all(torch.isfinite(each.float()).all() for each in vectors):
        raise BadInversion("its vectors are not finite")
    if not all(1 <= len(each) <= MAX_VECTORS for each in vectors):
        raise BadInversion(f"it has more than {MAX_VECTORS} vectors, or none")
    return Inversion(token, vectors)


def _check(inversion: Inversion, widths: Sequence[int]) -> None:
    found = tuple(each.shape[1] for each in inversion.vectors)
    if found != tuple(widths):
        raise BadInversion(f"it was made for text encoders of width {found}, the model's are {tuple(widths)}")
