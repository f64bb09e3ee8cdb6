"""Paintings for the engine's tests, the engine they run in, and the stock pipeline it is held against."""

from __future__ import annotations

import dataclasses
import functools
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from storage.model_catalog import ModelEntry
from tests.tiny_models import catalog_of
from worker.engine import Engine, Painting
from worker.loading import load_model, quieten_libraries
from worker.models import Load, ResidentModels

# diffusers 0.42.1 gives torch tensors to numpy in ways that numpy 2 will drop.
LIBRARY_WARNINGS = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:diffusers",
    "ignore:__array_wrap__ must accept context and return_scalar:DeprecationWarning",
)
SIZE = 64
CPU = torch.device("cpu")
load_on_cpu = functools.partial(
    load_model, device=CPU, dtype=torch.float32, prompt_cache_entries=16, picture_cache_bytes=2**20
)


def make_painting(model: str = "tiny", **changes: Any) -> Painting:
    """A painting of 64 x 64 whose mask lies on the latent grid of 8 x 8 pixels."""
    size = changes.pop("size", SIZE)
    ramp = np.linspace(0, 255, size, dtype=np.uint8)
    picture = np.stack(
        [np.tile(ramp, (size, 1)), np.tile(ramp[:, None], (1, size)), np.full((size, size), 90)], axis=-1
    )
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[16:-16, 8:-24] = 255
    painting = Painting(
        job_id="job",
        model=model,
        prompt="a red cat",
        negative_prompt="blue",
        picture=picture.astype(np.uint8),
        mask=mask,
        seeds=(7,),
        num_inference_steps=5,
        guidance_scale=4.0,
        strength=1.0,
        scheduler="DDIMScheduler",
    )
    return dataclasses.replace(painting, **changes)


class _ModelsWithoutFiles(ResidentModels):
    """For models that were never on a disk."""

    def _size_of(self, _entry: ModelEntry) -> int:
        return 0


@contextmanager
def running_engine(
    *entries: ModelEntry,
    max_batch: int = 8,
    load: Load = load_on_cpu,
    budget_bytes: int = 2**30,
    turn_seconds: float = 20.0,
    checks_files: bool = True,
    torch_threads: int = 1,
    **engine_settings: Any,
) -> Iterator[Engine]:
    models = (ResidentModels if checks_files else _ModelsWithoutFiles)(
        catalog_of(*entries), load, budget_bytes=budget_bytes, bytes_per_weight=4, turn_seconds=turn_seconds
    )
    engine = Engine(models, max_batch=max_batch, torch_threads=torch_threads, **engine_settings)
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


def paint_together(engine: Engine, paintings: Sequence[Painting]) -> list[list[NDArray[np.uint8]]]:
    """Paint all of them at once, each in its own thread, beginning at the same tick as far as can be."""
    barrier = threading.Barrier(len(paintings))

    def paint(painting: Painting) -> list[NDArray[np.uint8]]:
        barrier.wait()
        return engine.paint(painting)

    with ThreadPoolExecutor(len(paintings)) as threads:
        return list(threads.map(paint, paintings))


def load_stock(folder: Path) -> Any:
    quieten_libraries()
    saved_as = json.loads((folder / "model_index.json").read_text())["_class_name"]
    is_xl = saved_as.startswith("StableDiffusionXL")
    pipeline_class = diffusers.StableDiffusionXLInpaintPipeline if is_xl else diffusers.StableDiffusionInpaintPipeline
    pipeline = pipeline_class.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def paint_stock(
    pipeline: Any,
    pristine: Any,
    painting: Painting,
    *,
    on_latents: Callable[[torch.Tensor], None] | None = None,
    **arguments: Any,
) -> NDArray[np.uint8]:
    """The first picture of a painting by diffusers' own pipeline; `pristine` is its first scheduler config.

    `arguments`: what the call is given beside the painting's, or instead.
    """
    scheduler_class = getattr(diffusers, painting.scheduler)
    asked: dict[str, Any] = {"use_karras_sigmas": True} if painting.use_karras_sigmas else {}
    if painting.algorithm_type is not None:
        asked["algorithm_type"] = painting.algorithm_type
    pipeline.scheduler = scheduler_class.from_config(pristine, **asked)

    def at_step_end(_pipeline: Any, _step: int, _timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        if on_latents is not None:
            on_latents(tensors["latents"])
        return {}

    height, width = painting.mask.shape
    texts = {"prompt": painting.prompt, "negative_prompt": painting.negative_prompt or None}
    image = pipeline(
        **(texts | arguments),
        image=Image.fromarray(painting.picture),
        mask_image=Image.fromarray(painting.mask),
        height=height,
        width=width,
        strength=painting.strength,
        num_inference_steps=painting.num_inference_steps,
        guidance_scale=painting.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(painting.seeds[0]),
        callback_on_step_end=at_step_end,
    ).images[0]
    return np.asarray(image)


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Peak signal to noise in decibels; infinite for equal pictures."""
    error = np.mean((one.astype(float) - other.astype(float)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
