"""LoRAs on a model: what they add to its layers, put on and taken off without touching a weight."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
import torch
from torch.nn import Conv2d, Linear, Module
from torch.nn.functional import conv2d, linear

from storage.job import LoraUse
from worker.lora_files import TEXT_ENCODERS, UNET, BadLora, Lora, LowRank
from worker.versions import Version

log = structlog.get_logger(__name__)

# Trainers wrap the text encoder's layers by a name that the library no longer has.
OLD_TEXT_PREFIX = "text_model."
POINT_KERNEL = (1, 1)


@dataclass(frozen=True, eq=False)
class Addend:
    """What is added to one layer: `amount` times the low-rank change.

    `gain`, for a DoRA, by output: how much longer each row of the weights gets with the change.
    """

    low_rank: LowRank
    amount: float
    gain: torch.Tensor | None


Addends = tuple[Addend, ...]
# A use of a file that was as it was then: uses of what it has become since are others.
Wear = tuple[LoraUse, Version]


@dataclass(frozen=True, eq=False)
class LoraSet:
    """LoRAs that work together on one model. `layers`: what is added, and how much of it, to each of its layers.

    `uses` are in an order of their own: samples whose uses are equal may share a call. `text_uses` are those that
    change what prompts are encoded to.
    """

    uses: tuple[Wear, ...] = ()
    text_uses: tuple[Wear, ...] = ()
    layers: Mapping[Module, Addends] = field(default_factory=dict)


NO_LORAS = LoraSet()


@dataclass(frozen=True, eq=False)
class FittedLora:
    """One LoRA, its layers found in one model."""

    use: LoraUse
    version: Version
    layers: Mapping[Module, Addend]
    changes_texts: bool


def join_loras(loras: Sequence[FittedLora]) -> LoraSet:
    """The set of these, whose order is of no matter."""
    layers: dict[Module, list[Addend]] = defaultdict(list)
    ordered = sorted(loras, key=lambda each: (each.use.id, each.use.strength))
    for lora in ordered:
        for module, addend in lora.layers.items():
            layers[module].append(addend)
    return LoraSet(
        uses=tuple((lora.use, lora.version) for lora in ordered),
        text_uses=tuple((lora.use, lora.version) for lora in ordered if lora.changes_texts),
        layers={module: tuple(addends) for module, addends in layers.items()},
    )


class LoraHost:
    """The parts of one model that LoRAs change, and the set they have on.

    `fit` may be called from any thread, all else is the engine's. A hook on each layer concerned adds to what the
    layer gives. Without a set there is no hook: the model is what it was, bit for bit, whatever it has worn.
    """

    def __init__(self, parts: Mapping[str, Module] | None = None) -> None:
        self.parts: Mapping[str, Mapping[str, Module]] = {
            name: dict(part.named_modules()) for name, part in (parts or {}).items()
        }
        self._hooks: list[Any] = []
        self._worn = NO_LORAS
        self.switches = 0

    @property
    def worn(self) -> tuple[Wear, ...]:
        return self._worn.uses

    @property
    def adapts(self) -> bool:
        """Whether anything is on."""
        return bool(self._worn.uses)

    def fit(self, use: LoraUse, lora: Lora, version: Version) -> FittedLora:
        """Raises BadLora where it was not made for this model."""
        found: dict[Module, Addend] = {}
        strangers = 0
        for part, layers in lora.parts.items():
            for layer, low_rank in layers.items():
                module = self._module(part, layer)
                if module is None:
                    strangers += 1
                elif _fits(low_rank, module):
                    found[module] = _addend(low_rank, module, low_rank.scale * use.strength)
                else:
                    raise BadLora("it was made for another model: its layers are of other sizes")
        if strangers > len(found):
            raise BadLora("it was made for another family of models: most of its layers are not there")
        if strangers:
            log.warning("lora_layers_ignored", lora=use.id, ignored=strangers, used=len(found))
        return FittedLora(use, version, found, changes_texts=any(lora.parts.get(name) for name in TEXT_ENCODERS))

    def put_on(self, loras: LoraSet) -> None:
        """Instead of what is on."""
        if loras.uses == self._worn.uses:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks = [module.register_forward_hook(_adding(addends)) for module, addends in loras.layers.items()]
        self._worn = loras
        self.switches += 1

    def take_off(self, loras: LoraSet) -> None:
        """Let go of these, so that nothing here keeps them in memory."""
        if loras.uses and loras.uses == self._worn.uses:
            self.put_on(NO_LORAS)

    def _module(self, part: str, layer: str) -> Module | None:
        modules = self.parts.get(part, {})
        plain = layer.removeprefix(OLD_TEXT_PREFIX)
        names = (layer,) if part == UNET else (layer, plain, OLD_TEXT_PREFIX + plain)
        return next((modules[each] for each in names if each in modules), None)


def _fits(low_rank: LowRank, module: Module) -> bool:
    down, up = low_rank.down, low_rank.up
    if isinstance(module, Linear):
        expected: tuple[Any, ...] = ((module.in_features,), (module.out_features, down.shape[0]))
    elif isinstance(module, Conv2d) and module.groups == 1:
        inputs = (module.in_channels, *module.kernel_size)
        expected = (inputs, (module.out_channels, down.shape[0], *POINT_KERNEL))
    else:
        return False
    by_output = [each for each in (low_rank.bias, low_rank.magnitude) if each is not None]
    return (tuple(down.shape[1:]), tuple(up.shape)) == expected and all(
        tuple(each.shape) == (up.shape[0],) for each in by_output
    )


@torch.inference_mode()
def _addend(low_rank: LowRank, module: Any, amount: float) -> Addend:
    """Source of the gain: DoRA, Liu et al., equation 5."""
    if low_rank.magnitude is None:
        return Addend(low_rank, amount, None)
    change = low_rank.up.flatten(1).float() @ low_rank.down.flatten(1).float()
    lengths = torch.linalg.vector_norm(module.weight.flatten(1).float() + amount * change, dim=1)
    return Addend(low_rank, amount, (low_rank.magnitude.float() / lengths).to(low_rank.magnitude.dtype))


def _adding(addends: Addends) -> Callable[[Module, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]:
    """Source: LoRA, Hu et al., equation 3; the order of the operations is PEFT's."""

    def add(module: Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        for addend in addends:
            change = _change(addend.low_rank, module, inputs[0])
            if addend.gain is not None:
                output, change = _lengthened(output, change, module, addend.gain)
            output = torch.add(output, change, alpha=addend.amount)
        return output

    return add


def _lengthened(
    output: torch.Tensor, change: torch.Tensor, module: Any, gain: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both times the gain; the layer's own bias is left as it is."""
    by_channel = (-1, 1, 1) if isinstance(module, Conv2d) else (-1,)
    bias = 0 if module.bias is None else module.bias.view(by_channel)
    gain = gain.view(by_channel)
    return gain * (output - bias) + bias, gain * change


def _change(low_rank: LowRank, module: Module, given: torch.Tensor) -> torch.Tensor:
    if isinstance(module, Conv2d):
        inner = conv2d(given, low_rank.down, None, module.stride, module.padding, module.dilation)
        return conv2d(inner, low_rank.up, low_rank.bias)
    return linear(linear(given, low_rank.down), low_rank.up, low_rank.bias)
