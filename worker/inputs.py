"""The pictures of a job: read from where its references point, bounded before decoding, brought to one form."""

from __future__ import annotations

import io
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from storage.image_store import ImageStore, ObjectMissing
from storage.job import OBJECT_REFERENCE, RESULT_REFERENCE, InpaintJob
from storage.job_store import JobStore
from storage.outbound import OutboundDoor, OutboundFailed, OutboundReason, OutboundRefused
from worker.errors import ImageTooLarge, InputRefused, InputTooLarge, InputUnreachable, JobFailed, NotAnImage, TimedOut
from worker.masks import KEEP, REPAINT, normal_form, scale_mask
from worker.settings import WorkerSettings

INIT_IMAGE, MASK_IMAGE, LOOK_IMAGE = "init_image", "mask_image", "ip_adapter_image"
MAX_LOOK_SIDE = 1024
FORMATS = ("PNG", "JPEG", "WEBP")
JPEG_NOISE = 24  # gray levels; a drawn mask saved with quality 85 shows up to 21 around its strokes
WHITE, BLACK = (255, 255, 255), (0, 0, 0)

_EXIF_ORIENTATION = 0x0112
# EXIF 2.32, 4.6.4: what turns the stored picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_16_BIT = 65535
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH_AT = 24
# A large picture takes ten bytes a pixel while it is decoded: this many at a time are.
_DECODING = threading.BoundedSemaphore(2)

# Larger than Pillow's own limit is refused, whatever the settings say.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


@dataclass(frozen=True)
class Sources:
    """Where references lead, and the limits for what lies there."""

    images: ImageStore
    jobs: JobStore
    door: OutboundDoor
    settings: WorkerSettings


@dataclass(frozen=True)
class Inputs:
    """What a job repaints, at the size asked for."""

    picture: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    mask: NDArray[np.uint8]
    """(H, W), 255 = repaint .. 0 = keep."""
    original_width: int
    original_height: int
    look: NDArray[np.uint8] | None = None
    """(H, W, 3) RGB, with its own sides: the picture for the IP-adapter."""

    @property
    def width(self) -> int:
        return int(self.picture.shape[1])

    @property
    def height(self) -> int:
        return int(self.picture.shape[0])


def open_inputs(job: InpaintJob, sources: Sources, *, deadline: float | None = None) -> Inputs:
    """Fetch, decode and scale the pictures; `deadline` is a time.monotonic().

    Raises JobFailed, with the field at fault, and StorageUnavailable.
    """
    limit = sources.settings.max_input_pixels
    data = read_reference(job.init_image, INIT_IMAGE, sources, deadline=deadline)
    image = decode_picture(data, INIT_IMAGE, max_pixels=limit)
    width, height = job.width or image.width, job.height or image.height
    picture = scale_picture(np.asarray(image), width, height)
    data = read_reference(job.mask_image, MASK_IMAGE, sources, deadline=deadline)
    gray = decode_mask(data, MASK_IMAGE, max_pixels=limit)
    mask = scale_mask(normal_form(gray, job.mask_paints), width, height)
    look = None
    if job.ip_adapter is not None:
        data = read_reference(job.ip_adapter.image, LOOK_IMAGE, sources, deadline=deadline)
        look = _small(decode_picture(data, LOOK_IMAGE, max_pixels=limit))
    return Inputs(picture=picture, mask=mask, original_width=image.width, original_height=image.height, look=look)


