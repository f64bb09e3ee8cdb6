"""Prompts to conditioning: what the UNet is told about the picture."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch

from storage.job import WeightedPrompt


class PromptEncoder:
    """One model's tokenizer and text encoder, and the encodings of the last texts. One thread only."""

    def __init__(self, tokenizer: Any, text_encoder: Any, *, cache_entries: int) -> None:
        self._tokenizer = tokenizer
        self._text_encoder = text_encoder
        self._cache_entries = cache_entries
        self._cache: OrderedDict[str, torch.Tensor] = OrderedDict()
        self.encodes = 0

    def encode(self, text: str) -> torch.Tensor:
        """(1, tokens, width), in the text encoder's type and on its device. Text beyond the window is cut."""
        known = self._cache.get(text)
        if known is not None:
            self._cache.move_to_end(text)
            return known
        encoding = self._encode(text)
        self._cache[text] = encoding
        while len(self._cache) > self._cache_entries:
            self._cache.popitem(last=False)
        return encoding

    def encode_mean(self, prompts: Sequence[WeightedPrompt]) -> torch.Tensor:
        """The mean of the texts' encodings by weight, of the same shape. The weights must have one sign."""
        total = sum(each.weight for each in prompts)
        parts = [each.weight / total * self.encode(each.text) for each in prompts]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(dim=0)

    def _encode(self, text: str) -> torch.Tensor:
        self.encodes += 1
        encoder = self._text_encoder
        tokens = self._tokenizer(
            text,
            padding="max_length",
            max_length=self._tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        attends = getattr(encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(encoder.device) if attends else None
        hidden: torch.Tensor = encoder(tokens.input_ids.to(encoder.device), attention_mask=mask)[0]
        return hidden.to(encoder.dtype)
