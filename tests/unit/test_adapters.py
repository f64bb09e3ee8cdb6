"""What jobs put onto models: VAEs in place of the model's, all kinds at once, and what is kept in memory."""

from __future__ import annotations

import dataclasses
import gc
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file

from storage.job import LoraUse
from tests.ip_adapters import adapter_tensors, make_image_encoder, write_adapter
from tests.loras import addons_of, write_lora, write_vae
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
from tests.tiny_models import TEXT_WIDTH, make_tiny_model, tiny_entry
from worker.adapters import Adapters
from worker.engine import Painting
from worker.graphs import GraphedUNet
from worker.ip_adapters import Look
from worker.loading import LoadedModel
from worker.looking import cross_attentions
from worker.versions import version_of

pytestmark = LIBRARY_WARNINGS

BATCHED_PSNR = 50
WAIT_SECONDS = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "tiny-models"


@pytest.fixture
def model(folder: Path) -> LoadedModel:
    return load_on_cpu(tiny_entry("tiny", make_tiny_model(folder)))


@pytest.fixture
def lora(model: LoadedModel, tmp_path: Path) -> Path:
    return write_lora(tmp_path / "ink.safetensors", model, texts=True)


def with_lora(name: str, job_id: str = "job") -> Painting:
    return make_painting(job_id=job_id, loras=(LoraUse(name, 1.0),))


# -- VAEs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_tiny", [False, True], ids=["kl", "tiny"])
@pytest.mark.parametrize("channels", [9, 4])
def test_the_picture_is_that_of_the_stock_pipeline_with_the_same_vae(
    folder: Path, tmp_path: Path, channels: int, is_tiny: bool
) -> None:
    source = make_tiny_model(folder, channels=channels)
    vae = write_vae(tmp_path / "vae", seed=5, is_tiny=is_tiny, scaling_factor=0.4)
    painting = make_painting(strength=0.8)
    adapters = Adapters(addons_of(vaes={"other": vae}))
    with running_engine(tiny_entry("tiny", source), adapters=adapters) as engine:
        [without] = engine.paint(painting)
        [painted] = engine.paint(dataclasses.replace(painting, vae="other"))
        [again] = engine.paint(painting)
    stock = load_stock(source)
    stock.vae = type(adapters_vae(adapters, vae)).from_pretrained(vae)
    expected = paint_stock(stock, stock.scheduler.config, painting)
    assert np.abs(painted.astype(int) - expected).max() <= 1
    assert psnr(painted, without) < BATCHED_PSNR / 2
    assert np.array_equal(without, again), "no encoding of the other VAE is taken for the model's"


def adapters_vae(adapters: Adapters, folder: Path) -> torch.nn.Module:
    with adapters.shelf.hold(("vae", "other"), pytest.fail, lambda: None, version=version_of(folder)) as kept:  # type: ignore[arg-type]  # kept
        vae: torch.nn.Module = kept.vae
        return vae


def test_jobs_with_other_vaes_and_none_share_calls_and_keep_their_pictures(folder: Path, tmp_path: Path) -> None:
    # The model's own has the weights of seed 1.
    vaes = {name: write_vae(tmp_path / name, seed=seed) for seed, name in ((5, "one"), (6, "two"))}
    paintings = [make_painting(job_id=str(vae), vae=vae, strength=0.7) for vae in (None, *vaes)]
    adapters = Adapters(addons_of(vaes=vaes))
    with running_engine(tiny_entry("tiny", make_tiny_model(folder)), adapters=adapters) as engine:
        alone = [engine.paint(painting)[0] for painting in paintings]
        together = [pictures[0] for pictures in paint_together(engine, paintings)]
    likeness = np.array([[psnr(one, other) for other in together] for one in alone])
    assert likeness.diagonal().min() >= BATCHED_PSNR
    assert likeness[~np.eye(3, dtype=bool)].max() < BATCHED_PSNR / 2


