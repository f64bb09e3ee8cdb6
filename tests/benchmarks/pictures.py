"""The pictures the benchmarks work on: photographs where there are any, else something like one."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PHOTOGRAPH_DIR = Path(__file__).resolve().parents[3] / "shared" / "pictures"
PHOTOGRAPHS = ("overture-creations-5sI6fQgYIuo.png", "bench2.png")
SYNTHETIC = "synthetic"

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class NamedPicture:
    """`pixels` is (H, W, 3) RGB."""

    name: str
    pixels: Picture


def photographs(size: int) -> list[NamedPicture]:
    """Square photographs of `size` pixels; one synthetic picture where the folder of photographs is absent."""
    files = [PHOTOGRAPH_DIR / name for name in PHOTOGRAPHS if (PHOTOGRAPH_DIR / name).exists()]
    if not files:
        return [NamedPicture(SYNTHETIC, photograph_like(size))]
    return [NamedPicture(file.stem, _at_size(_opened(file), size)) for file in files]


def _opened(file: Path) -> Picture:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def _at_size(picture: Picture, size: int) -> Picture:
    """Smaller: scaled. Larger: mirrored copies side by side, since scaling up would smooth the grain away."""
    side = min(picture.shape[:2])
    picture = picture[:side, :side]
    if side >= size:
        return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.LANCZOS))
    while picture.shape[0] < size:
        picture = np.concatenate([picture, picture[:, ::-1]], axis=1)
        picture = np.concatenate([picture, picture[::-1]], axis=0)
    return np.ascontiguousarray(picture[:size, :size])


def photograph_like(size: int) -> Picture:
    """Soft shapes of many sizes and a little grain."""
    random = np.random.default_rng(7)
    total = np.zeros((size, size, 3))
    cells = 4
    while cells <= size:
        coarse = random.normal(size=(cells, cells, 3)) * 160 / cells**0.8
        for channel in range(3):
            layer = Image.fromarray(coarse[..., channel].astype(np.float32))
            total[..., channel] += np.asarray(layer.resize((size, size), Image.Resampling.BICUBIC))
        cells *= 2
    total += 128 + random.normal(size=total.shape) * 1.5
    return np.clip(total, 0, 255).astype(np.uint8)


def middle_mask(size: int) -> Picture:
    """(size, size) gray: a white square in the middle, its edges on the grid of 8 pixels."""
    mask = np.zeros((size, size), np.uint8)
    quarter = size // 4 // 8 * 8
    mask[quarter:-quarter, quarter:-quarter] = 255
    return mask


def as_png(pixels: Picture) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def from_png(data: bytes) -> Picture:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)
