"""Results as PNG files: encoded fast, with the parameters that made them in a text chunk."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

PARAMETERS_KEYWORD = "parameters"

# Measured on photographs of 512 and 1024 pixels against Pillow's default: 6.6 to 10.8 times faster at 1.05
# to 1.09 times the size. Without runs, though, a flat drawing becomes ten times as large; hence the second,
# 4.3 to 7.7 times faster at 1.01 to 1.04 times the size, for pictures with flat parts.
_FOR_PHOTOGRAPHS = (cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY, cv2.IMWRITE_PNG_FILTER_AVG)
_FOR_DRAWINGS = (cv2.IMWRITE_PNG_STRATEGY_RLE, cv2.IMWRITE_PNG_FILTER_PAETH)
_FLAT_SHARE = 0.2
_ROWS_LOOKED_AT = 16  # every so many
# The signature (8) and the header chunk (length 4, name 4, data 13, CRC 4): PNG specification, 5.2 and 11.2.2.
_HEADER_BYTES = 8 + 4 + 4 + 13 + 4


def encode_png(picture: NDArray[np.uint8], parameters: Mapping[str, Any]) -> bytes:
    """A lossless PNG of `picture` (H, W, 3 RGB); `parameters` become JSON under the keyword `parameters`."""
    encoded, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), _options(picture))
    if not encoded:
        raise ValueError(f"a picture of shape {picture.shape} cannot be encoded")
    png = data.tobytes()
    text = json.dumps(dict(parameters), ensure_ascii=False)
    return png[:_HEADER_BYTES] + _text_chunk(PARAMETERS_KEYWORD, text) + png[_HEADER_BYTES:]


def _options(picture: NDArray[np.uint8]) -> list[int]:
    rows = picture[::_ROWS_LOOKED_AT]
    flat = (rows[:, 1:] == rows[:, :-1]).all(axis=-1)
    is_drawing = not flat.size or flat.mean() > _FLAT_SHARE
    strategy, row_filter = _FOR_DRAWINGS if is_drawing else _FOR_PHOTOGRAPHS
    return [
        cv2.IMWRITE_PNG_COMPRESSION,
        1,
        cv2.IMWRITE_PNG_STRATEGY,
        strategy,
        cv2.IMWRITE_PNG_FILTER,
        row_filter,
    ]


def _text_chunk(keyword: str, text: str) -> bytes:
    """An uncompressed iTXt chunk without language: PNG specification, 11.3.3.4."""
    # A lone surrogate, which JSON can carry in, has no UTF-8 form.
    data = keyword.encode("latin-1") + b"\0\0\0\0\0" + text.encode("utf-8", errors="replace")
    body = b"iTXt" + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
