"""Results are lossless PNG files that say how they were made."""

from __future__ import annotations

import io
import json
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from worker.png import encode_png

PICTURES = Path(__file__).parents[3] / "shared" / "pictures"


def _chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    """All chunks by the book, with their CRCs checked."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, []
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        body = png[at + 4 : at + 8 + length]
        assert struct.unpack_from(">I", png, at + 8 + length) == (zlib.crc32(body),)
        chunks.append((body[:4], body[4:]))
        at += 12 + length
    return chunks


@settings(deadline=None)
@given(picture=hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))))
def test_a_decoded_png_is_the_picture_to_the_last_bit(picture: np.ndarray) -> None:
    with Image.open(io.BytesIO(encode_png(picture, {}))) as decoded:
        assert decoded.mode == "RGB"
        assert np.array_equal(np.asarray(decoded), picture)


@settings(deadline=None)
@given(prompt=st.text())
def test_the_parameters_are_read_back_by_pillow(prompt: str) -> None:
    parameters = {"prompt": prompt, "seed": 4294967295, "guidance_scale": 7.5}
    with Image.open(io.BytesIO(encode_png(np.zeros((2, 3, 3), np.uint8), parameters))) as decoded:
        decoded.load()
        assert json.loads(decoded.text["parameters"]) == parameters


def test_a_prompt_with_a_lone_surrogate_can_be_written() -> None:
    with Image.open(io.BytesIO(encode_png(np.zeros((2, 3, 3), np.uint8), {"prompt": "a\ud800b"}))) as decoded:
        decoded.load()
        assert json.loads(decoded.text["parameters"])["prompt"] == "a?b"


def test_all_chunks_have_right_checksums_and_the_text_precedes_the_pixels() -> None:
    chunks = _chunks(encode_png(np.zeros((5, 7, 3), np.uint8), {"prompt": "a fox, naïve, 狐"}))
    names = [name for name, _ in chunks]
    assert names[0] == b"IHDR"
    assert names.index(b"iTXt") < names.index(b"IDAT")
    assert names[-1] == b"IEND"
    assert b"\xe7\x8b\x90" in dict(chunks)[b"iTXt"]


def test_a_flat_drawing_stays_small() -> None:
    flat = np.full((512, 512, 3), 255, np.uint8)
    cv2.circle(flat, (256, 256), 100, (200, 20, 20), -1)
    assert len(encode_png(flat, {})) < 10_000


def _median_seconds(encode: Callable[[], object]) -> float:
    times = []
    for _ in range(5):
        start = time.thread_time()
        encode()
        times.append(time.thread_time() - start)
    return sorted(times)[2]


@pytest.mark.skipif(not PICTURES.is_dir(), reason="the photographs are not here")
def test_photographs_are_encoded_much_faster_than_by_pillow_and_hardly_larger() -> None:
    with Image.open(PICTURES / "overture-creations-5sI6fQgYIuo.png") as photograph:
        image = photograph.convert("RGB")
    picture = np.asarray(image)

    def by_pillow() -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()

    assert len(encode_png(picture, {})) <= 1.1 * len(by_pillow())
    # Half of what is measured on an idle machine.
    assert _median_seconds(lambda: encode_png(picture, {})) < _median_seconds(by_pillow) / 3
