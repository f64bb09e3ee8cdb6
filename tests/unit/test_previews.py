"""Previews: small, on demand, of the job that was asked for, and without any harm to it."""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future

import cv2
import numpy as np
import pytest
import torch

from storage.model_catalog import load_catalog
from storage.schedulers import SCHEDULERS
from storage.settings import StorageSettings
from tests.painting import LIBRARY_WARNINGS, load_on_cpu, make_painting
from tests.studio import WAIT_SECONDS, Studio, folder, held_at_first_step, loaded, studio, until
from worker import denoising
from worker.framing import SMALL_SIDE, Frame, Whole
from worker.loading import LoadedModel
from worker.preparing import begin_samples
from worker.previews import Preview, encode_jpeg, make_preview, paste_preview
from worker.runs import Run
from worker.sample import Painting, predict_noise

__all__ = ["folder", "loaded", "studio"]

pytestmark = LIBRARY_WARNINGS


def test_a_running_job_shows_a_small_preview_and_is_not_changed_by_it(studio: Studio) -> None:
    [expected] = studio.engine.paint(make_painting(num_inference_steps=4))
    gate, running = held_at_first_step(studio, num_inference_steps=4)
    asked = studio.threads.submit(studio.engine.previews, ["job", "another"])
    until(lambda: studio.engine._painting[0].preview is not None)
    gate.open()
    [(job_id, preview)] = asked.result(WAIT_SECONDS).items()
    assert (job_id, preview.step) == ("job", 1)
    assert preview.pixels.dtype == np.uint8
    assert preview.pixels.shape == (8, 8, 3)
    assert np.array_equal(running.result()[0], expected)


def test_a_job_that_does_not_run_has_no_preview(studio: Studio) -> None:
    assert studio.engine.previews(["job"]) == {}
    studio.engine.paint(make_painting())
    assert studio.engine.previews(["job"]) == {}


def test_whoever_waits_for_the_preview_of_a_job_that_leaves_gets_none(studio: Studio) -> None:
    gate, running = held_at_first_step(studio, num_inference_steps=9)
    studio.engine.cancel("job")
    until(lambda: studio.engine._painting[0].samples != [])

    def fail(*_: object) -> None:
        raise ValueError("no step for you")

    asked = studio.threads.submit(studio.engine.previews, ["job"])
    until(lambda: studio.engine._painting[0].preview is not None)
    studio.watched.before = fail
    gate.open()
    assert asked.result(WAIT_SECONDS) == {} or running.exception() is not None


