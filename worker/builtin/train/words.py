"""The doodle's tokenizer, a CLIP one in which every word of the world is one token, and its list of words."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTokenizer

MAX_TOKENS = 32
START, END = "<|startoftext|>", "<|endoftext|>"
_END_OF_WORD = "</w>"


def write_tokenizer(folder: Path, words: Iterable[str]) -> None:
    """The files of a new CLIPTokenizer. What is no word of the world falls back to smaller pieces."""
    merges = _learn_merges(sorted(set(words)))
    letters = _byte_letters()
    pieces = dict.fromkeys([*letters, *(letter + _END_OF_WORD for letter in letters)])
    pieces |= dict.fromkeys(first + second for first, second in merges)
    vocabulary = {piece: number for number, piece in enumerate([*pieces, START, END])}
    _write_vocabulary(folder, vocabulary, merges)
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = special | {
        "model_max_length": MAX_TOKENS,
        "tokenizer_class": "CLIPTokenizer",
        "do_lower_case": True,
        "add_prefix_space": False,
        "errors": "replace",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def save_tokenizer(folder: Path, tokenizer: Any) -> None:
    """The file of transformers' fast tokenizers, and the two of CLIP's first one, which others read."""
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.save_pretrained(folder)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    _write_vocabulary(folder, model["vocab"], model["merges"])


def load_tokenizer(folder: Path) -> Any:
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def tokenize(tokenizer: Any, captions: list[str]) -> torch.Tensor:
    """(N, MAX_TOKENS) numbers."""
    tokens = tokenizer(captions, padding="max_length", truncation=True, max_length=MAX_TOKENS)
    return torch.tensor(tokens.input_ids)


def read_vocabulary(folder: Path) -> dict[str, int]:
    vocabulary: dict[str, int] = json.loads((folder / "vocab.json").read_text())
    return vocabulary


def carried_over(rows: torch.Tensor, old: dict[str, int], new: dict[str, int], fresh: torch.Tensor) -> torch.Tensor:
    """Token embeddings for the vocabulary `new`: known pieces keep their row of `rows`, others have that of `fresh`."""
    result = fresh.clone()
    for piece, number in new.items():
        if piece in old:
            result[number] = rows[old[piece]]
    return result


def _write_vocabulary(folder: Path, vocabulary: Mapping[str, int], merges: Iterable[Sequence[str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    lines = ["#version: 0.2", *(f"{first} {second}" for first, second in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")


def _learn_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte pair encoding, driven so far that each word is one piece.

    Our own, since equal counts must always be decided alike: the trainer of `tokenizers` draws lots for them.
    """
    spelt = [[*word[:-1], word[-1] + _END_OF_WORD] for word in words]
    merges = []
    while counts := Counter(pair for pieces in spelt for pair in pairwise(pieces)):
        merges.append(max(counts, key=lambda pair: (counts[pair], pair)))
        spelt = [_merged(pieces, merges[-1]) for pieces in spelt]
    return merges


def _merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    result: list[str] = []
    for piece in pieces:
        if result and (result[-1], piece) == pair:
            result[-1] += piece
        else:
            result.append(piece)
    return result


def _byte_letters() -> list[str]:
    """A printable letter for each of the 256 bytes. Source: GPT-2's byte-level encoding, which CLIP took over."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(others))]
