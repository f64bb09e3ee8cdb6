"""Every kind of picture file becomes upright 8-bit RGB or gray, or is refused before it costs anything."""

from __future__ import annotations

import io
import resource
import struct
import subprocess
import sys
import time
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from worker.errors import ImageTooLarge, NotAnImage
from worker.inputs import decode_mask, decode_picture, scale_part, scale_picture

MAX_PIXELS = 40_000_000
RED, GREEN, BLUE, GRAY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (120, 120, 120)
# Red, green over blue, gray: no orientation leaves it as it is.
QUARTERS = np.array([[RED, GREEN], [BLUE, GRAY]], np.uint8).repeat(16, 0).repeat(24, 1)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    body = name + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png(width: int, height: int, *, depth: int, colours: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG written by hand: for what Pillow reads but does not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(rows, 9))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + data + chunk(b"IEND", b"")


def picture(data: bytes) -> np.ndarray:
    decoded = decode_picture(data, "init_image", max_pixels=MAX_PIXELS)
    assert decoded.mode == "RGB"
    return np.asarray(decoded)


def mask(data: bytes) -> np.ndarray:
    gray = decode_mask(data, "mask_image", max_pixels=MAX_PIXELS)
    assert (gray.dtype, gray.ndim) == (np.uint8, 2)
    return gray


def test_an_rgb_png_comes_in_as_it_is() -> None:
    assert np.array_equal(picture(saved(Image.fromarray(QUARTERS))), QUARTERS)


@pytest.mark.parametrize(("kind", "options"), [("WEBP", {"lossless": True}), ("JPEG", {"quality": 98})])
def test_other_formats_come_in_too(kind: str, options: dict[str, Any]) -> None:
    difference = picture(saved(Image.fromarray(QUARTERS), kind, **options)).astype(int) - QUARTERS
    assert np.median(np.abs(difference)) <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_and_a_mask_are_turned_upright_by_their_exif(kind: str, orientation: int) -> None:
    # EXIF 2.32, 4.6.4: how the upright picture was stored.
    stored = {
        1: QUARTERS,
        2: QUARTERS[:, ::-1],
        3: QUARTERS[::-1, ::-1],
        4: QUARTERS[::-1],
        5: QUARTERS.transpose(1, 0, 2),
        6: np.rot90(QUARTERS),
        7: QUARTERS[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(QUARTERS, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif)
    upright = picture(data)
    assert upright.shape == QUARTERS.shape
    assert (upright.reshape(2, 16, 2, 24, 3).mean(axis=(1, 3)) - QUARTERS[::16, ::24]).__abs__().max() < 12
    gray = np.asarray(Image.fromarray(QUARTERS).convert("L"))
    assert (mask(data).reshape(2, 16, 2, 24).mean(axis=(1, 3)) - gray[::16, ::24]).__abs__().max() < 8


def test_unreadable_exif_is_no_reason_to_refuse_a_picture() -> None:
    data = saved(Image.fromarray(QUARTERS), exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff")
    assert np.array_equal(picture(data), QUARTERS)


def test_transparent_parts_lie_over_white_in_a_picture_and_over_black_in_a_mask() -> None:
    data = saved(Image.fromarray(np.array([[(200, 100, 0, 255), (200, 100, 0, 0), (255, 255, 255, 128)]], np.uint8)))
    assert picture(data).tolist() == [[[200, 100, 0], [255, 255, 255], [255, 255, 255]]]
    assert mask(data)[0, 1:].tolist() == [0, 128]


def test_gray_with_alpha_is_handled_by_the_same_rule() -> None:
    data = saved(Image.fromarray(np.array([[(100, 255), (100, 0), (0, 128)]], np.uint8), "LA"))
    assert picture(data)[0, :, 0].tolist() == [100, 255, 127]
    assert mask(data).tolist() == [[100, 0, 0]]


def test_a_palette_gives_its_colours_and_its_transparency() -> None:
    palette = chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60, 255, 255, 255]))
    rows = b"\0\x00\x01\x02"
    assert picture(png(3, 1, depth=8, colours=3, rows=rows, extra=palette)).tolist() == [
        [[10, 20, 30], [40, 50, 60], [255, 255, 255]]
    ]
    transparent = png(3, 1, depth=8, colours=3, rows=rows, extra=palette + chunk(b"tRNS", b"\x00\xff\x80"))
    assert picture(transparent).tolist() == [[[255, 255, 255], [40, 50, 60], [255, 255, 255]]]
    assert mask(transparent)[0, ::2].tolist() == [0, 128]