def test_a_preview_that_fails_does_no_harm(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no glimpse")

    monkeypatch.setattr(denoising, "make_preview", fail)
    gate, running = held_at_first_step(studio)
    asked = studio.threads.submit(studio.engine.previews, ["job"])
    until(lambda: studio.engine._painting[0].preview is not None)
    gate.open()
    assert asked.result(WAIT_SECONDS) == {}
    assert len(running.result()) == 1
    assert "preview_failed" in [line["event"] for line in studio.log]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@torch.inference_mode()
def test_a_right_prediction_shows_the_picture_whatever_the_scheduler(loaded: LoadedModel, scheduler: str) -> None:
    # Gray keeps the picture in the latents from the start: its noise is the right prediction there.
    mask = np.full((64, 64), 100, np.uint8)
    [sample] = begin_samples(loaded, make_painting(scheduler=scheduler, mask=mask, num_inference_steps=10))
    assert sample.kept_latents is not None
    shown = make_preview(sample, sample.noise).astype(int)
    linear = np.concatenate([sample.kept_latents[0].numpy().reshape(4, -1), np.ones((1, 64), np.float32)])
    expected = np.clip((loaded.latent_colours.T @ linear).reshape(3, 8, 8).transpose(1, 2, 0), 0, 1) * 255
    assert np.abs(shown - expected).mean() < 2
    assert expected.std() > 1


def test_where_nothing_is_repainted_a_preview_shows_the_picture() -> None:
    painting = make_painting(size=128)
    preview = np.full((16, 16, 3), 200, np.uint8)
    shown = paste_preview(preview, painting)
    kept = cv2.resize(painting.mask, (16, 16), interpolation=cv2.INTER_AREA) == 0
    small = painting.picture.reshape(16, 8, 16, 8, 3).mean(axis=(1, 3))
    assert np.abs(shown[kept] - small[kept]).max() < 1
    assert (shown[4:-4, 4:-4] == 200).all()


def part_of_a_larger_picture(size: int) -> Painting:
    """What lies in the right half of 400 x 800 pixels of gray noise, but for a rim."""
    picture = np.random.default_rng(2).integers(100, 110, (400, 800, 3), np.uint8)
    frame = Frame(rows=slice(50, 350), columns=slice(450, 750), worked_width=size, worked_height=size)
    painting = make_painting(size=size, picture=frame.picture_for_model(picture))
    return dataclasses.replace(painting, whole=Whole(picture, frame))


@pytest.mark.parametrize("side", [8, 128])
def test_where_a_part_is_worked_on_a_preview_shows_the_whole_picture_with_that_part_in_its_place(side: int) -> None:
    shown = paste_preview(np.full((side, side, 3), 250, np.uint8), part_of_a_larger_picture(128))
    assert shown.shape == (128, 256, 3)
    bright = shown.min(axis=2) > 200
    [rows, columns] = np.nonzero(bright)
    # The mask has 16 rows above and below it, 8 columns before and 24 after, of 128; the part is 96 pixels here.
    assert (rows.min(), rows.max() + 1) == (16 + 12, 16 + 96 - 12)
    assert (columns.min(), columns.max() + 1) == (144 + 6, 144 + 96 - 18)
    assert bright[28:100, 150:222].all()
    assert np.abs(shown[~bright].astype(int) - 105).max() < 10


def test_a_running_job_that_works_on_a_part_shows_the_whole_picture(studio: Studio) -> None:
    gate, running = held_at_first_step(studio, whole=part_of_a_larger_picture(64).whole)
    asked = studio.threads.submit(studio.engine.previews, ["job"])
    until(lambda: studio.engine._painting[0].preview is not None)
    gate.open()
    [preview] = asked.result(WAIT_SECONDS).values()
    assert preview.pixels.shape == (128, 256, 3)
    assert running.result()[0].shape == (64, 64, 3), "but what is painted is the part"


def test_the_worst_preview_is_a_jpeg_under_50_kb() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (SMALL_SIDE, SMALL_SIDE, 3), np.uint8)
    jpeg = encode_jpeg(noise)
    assert len(jpeg) < 50_000
    decoded = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert decoded is not None
    red = np.zeros((8, 8, 3), np.uint8) + np.array([250, 20, 20], np.uint8)
    again = cv2.imdecode(np.frombuffer(encode_jpeg(red), np.uint8), cv2.IMREAD_COLOR_RGB)
    assert again is not None
    assert np.abs(again.astype(int) - red).max() < 10


@torch.inference_mode()
def test_a_preview_of_the_largest_picture_is_under_50_kb(loaded: LoadedModel) -> None:
    [sample] = begin_samples(loaded, make_painting())
    large = dataclasses.replace(sample, latents=torch.zeros(1, 4, 256, 128))
    preview = make_preview(large, large.latents)
    assert preview.shape == (128, 64, 3)
    assert preview.nbytes < 50_000


@torch.inference_mode()
def test_the_colours_are_learnt_from_the_models_own_vae_and_a_velocity_is_understood() -> None:
    model = load_on_cpu(load_catalog(StorageSettings(models_file=None)).default)
    mask = np.full((128, 128), 100, np.uint8)
    painting = make_painting(size=128, mask=mask)
    [sample] = begin_samples(model, painting)
    assert sample.kept_latents is not None
    one, zero, now = torch.ones_like(sample.noise), torch.zeros_like(sample.noise), sample.timesteps[:1]
    alpha, sigma = sample.scheduler.add_noise(one, zero, now), sample.scheduler.add_noise(zero, one, now)
    shown = make_preview(sample, alpha * sample.noise - sigma * sample.kept_latents)
    factor = model.latent_factor
    small = painting.picture.reshape(128 // factor, factor, 128 // factor, factor, 3).mean(axis=(1, 3))
    assert np.abs(shown - small).mean() < 25


def test_predictions_are_those_of_the_step(loaded: LoadedModel) -> None:
    with torch.inference_mode():
        [sample] = begin_samples(loaded, make_painting(num_inference_steps=3))
        previews = []
        while not sample.finished:
            [prediction] = predict_noise([sample])
            previews.append(make_preview(sample, prediction))
            sample.advance(prediction)
    assert not np.array_equal(previews[0], previews[-1])


def test_a_preview_that_was_answered_already_is_no_obstacle_to_the_end() -> None:
    """Who asks and who answers are two threads: one may put back what the other has just answered."""
    run, waiting = Run(make_painting()), Future[Preview | None]()
    run.preview = waiting
    run.show(None)
    run.preview = waiting
    run.end()
    assert run.finished.get_nowait() is None
    assert run.preview is None
