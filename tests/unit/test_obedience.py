"""The benchmark of obedience asks for what no weights were chosen by."""

from __future__ import annotations

import pytest

from tests.benchmarks.obedience import MOST_TRIAL_WISHES, held_out_wishes
from worker.builtin.train.__main__ import TRIAL_SEED
from worker.builtin.train.shapes import SHAPES
from worker.builtin.train.trials import make_wishes


@pytest.mark.parametrize("count", [20, 200])
def test_the_held_out_prompts_have_all_shapes_equally_often_and_none_of_the_trials(count: int) -> None:
    wishes = held_out_wishes(count)
    prompts = {wish.prompt for wish in wishes}
    assert len(prompts) == count
    assert [sum(wish.shape == shape for wish in wishes) for shape in SHAPES] == [count // len(SHAPES)] * len(SHAPES)
    assert not prompts & {wish.prompt for wish in make_wishes(MOST_TRIAL_WISHES, TRIAL_SEED)}
