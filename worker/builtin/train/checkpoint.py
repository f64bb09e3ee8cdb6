"""States of a training on disk: whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def save_checkpoint(file: Path, state: dict[str, Any], *, ready: Callable[[], None] = lambda: None) -> None:
    """`ready`: called when it is written and takes the place of the last one after that."""
    part = file.with_suffix(".part")
    torch.save(state, part)
    ready()
    part.replace(file)


def load_checkpoint(file: Path, device: torch.device) -> dict[str, Any] | None:
    """None where there is none. Only tensors, numbers and containers of them are read, no objects."""
    if not file.is_file():
        return None
    state: dict[str, Any] = torch.load(file, map_location=device, weights_only=True)
    return state
