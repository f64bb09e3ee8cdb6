"""Prompts to conditioning: what the UNet is told about the picture."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from storage.job import WeightedPrompt


@dataclass(frozen=True, eq=False)
class Conditioning:
    """An encoded text. `hidden` is (1, tokens, width); `pooled` (1, width) is there for Stable Diffusion XL."""

    hidden: torch.Tensor
    pooled: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class TextTower:
    """A tokenizer and its text encoder."""

    tokenizer: Any
    encoder: Any

    def tokens(self, text: str) -> Any:
        """Text beyond the window is cut."""
        return self.tokenizer(
            text,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )


class PromptEncoder:
    """One model's text encoders (one, or the two of XL), and the encodings of the last texts. One thread only.

    `zeros_for_empty`: XL models say so where an absent negative prompt is zeros, not the encoding of "".
    """

    def __init__(self, towers: Sequence[TextTower], *, cache_entries: int, zeros_for_empty: bool = False) -> None:
        self.towers = tuple(towers)
        self._cache_entries = cache_entries
        self._zeros_for_empty = zeros_for_empty
        self._cache: OrderedDict[tuple[Hashable, str], Conditioning] = OrderedDict()
        self.encodes = 0
        self.worn: Hashable = ()
        """What is on the text encoders (LoRAs): encodings made under something else are others."""

    def encode(self, text: str) -> Conditioning:
        """In the text encoders' type and on their device."""
        key = (self.worn, text)
        known = self._cache.get(key)
        if known is not None:
            self._cache.move_to_end(key)
            return known
        self.encodes += 1
        encoding = self._encode_one(text) if len(self.towers) == 1 else self._encode_both(text)
        self._cache[key] = encoding
        while len(self._cache) > self._cache_entries:
            self._cache.popitem(last=False)
        return encoding

    def encode_mean(self, prompts: Sequence[WeightedPrompt]) -> Conditioning:
        """The mean of the texts' encodings by weight, of the same shape. The weights must have one sign."""
        total = sum(each.weight for each in prompts)
        parts = [(each.weight / total, self.encode(each.text)) for each in prompts]
        if len(parts) == 1:
            return parts[0][1]
        hidden = torch.stack([share * part.hidden for share, part in parts]).sum(dim=0)
        pooled = [share * part.pooled for share, part in parts if part.pooled is not None]
        return Conditioning(hidden, torch.stack(pooled).sum(dim=0) if pooled else None)

    def encode_negative(self, text: str, like: Conditioning) -> Conditioning:
        """The same for a negative prompt; `like` is that of the prompt."""
        if text or not self._zeros_for_empty:
            return self.encode(text)
        pooled = None if like.pooled is None else torch.zeros_like(like.pooled)
        return Conditioning(torch.zeros_like(like.hidden), pooled)

    def _encode_one(self, text: str) -> Conditioning:
        [tower] = self.towers
        tokens, encoder = tower.tokens(text), tower.encoder
        attends = getattr(encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(encoder.device) if attends else None
        hidden: torch.Tensor = encoder(tokens.input_ids.to(encoder.device), attention_mask=mask)[0]
        return Conditioning(hidden.to(encoder.dtype))

    def _encode_both(self, text: str) -> Conditioning:
        """Source: StableDiffusionXLInpaintPipeline.encode_prompt: the layer before each one's last, side by side."""
        outputs = [
            tower.encoder(tower.tokens(text).input_ids.to(tower.encoder.device), output_hidden_states=True)
            for tower in self.towers
        ]
        hidden = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return Conditioning(hidden, outputs[-1][0])
