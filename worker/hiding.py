"""Pictures that must not be seen, made into ones that may: nothing of what they show can be made out any more."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from storage.job import SafetyAction

Picture = NDArray[np.uint8]

# What is left of a hidden picture: this many colours along its longer side.
COLOURS_LEFT = 8
MIN_AREA_SIDE = 4
BLURRED_PIXELS = 128
SENTENCE = "Sensitive content hidden"
GRAY, WHITE = (96, 96, 96), (255, 255, 255)
MIN_TEXT_PIXELS = 8
TEXT_SHARE = 0.86
# How tall the text is at most, of the shorter side.
MAX_TEXT_SHARE = 0.16


def hidden(picture: Picture, action: SafetyAction) -> Picture:
    """What is shown in the place of `picture` (H, W, 3 RGB), in its size."""
    return _HIDE[action](picture)


def _blurred(picture: Picture) -> Picture:
    height, width = picture.shape[:2]
    # Smooth at any size already when it is small, and much sooner done.
    scale = min(1.0, BLURRED_PIXELS / max(height, width))
    small = cv2.resize(_few_colours(picture), _size(width * scale, height * scale), interpolation=cv2.INTER_LINEAR)
    soft = cv2.GaussianBlur(small, (0, 0), max(small.shape[:2]) / COLOURS_LEFT / 2)
    return np.asarray(cv2.resize(soft, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def _pixelated(picture: Picture) -> Picture:
    height, width = picture.shape[:2]
    return np.asarray(cv2.resize(_few_colours(picture), (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)


def _few_colours(picture: Picture) -> Picture:
    """The means of as many areas as are left, each of several pixels."""
    height, width = picture.shape[:2]
    longer = max(height, width)
    scale = min(COLOURS_LEFT, longer // MIN_AREA_SIDE) / longer
    return np.asarray(cv2.resize(picture, _size(width * scale, height * scale), interpolation=cv2.INTER_AREA), np.uint8)


def _size(width: float, height: float) -> tuple[int, int]:
    return max(1, round(width)), max(1, round(height))


def _black(picture: Picture) -> Picture:
    return np.zeros_like(picture)


def _card(picture: Picture) -> Picture:
    """A sentence on gray; gray alone where the picture is too small for one."""
    height, width = picture.shape[:2]
    card = Image.new("RGB", (width, height), GRAY)
    draw = ImageDraw.Draw(card)
    for font, text in _settings_of_type(width, height):
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font, align="center")
        if right - left <= width * TEXT_SHARE and bottom - top <= height * TEXT_SHARE:
            place = ((width - left - right) / 2, (height - top - bottom) / 2)
            draw.text(place, text, fill=WHITE, font=font, align="center")
            break
    return np.asarray(card, np.uint8)


def _settings_of_type(width: int, height: int) -> Iterator[tuple[ImageFont.FreeTypeFont | ImageFont.ImageFont, str]]:
    """The sentence in every size and with every width of lines that is worth a try, the largest first."""
    size = int(min(width, height) * MAX_TEXT_SHARE)
    while size >= MIN_TEXT_PIXELS:
        font = ImageFont.load_default(size)
        for characters in (len(SENTENCE), len(SENTENCE) * 2 // 3, 1):
            yield font, "\n".join(textwrap.wrap(SENTENCE, characters, break_long_words=False))
        size = size * 9 // 10
    font = ImageFont.load_default(MIN_TEXT_PIXELS)
    yield font, SENTENCE.replace(" ", "\n")


_HIDE: Mapping[SafetyAction, Callable[[Picture], Picture]] = {
    SafetyAction.BLUR: _blurred,
    SafetyAction.PIXELATE: _pixelated,
    SafetyAction.BLACK: _black,
    SafetyAction.TEXT: _card,
}
