"""Words that a model was never taught: those of small models are listed in their folder, beside the weights."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable
from pathlib import Path

from storage.model_catalog import ModelEntry, NoWeights, SingleFile

WORDS_FILE = "words.json"
MAX_NAMED = 20
MAX_NAMED_CHARS = 40
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_POSSESSIVE = re.compile(r"['’]s$")


def unknown_words(entry: ModelEntry, texts: Iterable[str], taught: Iterable[str] = ()) -> list[str]:
    """The words of the texts that the model has no idea of, in their order, each once; at most 20.

    None for a model without a list: large ones have seen every word. `taught`: the tokens of the job's textual
    inversions.
    """
    if isinstance(entry.source, NoWeights):
        return []
    root = entry.source.config if isinstance(entry.source, SingleFile) else entry.source.path
    file = None if root is None else root / WORDS_FILE
    if file is None or not file.is_file():
        return []
    known = _read_words(file) | set(_words(taught))
    said = dict.fromkeys(_words(texts))
    unknown = [word for word in said if word not in known and not known.issuperset(word.split("-"))]
    return [word[:MAX_NAMED_CHARS] for word in unknown][:MAX_NAMED]


def _words(texts: Iterable[str]) -> list[str]:
    return [_POSSESSIVE.sub("", word) for text in texts for word in _WORD.findall(text.lower())]


@functools.lru_cache(maxsize=16)
def _read_words(file: Path) -> frozenset[str]:
    return frozenset(json.loads(file.read_text()))