def test_all_that_goes_onto_a_model_goes_onto_it_at_once(folder: Path, tmp_path: Path, lora: Path) -> None:
    source = make_tiny_model(folder)
    vae = write_vae(tmp_path / "vae", seed=5)
    stock = load_stock(source)
    widths = [each.inner_dim for each in cross_attentions(stock.unet)]
    ip_adapter = write_adapter(
        tmp_path / "models" / "ip.safetensors",
        make_image_encoder(tmp_path / "models" / "image_encoder"),
        adapter_tensors(plus=False, token_width=TEXT_WIDTH, inner_widths=widths),
        family="sd",
    )
    shown = make_painting().picture
    painting = make_painting(loras=(LoraUse("ink", 0.8),), vae="other", look=Look(ip_adapter, shown, 0.7))
    adapters = Adapters(addons_of({"ink": lora}, {"other": vae}))
    with running_engine(tiny_entry("tiny", source), adapters=adapters) as engine:
        [painted] = engine.paint(painting)
        without = [
            engine.paint(dataclasses.replace(painting, **left_out))[0]
            for left_out in ({"loras": ()}, {"vae": None}, {"look": None})
        ]
    stock.load_ip_adapter(str(tmp_path), subfolder="models", weight_name="ip.safetensors", local_files_only=True)
    stock.set_ip_adapter_scale(0.7)
    stock.load_lora_weights(str(lora.parent), weight_name=lora.name, adapter_name="ink")
    stock.set_adapters(["ink"], [0.8])
    stock.vae = AutoencoderKL.from_pretrained(vae)
    expected = paint_stock(stock, stock.scheduler.config, painting, ip_adapter_image=[[Image.fromarray(shown)]])
    assert np.abs(painted.astype(int) - expected).max() <= 1
    assert max(psnr(painted, other) for other in without) < BATCHED_PSNR


# -- graphs ---------------------------------------------------------------------------------------


def test_no_graph_is_replayed_while_loras_are_on(model: LoadedModel, folder: Path, lora: Path) -> None:
    replays: list[int] = []

    def capture(call: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        # As CUDA's: what is replayed is what was captured, whatever hooks there are by then.
        output = call().clone()
        return lambda: replays.append(1), output

    unet = GraphedUNet(model.unet, capture=capture, is_adapted=lambda: model.lora_host.adapts)
    graphed = dataclasses.replace(model, unet=unet, native_size=64)
    adapters = Adapters(addons_of({"ink": lora}))
    entry = tiny_entry("tiny", folder)
    with running_engine(entry, load=lambda _entry: model, adapters=adapters, checks_files=False) as plain:
        [expected] = plain.paint(with_lora("ink"))
    with running_engine(entry, load=lambda _entry: graphed, adapters=adapters, checks_files=False) as engine:
        # The graphs are built for the first job of the model, but without its LoRA.
        [painted] = engine.paint(with_lora("ink"))
        built = len(replays)
        assert built == unet.graphs_built > 0
        engine.paint(make_painting())
        assert len(replays) == built + make_painting().num_evaluations
        [again] = engine.paint(with_lora("ink"))
        assert len(replays) == built + make_painting().num_evaluations
    assert np.array_equal(painted, expected)
    assert np.array_equal(again, expected)


# -- what is kept ---------------------------------------------------------------------------------


def unhurried() -> None:
    pass


def test_reading_a_lora_does_not_hold_the_painting_of_others_up(
    model: LoadedModel, folder: Path, lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, may_read = threading.Event(), threading.Event()
    from worker import adapters as module  # noqa: PLC0415  # to slow its reading down

    read = module.read_lora

    def slowly(*args: object, **kwargs: object) -> object:
        reading.set()
        assert may_read.wait(WAIT_SECONDS)
        return read(*args, **kwargs)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(module, "read_lora", slowly)
    entry = tiny_entry("tiny", folder)
    adapters = Adapters(addons_of({"ink": lora}))
    with (
        running_engine(entry, load=lambda _entry: model, adapters=adapters, checks_files=False) as engine,
        ThreadPoolExecutor(1) as threads,
    ):
        waiting = threads.submit(engine.paint, with_lora("ink"))
        assert reading.wait(WAIT_SECONDS)
        assert len(engine.paint(make_painting(job_id="other"))) == 1
        assert not waiting.done()
        may_read.set()
        assert len(waiting.result(WAIT_SECONDS)) == 1


def test_reading_a_lora_again_and_again_leaves_nothing_behind(model: LoadedModel, lora: Path) -> None:
    adapters = Adapters(addons_of({"ink": lora}), capacity_bytes=0)

    def read(times: int) -> int:
        for _ in range(times):
            with adapters.fitted(model, with_lora("ink"), unhurried):
                pass
        gc.collect()
        return sys.getallocatedblocks()

    before = read(5)
    assert read(40) - before < 40 * 10
    assert adapters.shelf.loads == 45
    assert adapters.shelf.held_bytes == 0


def test_a_loaded_vae_counts_by_its_bytes(folder: Path, tmp_path: Path, model: LoadedModel) -> None:
    vaes = {name: write_vae(tmp_path / name, seed=seed) for seed, name in enumerate(("one", "two", "three"))}
    size = sum(each.numel() * 4 for each in load_file(next(vaes["one"].glob("*.safetensors"))).values())
    adapters = Adapters(addons_of(vaes=vaes), capacity_bytes=2 * size + 1)
    for name in ("one", "two", "three", "two", "one"):
        with adapters.fitted(model, make_painting(vae=name), unhurried) as fitted:
            assert fitted.vae is not model.vae
    assert adapters.shelf.held_bytes == 2 * size
    assert adapters.shelf.loads == 4, "one had to leave for three"
