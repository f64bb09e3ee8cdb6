"""A prompt's fragments to windows: token ids in the lengths that a text encoder reads at once."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from worker.errors import PromptTooLong
from worker.inversions import Inversion
from worker.weighting import Fragment

# The cost of every UNet call grows with their number.
MAX_WINDOWS = 16
# Any token at all: what it stands for is put in its place.
PLACEHOLDER_ID = 0


@dataclass(frozen=True, eq=False)
class Window:
    """Start, up to 75 tokens, end and padding. `vectors`: what is put in the place of a token's own, (width,)."""

    ids: tuple[int, ...]
    attended: tuple[int, ...]
    weights: tuple[float, ...]
    vectors: Mapping[int, torch.Tensor] = field(default_factory=dict)

    @property
    def is_weighted(self) -> bool:
        return any(weight != 1 for weight in self.weights)


@dataclass(frozen=True, eq=False)
class _Token:
    id: int
    weight: float
    vector: torch.Tensor | None = None


def make_windows(
    fragments: Sequence[Fragment],
    tokenizer: Any,
    window_tokens: int,
    inversions: Sequence[Inversion] = (),
    tower: int = 0,
) -> list[Window]:
    """At least one. The tokens of an inversion stay in one window. Raises PromptTooLong beyond MAX_WINDOWS.

    `tower`: for which of the model's text encoders.
    """
    capacity = window_tokens - 2
    pieces = list(_pieces(fragments, inversions))
    if len(pieces) > MAX_WINDOWS * capacity:
        raise PromptTooLong
    filled: list[list[_Token]] = [[]]
    for group in _token_groups(pieces, tokenizer, tower):
        if len(filled[-1]) + len(group) > capacity:
            filled.append([])
            if len(filled) > MAX_WINDOWS:
                raise PromptTooLong
        filled[-1] += group
    return [_window(tokens, tokenizer, window_tokens) for tokens in filled]


def _pieces(fragments: Sequence[Fragment], inversions: Sequence[Inversion]) -> Iterator[tuple[str | Inversion, float]]:
    """Words and inversions, with their weights."""
    named = {each.token.casefold(): each for each in inversions}
    # The longest first: one's token may be the beginning of another's.
    triggers = "|".join(_whole_word(token) for token in sorted(named, key=len, reverse=True))
    pattern = re.compile(f"({triggers})", re.IGNORECASE) if triggers else None
    for fragment in fragments:
        for part in pattern.split(fragment.text) if pattern else [fragment.text]:
            if part and not part.isspace():
                yield named.get(part.casefold(), part), fragment.weight


def _whole_word(token: str) -> str:
    before = r"(?<!\w)" if re.match(r"\w", token) else ""
    after = r"(?!\w)" if re.match(r"\w", token[-1]) else ""
    return before + re.escape(token) + after


def _token_groups(
    pieces: Sequence[tuple[str | Inversion, float]], tokenizer: Any, tower: int
) -> Iterator[list[_Token]]:
    """What may not be torn apart."""
    texts = [piece for piece, _ in pieces if isinstance(piece, str)]
    # One call for all of them.
    found = iter(tokenizer(texts, add_special_tokens=False, verbose=False).input_ids if texts else [])
    for piece, weight in pieces:
        if isinstance(piece, str):
            yield from ([_Token(each, weight)] for each in next(found))
        else:
            yield [_Token(PLACEHOLDER_ID, weight, vector) for vector in piece.vectors[tower]]


def _window(tokens: Sequence[_Token], tokenizer: Any, length: int) -> Window:
    padding = length - len(tokens) - 2
    ids = (tokenizer.bos_token_id, *(each.id for each in tokens), tokenizer.eos_token_id)
    return Window(
        ids=(*ids, *itertools.repeat(tokenizer.pad_token_id, padding)),
        attended=(1,) * len(ids) + (0,) * padding,
        weights=(1.0, *(each.weight for each in tokens), *itertools.repeat(1.0, padding + 1)),
        vectors={place: each.vector for place, each in enumerate(tokens, start=1) if each.vector is not None},
    )
