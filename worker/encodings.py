"""Pictures encoded by a model's VAE, kept by the hash of their content: the same picture is encoded once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch


class PictureEncodings:
    """The last encodings of one model, in `capacity_bytes` at most. One thread only.

    What is kept is the distribution that the VAE gives, before anything is drawn from it: the result of a
    job does not depend on what was kept.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._kept: OrderedDict[bytes, Any] = OrderedDict()
        self._held_bytes = 0
        self.encodes = 0

    @property
    def held_bytes(self) -> int:
        return self._held_bytes

    def get(self, key: bytes, encode: Callable[[], Any]) -> Any:
        """The encoding known under `key` (a hash of the picture), or a new one."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        self.encodes += 1
        encoding = encode()
        self._kept[key] = encoding
        self._held_bytes += _size_bytes(encoding)
        while self._held_bytes > self._capacity_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._held_bytes -= _size_bytes(dropped)
        return encoding


def _size_bytes(encoding: Any) -> int:
    tensors = [encoding] if isinstance(encoding, torch.Tensor) else vars(encoding).values()
    return sum(each.element_size() * each.nelement() for each in tensors if isinstance(each, torch.Tensor))
