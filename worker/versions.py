"""Which content of a file is meant: one that is replaced under its name is another."""

from __future__ import annotations

import os
from pathlib import Path

Version = tuple[tuple[str, int, int], ...]


def version_of(path: Path) -> Version:
    """Differs once the file, or a file that lies in the folder, is another: names, sizes, times of change.

    Nothing is opened. Empty where nothing can be seen: whoever reads the file then says why.
    """
    try:
        if not path.is_dir():
            return (_seen(path.name, path.stat()),)
        with os.scandir(path) as files:
            return tuple(sorted(_seen(each.name, each.stat()) for each in files if each.is_file()))
    except OSError:
        return ()


def _seen(name: str, found: os.stat_result) -> tuple[str, int, int]:
    return name, found.st_size, found.st_mtime_ns
