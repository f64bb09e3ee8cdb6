"""Graphs of UNet calls, with a recorder in place of CUDA's: padded right, reused, and none built after warm-up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.painting import LIBRARY_WARNINGS, make_painting, paint_together, psnr, running_engine
from tests.studio import WatchedUNet, folder, loaded
from tests.tiny_models import tiny_entry
from worker.engine import Engine
from worker.graphs import ROW_BUCKETS, GraphedUNet, bucket_of
from worker.loading import LoadedModel

__all__ = ["folder", "loaded"]

pytestmark = LIBRARY_WARNINGS


def record(call: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
    """As a CUDA graph does: the same tensors in, the same tensor out."""
    output = call().clone()
    return lambda: output.copy_(call()), output  # type: ignore[return-value]


@dataclasses.dataclass
class Graphed:
    engine: Engine
    plain: Engine
    unet: GraphedUNet
    watched: WatchedUNet


@pytest.fixture
def graphed(folder: Path, loaded: LoadedModel) -> Iterator[Graphed]:
    watched = WatchedUNet(loaded.unet)
    unet = GraphedUNet(watched, capture=record)
    model = dataclasses.replace(loaded, unet=unet, native_size=64)
    with (
        running_engine(tiny_entry("tiny", folder), load=lambda _entry: model, max_batch=4) as engine,
        running_engine(tiny_entry("tiny", folder), load=lambda _entry: loaded, max_batch=4) as plain,
    ):
        yield Graphed(engine, plain, unet, watched)


def test_all_graphs_are_built_before_the_first_step_and_none_on_a_mixed_trace(graphed: Graphed) -> None:
    graphed.engine.paint(make_painting(num_inference_steps=1))
    wanted = [rows for rows in ROW_BUCKETS if rows <= 8]
    assert graphed.unet.graphs_built == len(wanted)
    assert not graphed.unet.warming
    paintings = [
        make_painting(
            job_id=f"job-{n}", seeds=(n,), num_inference_steps=3 + n, guidance_scale=1.0 + n % 3, size=64 + 64 * (n % 2)
        )
        for n in range(9)
    ]
    graphed.watched.rows.clear()
    paint_together(graphed.engine, paintings)
    assert graphed.unet.graphs_built == len(wanted)
    assert set(graphed.watched.rows) & {3, 5, 7} or len(set(graphed.watched.rows)) > 2, "a mixed trace it was"


def test_a_graph_gives_what_the_unet_gives_padded_or_not(graphed: Graphed) -> None:
    for images in (1, 2, 3):
        painting = make_painting(seeds=tuple(range(images)), guidance_scale=1.0)
        for one, other in zip(graphed.engine.paint(painting), graphed.plain.paint(painting), strict=True):
            assert psnr(one, other) >= 50
    assert graphed.unet.graphs_built


def test_a_size_that_was_not_warmed_up_is_painted_without_a_graph(graphed: Graphed) -> None:
    graphed.engine.paint(make_painting(num_inference_steps=1))
    built = graphed.unet.graphs_built
    painting = make_painting(size=128, seeds=(1, 2, 3), guidance_scale=1.0)
    graphed.watched.rows.clear()
    for one, other in zip(graphed.engine.paint(painting), graphed.plain.paint(painting), strict=True):
        assert psnr(one, other) >= 50
    assert set(graphed.watched.rows) == {3}, "nothing is padded for no graph"
    assert graphed.unet.graphs_built == built


def test_a_model_whose_graphs_cannot_be_built_is_painted_without(folder: Path, loaded: LoadedModel) -> None:
    def fail(_call: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    unet = GraphedUNet(loaded.unet, capture=fail)
    model = dataclasses.replace(loaded, unet=unet, native_size=64)
    with running_engine(tiny_entry("tiny", folder), load=lambda _entry: model) as engine:
        assert len(engine.paint(make_painting())) == 1
    assert unet.graphs_built == 0


def test_rows_are_padded_to_the_next_bucket() -> None:
    assert [bucket_of(rows) for rows in (1, 2, 3, 5, 9, 16, 17)] == [1, 2, 4, 6, 12, 16, 17]


def test_watching_over_a_warm_up_allows_it_the_time_of_a_load(graphed: Graphed) -> None:
    seen: list[str] = []
    graphed.watched.before = lambda _latents, _conditioning: seen.append(graphed.engine.pulse().activity)
    graphed.engine.paint(make_painting(num_inference_steps=1))
    assert seen[0] == "warming_up"
    assert seen[-1] == "painting"
