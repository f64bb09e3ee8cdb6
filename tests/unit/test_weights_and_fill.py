"""What only some jobs ask of a painting: several texts with weights, another fill, pictures one by one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from storage.job import MaskedAreaInit, WeightedPrompt
from tests.painting import LIBRARY_WARNINGS, make_painting, running_engine
from tests.tiny_models import make_tiny_model, tiny_entry
from worker.engine import Engine

pytestmark = LIBRARY_WARNINGS

FILLS = tuple(MaskedAreaInit)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.getbasetemp() / "tiny-models"
    entries = [
        tiny_entry(name, make_tiny_model(folder, channels=channels)) for name, channels in (("sees", 9), ("blind", 4))
    ]
    with running_engine(*entries) as running:
        yield running


@pytest.mark.parametrize("model", ["sees", "blind"])
def test_what_lies_under_the_mask_counts_below_full_strength_only(engine: Engine, model: str) -> None:
    partly = [engine.paint(make_painting(model, strength=0.6, masked_area_init=fill))[0] for fill in FILLS]
    wholly = [engine.paint(make_painting(model, strength=1.0, masked_area_init=fill))[0] for fill in FILLS]
    hole = make_painting(model).mask == 255
    for one, other in itertools.combinations(partly, 2):
        assert np.abs(one.astype(int) - other)[hole].mean() > 1
    for one, other in itertools.combinations(wholly, 2):
        assert np.array_equal(one, other)


def test_a_random_fill_is_the_seeds_own(engine: Engine) -> None:
    painting = make_painting("sees", strength=0.6, masked_area_init=MaskedAreaInit.RANDOM)
    assert np.array_equal(engine.paint(painting), engine.paint(painting))


def test_weights_decide_what_is_painted_and_what_is_not(engine: Engine) -> None:
    plain = make_painting("sees", prompt="a red cat", negative_prompt="blue")
    same = (WeightedPrompt("a red cat", 0.5), WeightedPrompt("blue", -3.0))
    other = (WeightedPrompt("a red cat", 0.5), WeightedPrompt("a dog", 2.0), WeightedPrompt("blue", -3.0))
    expected = engine.paint(plain)[0]
    assert np.array_equal(engine.paint(make_painting("sees", prompt="-", weighted_prompts=same))[0], expected)
    assert not np.array_equal(engine.paint(make_painting("sees", prompt="-", weighted_prompts=other))[0], expected)


def test_pictures_come_one_by_one_and_are_those_that_come_together(engine: Engine) -> None:
    painting = make_painting("sees", seeds=(1, 2, 3))
    each = dict(engine.paint_each(painting))
    assert np.array_equal([each[index] for index in range(3)], engine.paint(painting))


def test_whoever_takes_no_more_pictures_ends_the_painting(engine: Engine) -> None:
    pictures = engine.paint_each(make_painting("sees", seeds=(1, 2, 3), job_id="left"))
    next(pictures)
    assert "left" in engine.progress()
    pictures.close()
    assert "left" not in engine.progress()
    assert engine.pulse().activity == "idle"