def test_a_one_bit_mask_is_black_and_white() -> None:
    data = saved(Image.fromarray(np.array([[True, False, True]])))
    assert mask(data).tolist() == [[255, 0, 255]]
    assert picture(data)[..., 0].tolist() == [[255, 0, 255]]


def test_the_traces_that_jpeg_leaves_around_a_drawn_mask_are_no_mask() -> None:
    drawn = Image.new("L", (256, 256))
    ImageDraw.Draw(drawn).ellipse((60, 60, 190, 190), fill=255)
    noisy = np.asarray(Image.open(io.BytesIO(saved(drawn, "JPEG", quality=85))))
    assert len(np.unique(noisy)) > 2, "there are traces"
    assert np.array_equal(mask(saved(drawn, "JPEG", quality=85)), np.asarray(drawn))


def test_gray_in_a_jpeg_mask_stays_gray() -> None:
    assert np.unique(mask(saved(Image.new("L", (64, 64), 128), "JPEG"))).tolist() == [128]


def test_sixteen_bit_gray_is_scaled_not_clipped() -> None:
    rows = b"\0" + struct.pack(">4H", 0, 257 * 100, 300, 65535)
    data = png(4, 1, depth=16, colours=0, rows=rows)
    assert picture(data)[0, :, 0].tolist() == [0, 100, 1, 255]
    assert mask(data).tolist() == [[0, 100, 1, 255]]


@pytest.mark.parametrize("colours", [2, 6])
def test_sixteen_bit_colours_are_scaled(colours: int) -> None:
    samples = [0, 257 * 100, 65535] + [65535] * (colours == 6)
    data = png(1, 1, depth=16, colours=colours, rows=b"\0" + struct.pack(f">{len(samples)}H", *samples))
    assert picture(data).tolist() == [[[0, 100, 255]]]


@pytest.mark.parametrize(("depth", "rows", "transparent"), [(1, b"\x40", 1), (2, b"\x10", 1), (4, b"\x01", 1)])
def test_a_transparent_gray_is_found_in_the_file_s_own_depth(depth: int, rows: bytes, transparent: int) -> None:
    extra = chunk(b"tRNS", struct.pack(">H", transparent))
    data = png(2, 1, depth=depth, colours=0, rows=b"\0" + rows, extra=extra)
    assert picture(data)[0, :, 0].tolist() == [0, 255]
    assert mask(data).tolist() == [[0, 0]]


def test_a_transparent_sixteen_bit_gray_is_found_exactly() -> None:
    rows = b"\0" + struct.pack(">3H", 1000, 1001, 65535)
    data = png(3, 1, depth=16, colours=0, rows=rows, extra=chunk(b"tRNS", struct.pack(">H", 1000)))
    assert picture(data)[0, :, 0].tolist() == [255, 4, 255]


def test_a_transparent_sixteen_bit_colour_is_found() -> None:
    rows = b"\0" + struct.pack(">6H", 1000, 2000, 3000, 65535, 0, 0)
    data = png(2, 1, depth=16, colours=2, rows=rows, extra=chunk(b"tRNS", struct.pack(">3H", 1000, 2000, 3000)))
    assert picture(data).tolist() == [[[255, 255, 255], [255, 0, 0]]]


def test_a_cmyk_jpeg_has_its_colours() -> None:
    image = Image.new("RGB", (32, 32), (220, 40, 60))
    decoded = picture(saved(image.convert("CMYK"), "JPEG", quality=98))
    assert np.abs(decoded.astype(int) - (220, 40, 60)).max() <= 8


@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in (RED, GREEN)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)
    with Image.open(io.BytesIO(data)) as animation:
        assert animation.n_frames == 2
    assert (picture(data) == RED).all()


def test_a_tiny_picture_and_a_tiny_mask_are_pictures() -> None:
    data = saved(Image.new("RGB", (1, 1), (1, 2, 3)))
    assert picture(data).tolist() == [[[1, 2, 3]]]
    assert scale_picture(picture(data), 64, 64).shape == (64, 64, 3)
    assert mask(data).shape == (1, 1)


def test_an_interlaced_png_comes_in_whole() -> None:
    # Adam7 with one pixel: only the first pass is there.
    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 1)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    data += chunk(b"IDAT", zlib.compress(b"\0\x07\x08\x09")) + chunk(b"IEND", b"")
    assert picture(data).tolist() == [[[7, 8, 9]]]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.9])
