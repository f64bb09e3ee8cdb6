"""Prompts to conditioning: what the UNet is told about the picture."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from storage.job import WeightedPrompt
from worker.errors import PromptTooLong
from worker.inversions import Inversion, giving_vectors
from worker.weighting import split_by_weight
from worker.windows import MAX_WINDOWS, Window, make_windows


@dataclass(frozen=True, eq=False)
class Conditioning:
    """An encoded text. `hidden` is (1, tokens, width); `pooled` (1, width) is there for Stable Diffusion XL."""

    hidden: torch.Tensor
    pooled: torch.Tensor | None = None


@dataclass(frozen=True)
class Reading:
    """How a text is read, beside its words.

    `clip_skip`: how many of the text encoder's last layers are left out, in diffusers' count; None: as the
    model was trained. `inversions`: what some words of the text stand for.
    """

    clip_skip: int | None = None
    inversions: tuple[Inversion, ...] = ()


PLAIN = Reading()


@dataclass(frozen=True, eq=False)
class TextTower:
    """A tokenizer and its text encoder."""

    tokenizer: Any
    encoder: Any

    @property
    def num_layers(self) -> int:
        return int(self.encoder.config.num_hidden_layers)

    @property
    def window_tokens(self) -> int:
        """What the encoder reads at once, the marks of start and end among it."""
        return int(self.tokenizer.model_max_length)

    def empty_window(self) -> Window:
        [window] = make_windows([], self.tokenizer, self.window_tokens)
        return window


class PromptEncoder:
    """One model's text encoders (one, or the two of XL), and the encodings of the last texts. One thread only.

    `cache_entries`: texts of one window; longer ones count as several. `zeros_for_empty`: XL models say so where an
    absent negative prompt is zeros, not the encoding of "".
    """

    def __init__(self, towers: Sequence[TextTower], *, cache_entries: int, zeros_for_empty: bool = False) -> None:
        self.towers = tuple(towers)
        self._cache_entries = cache_entries
        self._zeros_for_empty = zeros_for_empty
        self._cache: OrderedDict[tuple[Hashable, str, Reading], Conditioning] = OrderedDict()
        self._cached_tokens = 0
        self.encodes = 0
        self.worn: Hashable = ()
        """What is on the text encoders (LoRAs): encodings made under something else are others."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Of a token's vector, for each text encoder."""
        return tuple(int(tower.encoder.config.hidden_size) for tower in self.towers)

    @property
    def max_clip_skip(self) -> int:
        """The most that can be left out. XL leaves one layer out always."""
        return min(tower.num_layers for tower in self.towers) - (len(self.towers) > 1)

    def encode(self, text: str, reading: Reading = PLAIN) -> Conditioning:
        """In the text encoders' type and on their device; as long as the text needs, in whole windows.

        Brackets are weights, see weighting.split_by_weight. Raises PromptTooLong.
        """
        key = (self.worn, text, reading)
        known = self._cache.get(key)
        if known is not None:
            self._cache.move_to_end(key)
            return known
        self.encodes += 1
        encoding = self._encode(text, reading)
        self._cache[key] = encoding
        self._cached_tokens += encoding.hidden.shape[1]
        while self._cached_tokens > self._cache_entries * self._window_tokens:
            _, dropped = self._cache.popitem(last=False)
            self._cached_tokens -= dropped.hidden.shape[1]
        return encoding

    def encode_mean(self, prompts: Sequence[WeightedPrompt], reading: Reading = PLAIN) -> Conditioning:
        """The mean of the texts' encodings by weight, as long as the longest. The weights must have one sign.

        Raises PromptTooLong, where they are too long together.
        """
        total = sum(each.weight for each in prompts)
        shares = [each.weight / total for each in prompts]
        parts: list[Conditioning] = []
        for each in prompts:
            parts.append(self.encode(each.text, reading))
            if len(parts) > 1 and sum(part.hidden.shape[1] for part in parts) > MAX_WINDOWS * self._window_tokens:
                raise PromptTooLong
        if len(parts) == 1:
            return parts[0]
        longest = max(part.hidden.shape[1] for part in parts)
        parts = [self.lengthen(part, longest, reading) for part in parts]
        hidden = torch.stack([share * part.hidden for share, part in zip(shares, parts, strict=True)]).sum(dim=0)
        pooled = [share * part.pooled for share, part in zip(shares, parts, strict=True) if part.pooled is not None]
        return Conditioning(hidden, torch.stack(pooled).sum(dim=0) if pooled else None)

    def encode_negative(self, text: str, like: Conditioning, reading: Reading = PLAIN) -> Conditioning:
        """The same for a negative prompt; `like` is that of the prompt. Raises PromptTooLong."""
        if text or not self._zeros_for_empty:
            return self.encode(text, reading)
        pooled = None if like.pooled is None else torch.zeros_like(like.pooled)
        return Conditioning(torch.zeros_like(like.hidden), pooled)

    def lengthen(self, encoding: Conditioning, tokens: int, reading: Reading = PLAIN) -> Conditioning:
        """With windows that hold no words behind it, to the length asked for (as that of another encoding)."""
        missing = tokens - encoding.hidden.shape[1]
        if missing <= 0:
            return encoding
        empty = self.encode("", reading).hidden
        return Conditioning(
            torch.cat([encoding.hidden, *[empty] * (missing // empty.shape[1])], dim=1), encoding.pooled
        )

    @property
    def _window_tokens(self) -> int:
        return max(tower.window_tokens for tower in self.towers)

    def _encode(self, text: str, reading: Reading) -> Conditioning:
        fragments = split_by_weight(text)
        windows_of = [
            make_windows(fragments, tower.tokenizer, tower.window_tokens, reading.inversions, index)
            for index, tower in enumerate(self.towers)
        ]
        count = max(len(windows) for windows in windows_of)
        hidden, pooled = [], None
        for tower, windows in zip(self.towers, windows_of, strict=True):
            empty = tower.empty_window()
            encoded, pooled = self._run(tower, [*windows, *[empty] * (count - len(windows))], reading)
            if any(window.is_weighted for window in windows):
                encoded = _weighted(encoded, self._run(tower, [empty], reading)[0], windows)
            hidden.append(encoded.reshape(1, -1, encoded.shape[-1]))
        # As the stock pipeline has it: the last encoder's; of a long text the first window's.
        return Conditioning(torch.cat(hidden, dim=-1), None if pooled is None else pooled[:1])

    def _run(
        self, tower: TextTower, windows: Sequence[Window], reading: Reading
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(windows, tokens, width), and of XL (windows, width).

        Source: encode_prompt of the two stock pipelines. XL takes the layer before the last, not normed.
        """
        encoder = tower.encoder
        ids = torch.tensor([window.ids for window in windows], device=encoder.device)
        mask = torch.tensor([window.attended for window in windows], device=encoder.device)
        with giving_vectors(encoder, windows):
            if len(self.towers) > 1:
                output = encoder(ids, output_hidden_states=True)
                return output.hidden_states[-2 - (reading.clip_skip or 0)], output[0]
            attention = {"attention_mask": mask if getattr(encoder.config, "use_attention_mask", False) else None}
            if reading.clip_skip is None:
                return encoder(ids, **attention)[0].to(encoder.dtype), None
            output = encoder(ids, **attention, output_hidden_states=True)
        # Some versions of transformers have the layers one level down.
        norm = getattr(encoder, "text_model", encoder).final_layer_norm
        return norm(output.hidden_states[-1 - reading.clip_skip]), None


def _weighted(encoded: torch.Tensor, empty: torch.Tensor, windows: Sequence[Window]) -> torch.Tensor:
    """Every token's encoding moved from that of no text at all, by its weight.

    Source: compel 2.5.1, EmbeddingsProvider.build_weighted_embedding_tensor.
    """
    rows = [window.weights for window in windows]
    weights = torch.ones(encoded.shape[:2], dtype=torch.float32)
    weights[: len(rows)] = torch.tensor(rows, dtype=torch.float32)
    weights = weights.to(encoded.device)[..., None]
    moved = torch.lerp(empty.float(), encoded.float(), weights).to(encoded.dtype)
    return torch.where(weights == 1, encoded, moved)
