"""Gray in a mask is a strength for each place: nothing at black, all of it at white, ever more in between."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from storage.model_catalog import ModelEntry, load_catalog
from storage.settings import StorageSettings
from tests.painting import LIBRARY_WARNINGS, load_on_cpu, make_painting, psnr, running_engine
from tests.tiny_models import make_tiny_model, tiny_entry
from worker.engine import Engine
from worker.loading import LoadedModel
from worker.masks import composite, latent_strength, paste_weight, scale_strength
from worker.preparing import begin_samples
from worker.sample import predict_noise

pytestmark = LIBRARY_WARNINGS

LEVELS = (0, 51, 102, 153, 204, 255)
SIZE = 96
BAND = SIZE // len(LEVELS)
MODELS = [(family, channels) for family in ("sd", "sdxl") for channels in (9, 4)]
STEPS = 12


def entry_of(base: Path, family: str, channels: int) -> ModelEntry:
    folder = make_tiny_model(base, family=family, channels=channels)
    return tiny_entry(f"{family}{channels}", folder, family=family)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "tiny-models"


@pytest.fixture(scope="module")
def models(base: Path) -> dict[tuple[str, int], LoadedModel]:
    return {kind: load_on_cpu(entry_of(base, *kind)) for kind in MODELS}


@pytest.fixture(scope="module")
def engine(base: Path) -> Iterator[Engine]:
    with running_engine(*(entry_of(base, *kind) for kind in MODELS)) as engine:
        yield engine


def bands() -> NDArray[np.uint8]:
    """From black at the left to white at the right, two latents wide each."""
    return np.repeat(np.array(LEVELS, np.uint8), BAND)[None].repeat(SIZE, axis=0)


@pytest.mark.parametrize("strength", [1.0, 0.7])
@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"])
@pytest.mark.parametrize(("family", "channels"), MODELS)
@torch.inference_mode()
def test_more_gray_is_more_change_of_the_latents_and_black_is_none(
    models: dict[tuple[str, int], LoadedModel], family: str, channels: int, scheduler: str, strength: float
) -> None:
    mask = bands()
    painting = make_painting(
        size=SIZE, mask=mask, seeds=(1, 2, 3, 4), num_inference_steps=STEPS, scheduler=scheduler, strength=strength
    )
    samples = begin_samples(models[family, channels], painting)
    while not samples[0].finished:
        for sample, prediction in zip(samples, predict_noise(samples), strict=True):
            sample.advance(prediction)
    made = torch.stack([(sample.latents - sample.kept_latents).abs() for sample in samples]).mean(dim=(0, 1, 2, 3))
    changes = made.reshape(len(LEVELS), -1).mean(dim=1).tolist()
    assert changes[0] == 0
    assert all(less < more for less, more in itertools.pairwise(changes)), changes


def test_the_built_in_model_changes_a_picture_the_more_the_whiter_the_mask() -> None:
    doodle = load_catalog(StorageSettings(models_file=None)).default
    picture = np.full((SIZE, SIZE, 3), (90, 200, 90), np.uint8)
    picture[24:72, 24:72] = (20, 40, 220)
    changes = dict.fromkeys(LEVELS, 0.0)
    with running_engine(doodle) as engine:
        for level, seed in itertools.product(LEVELS, range(3)):
            mask = np.zeros((SIZE, SIZE), np.uint8)
            mask[16:80, 16:80] = level
            painting = make_painting(
                doodle.id, picture=picture, mask=mask, prompt="a red star", seeds=(seed,), num_inference_steps=STEPS
            )
            pasted = composite(picture, engine.paint(painting)[0], paste_weight(mask)).astype(int)
            assert np.array_equal(pasted[mask == 0], picture[mask == 0])
            changes[level] += np.abs(pasted - picture).mean()
    assert changes[0] == 0
    assert all(less < more for less, more in itertools.pairwise(changes.values())), changes


@pytest.mark.parametrize(("family", "channels"), MODELS)
def test_white_beside_gray_is_painted_like_white_without(engine: Engine, family: str, channels: int) -> None:
    white = np.where(np.arange(SIZE) >= SIZE // 2, 255, 0).astype(np.uint8)[None].repeat(SIZE, axis=0)
    speck = white.copy()
    speck[:8, :8] = 128
    plain, beside = (engine.paint(make_painting(f"{family}{channels}", size=SIZE, mask=m))[0] for m in (white, speck))
    far = np.s_[SIZE // 2 :, SIZE // 2 + 16 :]
    # The speck reaches everything through attention and the norms, a little.
    assert psnr(plain[far], beside[far]) > 20
    other = engine.paint(make_painting(f"{family}{channels}", size=SIZE, mask=white, seeds=(8,)))[0]
    assert psnr(plain[far], other[far]) < psnr(plain[far], beside[far]) - 3


def test_only_gray_makes_a_strength_and_a_patch_asks_for_its_most() -> None:
    mask = np.zeros((16, 16), np.uint8)
    mask[3, 9] = 255
    assert latent_strength(mask, 8) is None
    mask[12, 1] = 51
    mask[13, 1] = 102
    strength = latent_strength(mask, 8)
    assert strength is not None
    assert np.allclose(strength, [[0, 1], [0.4, 0]])


def test_a_mask_of_black_and_white_stays_so_at_the_models_size_and_no_stroke_fades() -> None:
    mask = np.zeros((300, 500), np.uint8)
    mask[100] = 255
    scaled = scale_strength(mask, 128, 64)
    assert set(np.unique(scaled)) == {0, 255}
    assert (scaled[100 * 64 // 300] == 255).all()
    assert scale_strength(mask, 500, 300) is mask
    grown = scale_strength(np.array([[0, 90], [255, 0]], np.uint8), 4, 4)
    assert grown.tolist() == [[0, 0, 90, 90]] * 2 + [[255, 255, 0, 0]] * 2


def test_what_was_painted_by_gray_is_pasted_whole_and_faint_gray_fades_out() -> None:
    weights = paste_weight(np.array([[0, 1, 16, 32, 128, 255]], np.uint8))
    assert weights.tolist() == [[0, 8, 128, 255, 255, 255]]