def test_a_file_cut_short_is_refused(kind: str, kept: float) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    data = saved(Image.fromarray(noise), kind)
    with pytest.raises(NotAnImage) as refusal:
        picture(data[: int(len(data) * kept)])
    assert refusal.value.field == "init_image"
    assert "init_image" in refusal.value.message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<!DOCTYPE html><html><body>Not Found</body></html>",
        b"\x89PNG\r\n\x1a\n",
        b"\x89PNG\r\n\x1a\n" + b"\0" * 200,
        b"\xff\xd8\xff" + b"\xff" * 100,
        b"RIFF\x10\0\0\0WEBPVP8X" + b"\0" * 20,
        b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff!\xf9\x04\0\0\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;",
        b"BM" + b"\0" * 60,
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        png(4, 4, depth=8, colours=2, rows=b"\0\1\2"),
        png(0, 4, depth=8, colours=2, rows=b""),
        png(4, 4, depth=7, colours=5, rows=b""),
    ],
)
def test_what_is_no_picture_of_a_known_format_is_refused(data: bytes) -> None:
    with pytest.raises(NotAnImage, match="mask_image"):
        mask(data)


def test_a_damaged_checksum_is_refused() -> None:
    data = bytearray(saved(Image.fromarray(QUARTERS)))
    data[data.index(b"IDAT") + 10] ^= 0xFF
    with pytest.raises(NotAnImage):
        picture(bytes(data))


def test_a_text_chunk_that_unpacks_to_too_much_is_refused() -> None:
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * 100_000_000, 9))
    rows = b"\0\1\2\3"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(NotAnImage):
        picture(png(1, 1, depth=8, colours=2, rows=rows, extra=bomb))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 50 * 1024


@pytest.mark.parametrize("side", [6400, 10_000, 12_000, 20_000, 2**31 - 1])
def test_too_many_pixels_are_refused_by_the_header_alone(side: int) -> None:
    data = png(side, side, depth=1, colours=0, rows=b"\0" * 4096)
    start = time.perf_counter()
    with pytest.raises(ImageTooLarge) as refusal:
        picture(data)
    assert time.perf_counter() - start < 0.5
    assert str(MAX_PIXELS) in refusal.value.message


def huge_webp() -> bytes:
    frames = [Image.new("RGBA", (2, 2), colour) for colour in ("blue", "red")]
    data = bytearray(saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    size = struct.pack("<I", 16_382)[:3]
    at = data.index(b"VP8X") + 12
    data[at : at + 6] = size + size
    return bytes(data)


MEASURE = """
import resource, sys
from worker.errors import ImageTooLarge
from worker.inputs import decode_picture
data = sys.stdin.buffer.read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode_picture(data, "init_image", max_pixels=40_000_000)
except ImageTooLarge:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_a_bomb_of_a_few_kilobytes_takes_no_memory(kind: str) -> None:
    # All of its 400 million pixels are there, in a few kilobytes of zeros packed twice.
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(b"\0" * 2501) for _ in range(20_000)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    data = data if kind == "png" else huge_webp()
    assert len(data) < 60_000
    done = subprocess.run([sys.executable, "-c", MEASURE], input=data, capture_output=True, check=True, timeout=60)
    assert int(done.stdout) < 30


def test_a_smaller_limit_is_obeyed_and_named() -> None:
    data = saved(Image.new("RGB", (101, 100)))
    with pytest.raises(ImageTooLarge, match="init_image has more than 10000 pixels"):
        decode_picture(data, "init_image", max_pixels=10_000)
    assert decode_picture(saved(Image.new("RGB", (100, 100))), "init_image", max_pixels=10_000).size == (100, 100)


def test_a_picture_of_another_size_is_scaled_by_lanczos() -> None:
    noise = np.random.default_rng(2).integers(0, 256, (50, 70, 3), np.uint8)
    expected = np.asarray(Image.fromarray(noise).resize((33, 47), Image.Resampling.LANCZOS))
    assert np.array_equal(scale_picture(noise, 33, 47), expected)
    assert scale_picture(noise, 70, 50) is noise


@pytest.mark.parametrize(("width", "height"), [(512, 512), (128, 128), (200, 333)])
def test_a_part_is_scaled_as_the_whole_is(width: int, height: int) -> None:
    painted = np.random.default_rng(5).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    part = (slice(height // 3, height - 7), slice(11, width // 2))
    whole = scale_picture(painted, width, height)[part].astype(int)
    assert np.abs(scale_part(painted, width, height, part) - whole).max() <= 1
