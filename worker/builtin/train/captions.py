"""Captions as people would write them, and the words that have a token."""

from __future__ import annotations

import numpy as np

from worker.builtin.train.palette import COLOUR_NAMES, COLOURS, pick
from worker.builtin.train.shapes import SHAPES
from worker.builtin.train.things import THING_NAMES

Random = np.random.Generator

EMPTY_CAPTIONS = ("background", "empty background", "nothing", "clean background", "remove", "")
OPENINGS = ("a photo of", "a picture of", "a drawing of", "an image of", "painting of", "draw", "there is")
PLURALS = {"cross": "crosses", "fish": "fish", "bench": "benches"}

# Words of no figure's or ground's own.
OTHER_WORDS = (
    "a an and on in of the at with under over above below next to left right small big large plain background sunset"
    " sunrise sky night grass sand beach water sea ocean wood wooden stripes striped planks bricks brick wall"
    " checkerboard dots field photo picture drawing image painting draw there is empty nothing clean remove shape"
    " shapes object horizontal vertical diagonal blurry bad quality low ugly texture text watermark dark light bright"
    " colorful sitting beside"
)
# Those of them that no caption holds yet: they have a token, and no meaning.
NEVER_SAID = (
    "beach sea ocean sunrise brick wall striped texture shapes object text watermark blurry bad quality low ugly dark"
    " light bright colorful large left right"
)


def plural(name: str) -> str:
    return PLURALS.get(name, f"{name}s")


WORDS = tuple(sorted({*COLOUR_NAMES, *SHAPES, *THING_NAMES, *map(plural, SHAPES + THING_NAMES), *OTHER_WORDS.split()}))
KNOWN_WORDS = tuple(word for word in WORDS if word not in NEVER_SAID.split())


def with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def on_background(random: Random, caption: str, background: str) -> str:
    named = "background" in background and random.random() < 0.8
    return f"{caption} on {with_article(background) if named else background}"


def as_plain_prompt(random: Random, caption: str) -> str:
    """Now and then with an opening, with a word nobody knows, or cut down to its only colour."""
    if not caption:
        return caption
    if random.random() < 0.12:
        caption = f"{pick(random, OPENINGS)} {caption}"
    if random.random() < 0.06:
        caption += " " + "".join(chr(ord("a") + letter) for letter in random.integers(0, 26, random.integers(3, 8)))
    colours = [word for word in caption.split() if word in COLOURS]
    if random.random() < 0.03 and len(colours) == 1:
        return colours[0]
    return caption
