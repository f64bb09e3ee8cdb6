"""(d) The PNG encoder of results, against Pillow's default, on photographs."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from statistics import median

import numpy as np
from PIL import Image

from tests.benchmarks.figures import Findings, Row, milliseconds
from tests.benchmarks.pictures import PHOTOGRAPH_DIR, SYNTHETIC, NamedPicture, Picture, from_png, photographs
from worker.png import encode_png

SIZES = (512, 1024)
MIN_SPEEDUP, MAX_SIZE_RATIO = 6.0, 1.1
PARAMETERS = {"prompt": "a red circle on a blue background", "seed": 7, "steps": 20, "software": "inpaintd"}

Encode = Callable[[Picture], bytes]


def png_encoding(*, rounds: int) -> Findings:
    rows, sources = [], set()
    for size in SIZES:
        for picture in photographs(size):
            rows.append(_row(picture, rounds))
            sources.add(picture.name)
    if SYNTHETIC in sources:
        remark = f"(d) No photographs in {PHOTOGRAPH_DIR}: a synthetic picture stands in, which compresses otherwise."
    else:
        remark = "(d) The photographs are of 512 pixels; 1024 are four mirrored copies, pixel for pixel."
    return Findings(rows=rows, remarks=[remark, "(d) ratio: how many times faster. Every PNG decoded to its picture."])


def _row(picture: NamedPicture, rounds: int) -> Row:
    ours_seconds: list[float] = []
    pillow_seconds: list[float] = []
    for _ in range(rounds):
        ours = _timed(_ours, picture.pixels, ours_seconds)
        pillow = _timed(_pillow, picture.pixels, pillow_seconds)
    for name, png in (("our encoder", ours), ("Pillow", pillow)):
        if not np.array_equal(from_png(png), picture.pixels):
            raise RuntimeError(f"the PNG of {name} is another picture")
    speedup = median([theirs / mine for mine, theirs in zip(ours_seconds, pillow_seconds, strict=True)])
    size_ratio = len(ours) / len(pillow)
    side = picture.pixels.shape[0]
    return Row(
        part="d",
        measured=f"PNG encode, {side} px, {picture.name}",
        figure=f"{milliseconds(median(ours_seconds))}, {size_ratio:.2f}× the size",
        control=f"{milliseconds(median(pillow_seconds))} (Pillow's default)",
        ratio=speedup,
        aim=f"≥ {MIN_SPEEDUP:g}× at ≤ {MAX_SIZE_RATIO:g}× the size",
        met=speedup >= MIN_SPEEDUP and size_ratio <= MAX_SIZE_RATIO,
        values={
            "ours_seconds": median(ours_seconds),
            "pillow_seconds": median(pillow_seconds),
            "ours_bytes": len(ours),
            "pillow_bytes": len(pillow),
        },
    )


def _timed(encode: Encode, pixels: Picture, into: list[float]) -> bytes:
    start = time.perf_counter()
    png = encode(pixels)
    into.append(time.perf_counter() - start)
    return png


def _ours(pixels: Picture) -> bytes:
    return encode_png(pixels, PARAMETERS)


def _pillow(pixels: Picture) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
