"""The engine against diffusers' own inpainting pipeline: the same job, the same seed, the same picture."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from storage.schedulers import SCHEDULERS
from tests.painting import (
    LIBRARY_WARNINGS,
    load_on_cpu,
    load_stock,
    make_painting,
    paint_stock,
    paint_together,
    psnr,
    running_engine,
)
from tests.tiny_models import make_tiny_model, tiny_entry
from worker.engine import Engine
from worker.sample import begin_samples, predict_noise

pytestmark = LIBRARY_WARNINGS

MODELS = [f"sd{channels}-{prediction}" for channels in (9, 4) for prediction in ("epsilon", "v_prediction")]
SAMPLINGS = [{"scheduler": name, "use_karras_sigmas": False} for name in SCHEDULERS] + [
    {"scheduler": name, "use_karras_sigmas": True} for name, facts in SCHEDULERS.items() if facts.honours_karras
]
SAMPLING_IDS = [f"{sampling['scheduler']}-{sampling['use_karras_sigmas']}" for sampling in SAMPLINGS]
ASKED = [
    {"strength": strength, "guidance_scale": guidance}
    for strength, guidance in itertools.product((1.0, 0.6), (1.0, 4.0))
]
BATCHED_PSNR = 50
LATENT_TOLERANCE = 1e-4

Sampling = dict[str, Any]
Asked = dict[str, float]
Stock = dict[str, tuple[Any, Any]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.getbasetemp() / "tiny-models"
    return {
        f"sd{channels}-{prediction}": make_tiny_model(base, channels=channels, prediction_type=prediction)
        for channels, prediction in itertools.product((9, 4), ("epsilon", "v_prediction"))
    }


@pytest.fixture(scope="module")
def engine(folders: dict[str, Path]) -> Iterator[Engine]:
    with running_engine(*(tiny_entry(name, folder) for name, folder in folders.items())) as engine:
        yield engine


@pytest.fixture(scope="module")
def stock(folders: dict[str, Path]) -> Stock:
    pipelines = {name: load_stock(folder) for name, folder in folders.items()}
    return {name: (pipeline, pipeline.scheduler.config) for name, pipeline in pipelines.items()}


@pytest.mark.parametrize("asked", ASKED, ids=str)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=SAMPLING_IDS)
@pytest.mark.parametrize("model", MODELS)
def test_a_job_alone_gives_the_stock_pipelines_picture(
    engine: Engine, stock: Stock, model: str, sampling: Sampling, asked: Asked
) -> None:
    painting = make_painting(model, **sampling, **asked)
    expected = paint_stock(*stock[model], painting)
    painted = engine.paint(painting)[0]
    assert expected.std() > 10, "a flat picture would prove nothing"
    assert np.abs(painted.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=SAMPLING_IDS)
@pytest.mark.parametrize("model", ["sd9-epsilon", "sd4-v_prediction"])
def test_every_step_gives_the_stock_pipelines_latents(
    folders: dict[str, Path], stock: Stock, model: str, sampling: Sampling
) -> None:
    painting = make_painting(model, **sampling, strength=0.8)
    expected: list[torch.Tensor] = []
    paint_stock(*stock[model], painting, on_latents=lambda latents: expected.append(latents.clone()))
    with torch.inference_mode():
        [sample] = begin_samples(load_on_cpu(tiny_entry(model, folders[model])), painting)
        for latents in expected:
            sample.advance(predict_noise([sample])[0])
            torch.testing.assert_close(sample.latents, latents, atol=LATENT_TOLERANCE, rtol=0)
    assert sample.finished


@pytest.mark.parametrize("model", MODELS)
def test_a_job_batched_with_strangers_gives_the_picture_it_gives_alone(engine: Engine, model: str) -> None:
    paintings = [
        make_painting(
            model,
            job_id=f"job-{index}",
            prompt=prompt,
            seeds=(100 + index,),
            scheduler=scheduler,
            num_inference_steps=4 + index,
            strength=1.0 if index % 2 else 0.7,
            guidance_scale=1.0 if index == 2 else 3.0 + index,
        )
        for index, (prompt, scheduler) in enumerate(
            zip(["a red cat", "a blue dog", "", "the circle", "white on white"], SCHEDULERS, strict=True)
        )
    ]
    alone = [engine.paint(painting)[0] for painting in paintings]
    together = paint_together(engine, paintings)
    for one, [other] in zip(alone, together, strict=True):
        assert psnr(one, other) >= BATCHED_PSNR
    assert min(psnr(one, other) for one, other in itertools.combinations(alone, 2)) < BATCHED_PSNR / 2


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerAncestralDiscreteScheduler"])
@pytest.mark.parametrize("model", ["sd9-epsilon", "sd4-epsilon"])
def test_picture_k_of_a_job_is_the_picture_of_its_own_seed(engine: Engine, model: str, scheduler: str) -> None:
    painting = make_painting(model, scheduler=scheduler, seeds=(50, 51, 52), strength=0.7)
    pictures = engine.paint(painting)
    for seed, picture in zip(painting.seeds, pictures, strict=True):
        [alone] = engine.paint(make_painting(model, scheduler=scheduler, seeds=(seed,), strength=0.7))
        assert psnr(alone, picture) >= BATCHED_PSNR
    assert psnr(pictures[0], pictures[1]) < BATCHED_PSNR / 2


def test_the_same_job_twice_gives_the_same_bytes(engine: Engine) -> None:
    painting = make_painting("sd9-epsilon", seeds=(3, 4))
    assert np.array_equal(engine.paint(painting), engine.paint(painting))


@pytest.mark.parametrize("model", ["sd9-epsilon", "sd4-epsilon"])
def test_a_strength_too_small_for_one_step_makes_one_step(engine: Engine, stock: Stock, model: str) -> None:
    painted = engine.paint(make_painting(model, strength=0.0))[0]
    one_step = paint_stock(*stock[model], make_painting(model, strength=0.2))
    assert np.abs(painted.astype(int) - one_step).max() <= 1


def test_a_stroke_thinner_than_a_patch_is_painted(engine: Engine, stock: Stock) -> None:
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[33, :] = 255
    empty = make_painting("sd4-epsilon", mask=np.zeros_like(mask))
    stroke = make_painting("sd4-epsilon", mask=mask)
    nothing = engine.paint(empty)[0]
    assert np.array_equal(paint_stock(*stock["sd4-epsilon"], stroke), paint_stock(*stock["sd4-epsilon"], empty))
    assert np.abs(engine.paint(stroke)[0].astype(int) - nothing)[32:40].max() > 10
