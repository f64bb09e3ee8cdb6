"""The engine against diffusers' own inpainting pipeline: the same job, the same seed, the same picture."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from storage.model_catalog import ModelEntry
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
from worker.preparing import begin_samples
from worker.sample import predict_noise

pytestmark = LIBRARY_WARNINGS

MODELS = [
    f"{family}{channels}-{prediction}"
    for family in ("sd", "sdxl")
    for channels in (9, 4)
    for prediction in ("epsilon", "v_prediction")
]
SAMPLINGS: list[dict[str, Any]] = [
    *({"scheduler": name} for name in SCHEDULERS),
    *({"scheduler": name, "use_karras_sigmas": True} for name, facts in SCHEDULERS.items() if facts.honours_karras),
    *(
        {"scheduler": name, "algorithm_type": kind}
        for name, facts in SCHEDULERS.items()
        for kind in facts.algorithm_types[1:]
    ),
]
ASKED = [
    {"strength": strength, "guidance_scale": guidance}
    for strength, guidance in itertools.product((1.0, 0.6), (1.0, 4.0))
]
WHOLE_MATRIX = bool(os.environ.get("WHOLE_EQUALITY_MATRIX"))


def combinations() -> Iterator[Any]:
    """Every scheduler with every family and number of channels; WHOLE_EQUALITY_MATRIX=1: with everything asked."""
    for row, sampling in enumerate(SAMPLINGS):
        for column, model in enumerate(MODELS):
            chosen = (row + column + column // len(ASKED)) % len(ASKED)
            # One of the two kinds of prediction is enough for every family and number of channels.
            if not WHOLE_MATRIX and (row + column // 2) % 2 != column % 2:
                continue
            for asked in ASKED if WHOLE_MATRIX else [ASKED[chosen]]:
                yield pytest.param(
                    model, sampling, asked, id=f"{model}-{'-'.join(map(str, sampling.values()))}-{asked}"
                )


BATCHED_PSNR = 50
LATENT_TOLERANCE = 1e-4

Sampling = dict[str, Any]
Asked = dict[str, float]
Stock = dict[str, tuple[Any, Any]]


def family_of(model: str) -> str:
    return "sdxl" if model.startswith("sdxl") else "sd"


def entry_of(model: str, folder: Path) -> ModelEntry:
    return tiny_entry(model, folder, family=family_of(model))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.getbasetemp() / "tiny-models"
    return {
        model: make_tiny_model(base, family=family_of(model), channels=9 if "9" in model else 4, prediction_type=kind)
        for model in MODELS
        for kind in [model.partition("-")[2]]
    }


@pytest.fixture(scope="module")
def engine(folders: dict[str, Path]) -> Iterator[Engine]:
    with running_engine(*(entry_of(name, folder) for name, folder in folders.items())) as engine:
        yield engine


@pytest.fixture(scope="module")
def stock(folders: dict[str, Path]) -> Stock:
    pipelines = {name: load_stock(folder) for name, folder in folders.items()}
    return {name: (pipeline, pipeline.scheduler.config) for name, pipeline in pipelines.items()}


@pytest.mark.parametrize(("model", "sampling", "asked"), list(combinations()))
def test_a_job_alone_gives_the_stock_pipelines_picture(
    engine: Engine, stock: Stock, model: str, sampling: Sampling, asked: Asked
) -> None:
    painting = make_painting(model, **sampling, **asked)
    expected = paint_stock(*stock[model], painting)
    painted = engine.paint(painting)[0]
    assert expected.std() > 10, "a flat picture would prove nothing"
    assert np.abs(painted.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("channels", "prediction", "sampling"),
    [
        (9, "epsilon", {"scheduler": "DPMSolverMultistepScheduler", "strength": 0.7}),
        (4, "v_prediction", {"scheduler": "EulerDiscreteScheduler"}),
        (4, "epsilon", {"scheduler": "UniPCMultistepScheduler", "use_karras_sigmas": True, "strength": 0.6}),
        (9, "v_prediction", {"scheduler": "DDIMScheduler"}),
    ],
)
def test_a_model_built_as_stable_diffusion_2_gives_the_stock_pipelines_picture(
    tmp_path: Path, channels: int, prediction: str, sampling: Sampling
) -> None:
    folder = make_tiny_model(tmp_path, channels=channels, prediction_type=prediction, like_2=True)
    pipeline, painting = load_stock(folder), make_painting("two", **sampling)
    expected = paint_stock(pipeline, pipeline.scheduler.config, painting)
    with running_engine(tiny_entry("two", folder)) as engine:
        painted = engine.paint(painting)[0]
    assert expected.std() > 10
    assert np.abs(painted.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    "scheduler",
    ["DDIMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "UniPCMultistepScheduler"],
)
def test_a_model_whose_first_step_is_pure_noise_gives_the_stock_pipelines_picture(
    tmp_path: Path, scheduler: str
) -> None:
    """Its schedule ends without any signal, as that of some models that predict v."""
    folder = make_tiny_model(tmp_path, channels=4, prediction_type="v_prediction")
    config = folder / "scheduler" / "scheduler_config.json"
    marks = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    config.write_text(json.dumps(json.loads(config.read_text()) | marks))
    pipeline, painting = load_stock(folder), make_painting("noise", scheduler=scheduler)
    expected = paint_stock(pipeline, pipeline.scheduler.config, painting)
    with running_engine(tiny_entry("noise", folder)) as engine:
        painted = engine.paint(painting)[0]
    assert expected.std() > 10
    assert np.abs(painted.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("width", "height"), [(96, 64), (64, 128)])
@pytest.mark.parametrize("model", ["sdxl9-epsilon", "sdxl4-v_prediction", "sd9-epsilon"])
def test_a_picture_that_is_not_square_is_that_of_the_stock_pipeline(
    engine: Engine, stock: Stock, model: str, width: int, height: int
) -> None:
    """A model of XL is told the size beside the prompt."""
    square = make_painting(model, size=128)
    picture, mask = square.picture[:height, :width].copy(), np.zeros((height, width), dtype=np.uint8)
    mask[16:-16, 8:-24] = 255
    painting = make_painting(model, picture=picture, mask=mask)
    expected = paint_stock(*stock[model], painting)
    assert np.abs(engine.paint(painting)[0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("model", "sampling"),
    [(model, sampling) for model in MODELS for sampling in SAMPLINGS]
    if WHOLE_MATRIX
    else [
        (["sd9-epsilon", "sd4-v_prediction", "sdxl4-epsilon", "sdxl9-v_prediction"][row % 4], sampling)
        for row, sampling in enumerate(SAMPLINGS)
    ],
    ids=str,
)
def test_every_step_gives_the_stock_pipelines_latents(
    folders: dict[str, Path], stock: Stock, model: str, sampling: Sampling
) -> None:
    painting = make_painting(model, **sampling, strength=0.8)
    expected: list[torch.Tensor] = []
    paint_stock(*stock[model], painting, on_latents=lambda latents: expected.append(latents.clone()))
    with torch.inference_mode():
        [sample] = begin_samples(load_on_cpu(entry_of(model, folders[model])), painting)
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
            zip(itertools.cycle(["a red cat", "a blue dog", "", "the circle", "white on white"]), SCHEDULERS)
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
