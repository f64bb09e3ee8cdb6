"""New entries of the models file: added below what people wrote there, which stays as it is."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.model_catalog import BadModelsFile, load_catalog
from storage.settings import StorageSettings

BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
NOT_IN_IDS = re.compile(r"[^a-z0-9._-]+")
DEFAULT_LINE = re.compile(r"^default[ \t]*=[ \t]*(?:\"[^\"\n]*\"|'[^'\n]*')", re.MULTILINE)
FIRST_TABLE = re.compile(r"^[ \t]*\[", re.MULTILINE)
SINGLE_SECTION = "safety_checker"


class NotAdded(Exception):
    """The models file stays as it was; the text says why."""


@dataclass(frozen=True)
class NewEntry:
    """`section`: models, loras, vaes, ip_adapters, embeddings, or safety_checker, of which there is one."""

    section: str
    id: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def as_toml(self, base: Path) -> str:
        """Paths below `base`, where the models file lies, are written relative to it."""
        name = self.section if self.section == SINGLE_SECTION else f"{self.section}.{_key(self.id)}"
        lines = [f"{key} = {_value(value, base)}" for key, value in self.values.items()]
        return "\n".join([f"[{name}]", *lines, ""])


def id_from(name: str) -> str:
    """A name for the entry from that of a file, folder or repository."""
    return NOT_IN_IDS.sub("-", name.casefold()).strip("-.") or "model"


def placed(path: Path) -> Path:
    """Where it lies; a file as it is called there, even where that is a link: those of the hub's own cache lead to
    names without a suffix.
    """
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


def add_entry(settings: StorageSettings, entry: NewEntry, *, is_default: bool = False) -> Path:
    """Write the entry at the end of the models file, which is made if there is none. Raises NotAdded."""
    if settings.models_file is None:
        raise NotAdded("There is no models file: set MODELS_FILE to where it shall be.")
    path = settings.models_file.resolve()
    try:
        before = path.read_text("utf-8") if path.exists() else ""
        after = _appended(before, entry.as_toml(path.parent))
        if is_default:
            after = _with_default(after, entry.id)
        _replace(path, after, settings)
    except OSError as error:
        raise NotAdded(f"The models file {path} cannot be written: {error.strerror}.") from error
    except UnicodeError as error:
        raise NotAdded("A name or path has bytes that are no text in UTF-8: rename it.") from error
    return path


def _appended(text: str, entry: str) -> str:
    return f"{text.rstrip()}\n\n{entry}" if text.strip() else entry


def _with_default(text: str, model_id: str) -> str:
    """`default` must stand before the first table; whatever follows it on its line stays."""
    first_table = FIRST_TABLE.search(text)
    head = text[: first_table.start()] if first_table else text
    line = f"default = {_string(model_id)}"
    if DEFAULT_LINE.search(head):
        return DEFAULT_LINE.sub(lambda _found: line, head, count=1) + text[len(head) :]
    return f"{line}\n\n{text}" if not head.strip() else f"{head.rstrip()}\n{line}\n\n{text[len(head) :]}"


def _replace(path: Path, text: str, settings: StorageSettings) -> None:
    """All or nothing: only what can be read as a models file takes the old one's place."""
    content = text.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        file.write(content)
    new = Path(file.name)
    try:
        load_catalog(settings.model_copy(update={"models_file": new}))
        new.chmod(path.stat().st_mode if path.exists() else 0o644)
        new.replace(path)
    except BadModelsFile as error:
        raise NotAdded(str(error).replace(str(new), str(path))) from error
    finally:
        new.unlink(missing_ok=True)


def _key(name: str) -> str:
    return name if BARE_KEY.fullmatch(name) else _string(name)


def _value(value: Any, base: Path) -> str:
    if isinstance(value, Path):
        absolute = placed(value)
        return _string(str(absolute.relative_to(base) if absolute.is_relative_to(base) else absolute))
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, Sequence):
        return f"[{', '.join(_value(each, base) for each in value)}]"
    return str(value)


def _string(text: str) -> str:
    """TOML's basic strings are JSON's, but for DEL, which TOML wants escaped, too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
