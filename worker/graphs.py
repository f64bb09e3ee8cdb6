"""CUDA graphs of a UNet: one for each number of rows and shape that was met while warming up.

A UNet of Stable Diffusion 1 is bound by the launching of its kernels; a graph launches them all at once.
Calls are padded to the next of a few numbers of rows, so that few graphs serve all of them. After warming up
none is built: a call whose shape has none is made as it is. So is every call with LoRAs on: a graph does again
what was captured, on the weights that were there, and knows of no hook.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

ROW_BUCKETS = (1, 2, 4, 6, 8, 12, 16)
WARM_CALLS = 3

Inputs = dict[str, torch.Tensor]
Key = tuple[tuple[str, tuple[int, ...]], ...]


class Capture(Protocol):
    """Records what `call` does and returns how to do it again, on the same tensors."""

    def __call__(self, call: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]: ...


def capture_cuda_graph(call: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
    """Source: PyTorch's notes on CUDA graphs: warmed up on a side stream, then captured."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # PyTorch's stubs lack it
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_CALLS):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads may load models and LoRAs meanwhile: what they ask of the device is none of the graph's.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        output = call()
    return graph.replay, output


class GraphedUNet:
    """Called as the UNet is. The engine's thread alone calls it.

    `warming` is True until `end_warm_up`: until then every new shape gets its graph. `is_adapted` says whether
    the UNet has LoRAs on.
    """

    def __init__(
        self, unet: Any, *, capture: Capture = capture_cuda_graph, is_adapted: Callable[[], bool] = lambda: False
    ) -> None:
        self._unet = unet
        self._capture = capture
        self._is_adapted = is_adapted
        self._graphs: dict[Key, tuple[Inputs, Callable[[], None], torch.Tensor]] = {}
        self.graphs_built = 0
        self.warming = True

    @property
    def unet(self) -> Any:
        return self._unet

    @property
    def config(self) -> Any:
        return self._unet.config

    def parameters(self) -> Any:
        return self._unet.parameters()

    def end_warm_up(self) -> None:
        self.warming = False

    def __call__(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        *,
        encoder_hidden_states: torch.Tensor,
        added_cond_kwargs: Mapping[str, torch.Tensor] | None = None,
        return_dict: bool = False,
    ) -> tuple[torch.Tensor]:
        """As the UNet's own; `return_dict` is taken as False."""
        rows = latents.shape[0]
        inputs = {"latents": latents, "timesteps": timesteps, "conditioning": encoder_hidden_states}
        inputs |= {f"added {name}": tensor for name, tensor in (added_cond_kwargs or {}).items()}
        if self._is_adapted():
            return (self._call(inputs),)
        padded = {name: _padded(tensor, bucket_of(rows)) for name, tensor in inputs.items()}
        key = tuple((name, tuple(tensor.shape)) for name, tensor in padded.items())
        if key not in self._graphs:
            if not self.warming or bucket_of(rows) > ROW_BUCKETS[-1]:
                return (self._call(inputs),)
            self._build(key, padded)
        held, replay, output = self._graphs[key]
        for name, tensor in padded.items():
            held[name].copy_(tensor)
        replay()
        # A copy: the next call writes over the graph's own output.
        return (output[:rows].clone(),)

    def _build(self, key: Key, padded: Inputs) -> None:
        held = {name: tensor.clone() for name, tensor in padded.items()}
        replay, output = self._capture(lambda: self._call(held))
        self._graphs[key] = held, replay, output
        self.graphs_built += 1

    def _call(self, inputs: Inputs) -> torch.Tensor:
        added = {name.removeprefix("added "): each for name, each in inputs.items() if name.startswith("added ")}
        noise: torch.Tensor = self._unet(
            inputs["latents"],
            inputs["timesteps"],
            encoder_hidden_states=inputs["conditioning"],
            added_cond_kwargs=added or None,
            return_dict=False,
        )[0]
        return noise


def bucket_of(rows: int) -> int:
    """The number of rows that a call of `rows` is padded to; itself above the largest bucket."""
    return next((bucket for bucket in ROW_BUCKETS if bucket >= rows), rows)


def _padded(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """With its last row repeated."""
    missing = rows - tensor.shape[0]
    if not missing:
        return tensor
    return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])])
