"""What a .safetensors file says of itself in its header: names, shapes and types. No weight is read, no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SAFETENSORS = ".safetensors"
PICKLES = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle"})
WHY_NO_PICKLES = "reading a pickle can run any program; only safetensors are loaded"
HEADER_LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
METADATA = "__metadata__"
TYPE_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class BadModelFiles(Exception):
    """The files of a model cannot be used. The text names files by their place in the model, no paths."""


@dataclass(frozen=True)
class Header:
    """`shapes` by tensor name; `types` as the format writes them; `metadata` is the author's own."""

    shapes: Mapping[str, tuple[int, ...]]
    types: frozenset[str]
    metadata: Mapping[str, str]

    def has(self, *prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in self.shapes)

    def count(self, *prefixes: str) -> int:
        """How many numbers there are under these names, all without any."""
        return sum(math.prod(shape) for name, shape in self.shapes.items() if name.startswith(prefixes or ("",)))

    @property
    def precision(self) -> str:
        """For people: the floating types found in it."""
        return "+".join(sorted(TYPE_NAMES[each] for each in self.types & TYPE_NAMES.keys())) or "other types"


def read_header(path: Path) -> Header:
    """Raises BadModelFiles where the file is a pickle, absent, no safetensors file or cut short.

    Source: the safetensors format (the header's length, then the header as JSON, then the data).
    """
    if path.suffix in PICKLES:
        raise BadModelFiles(f"{path.name} is a pickle: {WHY_NO_PICKLES}")
    if not path.is_file():
        raise BadModelFiles(f"{path.name} is not there")
    if path.suffix != SAFETENSORS:
        raise BadModelFiles(f"{path.name} is not a {SAFETENSORS} file")
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(HEADER_LENGTH_BYTES), "little")
            if length > MAX_HEADER_BYTES:
                raise BadModelFiles(f"{path.name} is no safetensors file")
            entries = json.loads(file.read(length))
        metadata = dict(entries.pop(METADATA, None) or {})
        shapes = {name: tuple(int(side) for side in entry["shape"]) for name, entry in entries.items()}
        types = frozenset(str(entry["dtype"]) for entry in entries.values())
        data_bytes = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        raise BadModelFiles(f"{path.name} is no safetensors file") from error
    # A byte holds two numbers at most.
    if any(min(shape, default=0) < 0 or math.prod(shape) > 2 * data_bytes for shape in shapes.values()):
        raise BadModelFiles(f"{path.name} is no safetensors file")
    if path.stat().st_size < HEADER_LENGTH_BYTES + length + data_bytes:
        raise BadModelFiles(f"{path.name} is cut short")
    return Header(shapes, types, {str(name): str(value) for name, value in metadata.items()})
