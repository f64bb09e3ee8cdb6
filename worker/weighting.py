"""Brackets in a prompt to weights: `(word)`, `[word]` and `(word:1.3)`, as the front ends of this family read them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

# Source: the wiki of AUTOMATIC1111's web UI, "Attention/emphasis".
ROUND_FACTOR = 1.1
SQUARE_FACTOR = 1 / 1.1
# Far beyond what gives pictures; keeps thousands of brackets from infinity.
MAX_WEIGHT = 10.0

# Nothing in it backtracks: a hostile text takes as many steps as it has characters, at most.
_TOKEN = re.compile(
    r"\\(?P<escaped>[\\()\[\]])"
    r"|(?P<opening>[(\[])"
    r"|:\s*+(?P<weight>[+-]?(?:\d++(?:\.\d*+)?+|\.\d++))\s*+\)"
    r"|(?P<closing>[)\]])"
    r"|(?P<text>[^\\()\[\]:]++|[\\:])",
    re.DOTALL,
)
_PARTNER = {")": "(", "]": "["}


@dataclass(frozen=True)
class Fragment:
    """Part of a prompt, and how much the model should heed it: 1 is as if nothing were said."""

    text: str
    weight: float = 1.0


def split_by_weight(prompt: str) -> list[Fragment]:
    """The prompt without its brackets, in order; neighbours differ in weight. Never fails.

    Each pair of round brackets multiplies by 1.1, or by the number at its end; each pair of square ones divides by
    1.1. A bracket without a partner means itself, and so does one behind a backslash.
    """
    tokens = list(_TOKEN.finditer(prompt))
    runs = itertools.groupby(_weighted(tokens, _pair(tokens)), key=lambda each: each.weight)
    return [Fragment("".join(each.text for each in run), weight) for weight, run in runs]


def _pair(tokens: Sequence[re.Match[str]]) -> dict[int, float | None]:
    """Which tokens are brackets with a partner: the factor of the opening ones, None for the closing ones."""
    pairs: dict[int, float | None] = {}
    waiting: list[int] = []
    for index, token in enumerate(tokens):
        if token["opening"]:
            waiting.append(index)
            continue
        closed = "(" if token["weight"] else _PARTNER.get(token["closing"] or "")
        if closed is None or not waiting or tokens[waiting[-1]]["opening"] != closed:
            continue
        factor = ROUND_FACTOR if closed == "(" else SQUARE_FACTOR
        pairs[waiting.pop()] = float(token["weight"]) if token["weight"] else factor
        pairs[index] = None
    return pairs


def _weighted(tokens: Sequence[re.Match[str]], pairs: Mapping[int, float | None]) -> Iterator[Fragment]:
    weights = [1.0]
    for index, token in enumerate(tokens):
        if index not in pairs:
            yield Fragment(token["escaped"] or token.group(), weights[-1])
            continue
        factor = pairs[index]
        if factor is None:
            weights.pop()
        else:
            weights.append(max(-MAX_WEIGHT, min(MAX_WEIGHT, weights[-1] * factor)))