def _small(image: Image.Image) -> NDArray[np.uint8]:
    """An image encoder sees a few hundred pixels a side: no job holds more than several times as many."""
    image.thumbnail((MAX_LOOK_SIDE, MAX_LOOK_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(image)


def read_reference(reference: str, field: str, sources: Sources, *, deadline: float | None = None) -> bytes:
    """The bytes behind a reference: an http(s) URL, `object:KEY` or `result:IMAGE_ID-K`."""
    if reference.startswith(OBJECT_REFERENCE):
        data = _read_object(reference.removeprefix(OBJECT_REFERENCE), field, sources)
    elif reference.startswith(RESULT_REFERENCE):
        data = _read_object(_result_key(reference.removeprefix(RESULT_REFERENCE), field, sources), field, sources)
    else:
        data = _fetch(reference, field, sources, deadline)
    if len(data) > sources.settings.max_input_bytes:
        raise _too_many_bytes(field, sources)
    return data


def _read_object(key: str, field: str, sources: Sources) -> bytes:
    try:
        return sources.images.get(key)
    except (ObjectMissing, ValueError) as error:
        raise InputUnreachable(f"The picture of {field} is no longer stored.", field=field) from error


def _result_key(name: str, field: str, sources: Sources) -> str:
    image_id, _, index = name.rpartition("-")
    job = sources.jobs.by_image_id(image_id)
    images = job.images if job else ()
    if not index.isdecimal() or int(index) >= len(images):
        raise InputUnreachable(f"{field} names a result that is not there.", field=field)
    return images[int(index)].key


def _fetch(url: str, field: str, sources: Sources, deadline: float | None) -> bytes:
    seconds = sources.settings.fetch_timeout_seconds
    if deadline is not None:
        seconds = min(seconds, deadline - time.monotonic())
    if seconds <= 0:
        raise TimedOut
    try:
        fetched = sources.door.get(url, max_bytes=sources.settings.max_input_bytes, timeout_seconds=seconds)
    except OutboundRefused as error:
        raise InputRefused(f"{field} cannot be fetched: {error}.", field=field) from error
    except OutboundFailed as error:
        if error.reason is OutboundReason.TOO_LARGE:
            raise _too_many_bytes(field, sources) from error
        raise InputUnreachable(f"{field} cannot be fetched: {error}.", field=field) from error
    return fetched.data


def _too_many_bytes(field: str, sources: Sources) -> InputTooLarge:
    return InputTooLarge(f"{field} is larger than {sources.settings.max_input_bytes} bytes.", field=field)


def decode_picture(data: bytes, field: str, *, max_pixels: int) -> Image.Image:
    """Upright, 8-bit RGB, transparent parts over white. Colour profiles are ignored.

    Raises NotAnImage and ImageTooLarge.
    """
    with _decoded(data, field, max_pixels) as image:
        return _upright(_flattened(image, data, WHITE), image)


def decode_mask(data: bytes, field: str, *, max_pixels: int) -> NDArray[np.uint8]:
    """Upright and gray (H, W), transparent parts over black. Raises as decode_picture does.

    JPEG leaves traces around every edge: there, nearly black and nearly white are meant as black and white.
    """
    with _decoded(data, field, max_pixels) as image:
        gray = np.asarray(_upright(_flattened(image, data, BLACK).convert("L"), image))
        if image.format != "JPEG":
            return gray
    gray = np.where(gray <= JPEG_NOISE, KEEP, gray)
    return np.where(gray >= REPAINT - JPEG_NOISE, REPAINT, gray).astype(np.uint8)


def scale_picture(picture: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """(H, W, 3) at another size, by Lanczos."""
    if (picture.shape[1], picture.shape[0]) == (width, height):
        return picture
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


def scale_part(picture: NDArray[np.uint8], width: int, height: int, part: tuple[slice, slice]) -> NDArray[np.uint8]:
    """Rows and columns `part` of what scale_picture would give."""
    rows, columns = part
    from_width, from_height = picture.shape[1] / width, picture.shape[0] / height
    if (from_width, from_height) == (1, 1):
        return picture[part]
    box = (columns.start * from_width, rows.start * from_height, columns.stop * from_width, rows.stop * from_height)
    size = (columns.stop - columns.start, rows.stop - rows.start)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS, box=box))


@contextmanager
def _decoded(data: bytes, field: str, max_pixels: int) -> Iterator[Image.Image]:
    """The first frame. Its size is read from the header and checked before any pixel is."""
    try:
        with _DECODING, Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise _too_many_pixels(field, max_pixels)
            image.load()
            yield image
    except JobFailed:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels(field, max_pixels) from error
    except UnidentifiedImageError as error:
        raise NotAnImage(f"{field} is not a PNG, JPEG or WebP picture.", field=field) from error
    except Exception as error:  # on damaged files Pillow's decoders raise whatever they like
        raise NotAnImage(f"{field} is damaged or cut short and cannot be decoded.", field=field) from error


def _too_many_pixels(field: str, max_pixels: int) -> ImageTooLarge:
    return ImageTooLarge(f"{field} has more than {max_pixels} pixels.", field=field)


def _upright(image: Image.Image, opened: Image.Image) -> Image.Image:
    try:
        orientation = opened.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # noqa: BLE001 - unreadable EXIF data says nothing, and Pillow raises whatever it likes
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _flattened(image: Image.Image, data: bytes, ground: tuple[int, int, int]) -> Image.Image:
    """8-bit RGB over an even ground."""
    if image.mode.startswith("I"):
        image = _from_16_bit_gray(image)
    elif "transparency" in image.info and image.mode in ("L", "RGB"):
        image.info["transparency"] = _in_8_bits(image.info["transparency"], data)
    if not image.has_transparency_data:
        return image.convert("RGB")
    colours = image.convert("RGBA")
    flat = Image.new("RGB", image.size, ground)
    flat.paste(colours, mask=colours.getchannel("A"))
    return flat


def _from_16_bit_gray(image: Image.Image) -> Image.Image:
    """Pillow's own conversion clips everything above 255 to white; of 16-bit colours it takes the high byte."""
    values = np.asarray(image).astype(np.uint32)
    gray = Image.fromarray(((values * 255 + _16_BIT // 2) // _16_BIT).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is None:
        return gray
    gray.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return gray


def _in_8_bits(transparent: int | tuple[int, ...], data: bytes) -> int | tuple[int, ...]:
    """A PNG's transparent colour is in the file's own depth, where Pillow compares it with 8-bit values."""
    depth = data[_PNG_DEPTH_AT] if data.startswith(_PNG_SIGNATURE) else 8
    samples = transparent if isinstance(transparent, tuple) else (transparent,)
    scaled = tuple(sample >> 8 if depth > 8 else sample * 255 // (2**depth - 1) for sample in samples)  # noqa: PLR2004 - bits
    return scaled if isinstance(transparent, tuple) else scaled[0]
