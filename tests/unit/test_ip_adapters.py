"""IP-adapters: the stock pipelines' pictures, nothing changed for others, and bad files that fail one job alone."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from storage.addons import NO_ADDONS, IpAdapter
from tests.ip_adapters import adapter_tensors, make_image_encoder, write_adapter
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
from worker.engine import Engine
from worker.errors import AddonUnavailable
from worker.ip_adapters import Look, prepare_look
from worker.looking import cross_attentions
from worker.preparing import begin_samples
from worker.sample import predict_noise

pytestmark = LIBRARY_WARNINGS

TOKEN_WIDTHS = {"sd": TEXT_WIDTH, "sdxl": 2 * TEXT_WIDTH}
KINDS = ("plain", "plus")
BATCHED_PSNR = 50


def a_picture(seed: int = 0, size: tuple[int, int] = (40, 56)) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "tiny-models"


@pytest.fixture(scope="module")
def folders(base: Path) -> dict[str, Path]:
    return {family: make_tiny_model(base, family=family) for family in TOKEN_WIDTHS}


@pytest.fixture(scope="module")
def inner_widths(folders: dict[str, Path]) -> dict[str, list[int]]:
    return {
        family: [each.inner_dim for each in cross_attentions(load_stock(folder).unet)]
        for family, folder in folders.items()
    }


@pytest.fixture(scope="module")
def adapters(
    tmp_path_factory: pytest.TempPathFactory, inner_widths: dict[str, list[int]]
) -> dict[tuple[str, str], IpAdapter]:
    folder = tmp_path_factory.mktemp("adapters")
    encoder = make_image_encoder(folder / "models" / "image_encoder")
    return {
        (family, kind): write_adapter(
            folder / "models" / f"{family}-{kind}.safetensors",
            encoder,
            adapter_tensors(plus=kind == "plus", token_width=width, inner_widths=inner_widths[family]),
            family=family,
        )
        for family, width in TOKEN_WIDTHS.items()
        for kind in KINDS
    }


@pytest.fixture(scope="module")
def engine(folders: dict[str, Path]) -> Iterator[Engine]:
    entries = [tiny_entry(family, folder, family=family) for family, folder in folders.items()]
    with running_engine(*entries) as engine:
        yield engine


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", TOKEN_WIDTHS)
def test_an_ip_adapter_gives_the_stock_pipelines_picture(
    engine: Engine,
    folders: dict[str, Path],
    adapters: dict[tuple[str, str], IpAdapter],
    family: str,
    kind: str,
) -> None:
    adapter, picture = adapters[family, kind], a_picture()
    pipeline = load_stock(folders[family])
    pipeline.load_ip_adapter(
        str(adapter.path.parents[1]), subfolder="models", weight_name=adapter.path.name, local_files_only=True
    )
    pipeline.set_ip_adapter_scale(0.7)
    # One of each without guidance is enough.
    guidance_scale = 1.0 if (family == "sd") is (kind == "plus") else 4.0
    painting = make_painting(family, look=Look(adapter, picture, 0.7), guidance_scale=guidance_scale)
    without = engine.paint(dataclasses.replace(painting, look=None))[0]
    expected = paint_stock(pipeline, pipeline.scheduler.config, painting, ip_adapter_image=Image.fromarray(picture))
    painted = engine.paint(painting)[0]
    assert np.abs(painted.astype(int) - expected).max() <= 1
    assert psnr(without, expected) < BATCHED_PSNR / 2
    assert np.array_equal(engine.paint(dataclasses.replace(painting, look=None))[0], without)


@pytest.mark.parametrize("family", TOKEN_WIDTHS)
def test_a_scale_of_nought_gives_the_picture_without(
    engine: Engine, adapters: dict[tuple[str, str], IpAdapter], family: str
) -> None:
    for kind in KINDS:
        look = Look(adapters[family, kind], a_picture(), 0.0)
        assert np.array_equal(engine.paint(make_painting(family, look=look)), engine.paint(make_painting(family)))


def test_jobs_with_other_pictures_and_scales_share_calls_and_one_without_makes_its_own(
    engine: Engine, adapters: dict[tuple[str, str], IpAdapter]
) -> None:
    looks = [
        *(Look(adapters["sd", "plain"], a_picture(seed), scale) for seed, scale in ((1, 0.9), (2, 0.3), (3, 1.0))),
        Look(adapters["sd", "plus"], a_picture(1), 0.9),
        None,
    ]
    paintings = [
        make_painting("sd", job_id=f"job-{index}", look=look, guidance_scale=1.0 if index == 2 else 4.0)
        for index, look in enumerate(looks)
    ]
    alone = [engine.paint(painting)[0] for painting in paintings]
    together = paint_together(engine, paintings)
    for one, [other] in zip(alone, together, strict=True):
        assert psnr(one, other) >= BATCHED_PSNR
    assert np.array_equal(alone[-1], together[-1][0]), "nobody shares its call"
    assert max(psnr(one, other) for one, other in itertools.combinations(alone, 2)) < BATCHED_PSNR - 10


@torch.inference_mode()
def test_samples_of_different_adapters_never_share_a_call_and_the_unet_is_left_as_it_was(
    folders: dict[str, Path], adapters: dict[tuple[str, str], IpAdapter]
) -> None:
    model, worn = load_on_cpu(tiny_entry("sd", folders["sd"])), Adapters(NO_ADDONS)
    before = dict(model.unet.attn_processors), {name: id(each) for name, each in model.unet.named_parameters()}
    shapes = set()
    for look in (None, *(Look(adapters["sd", kind], a_picture(), 0.5) for kind in KINDS)):
        painting = make_painting("sd", look=look)
        with worn.fitted(model, painting, stay) as fitted:
            [sample] = begin_samples(fitted, painting)
            shapes.add(sample.call_shape)
            sample.advance(predict_noise([sample])[0])
        after = dict(model.unet.attn_processors), {name: id(each) for name, each in model.unet.named_parameters()}
        assert after == before
    assert len(shapes) == 3


@torch.inference_mode()
def test_a_picture_is_looked_at_once_and_files_are_read_once(
    folders: dict[str, Path], adapters: dict[tuple[str, str], IpAdapter]
) -> None:
    model, worn = load_on_cpu(tiny_entry("sd", folders["sd"])), Adapters(NO_ADDONS)
    begin_samples(model, make_painting("sd"))
    encodes = model.encodings.encodes
    for seed, kind in ((1, "plain"), (1, "plain"), (2, "plain"), (1, "plus"), (1, "plain")):
        painting = make_painting("sd", look=Look(adapters["sd", kind], a_picture(seed), 0.5))
        with worn.fitted(model, painting, stay) as fitted:
            begin_samples(fitted, painting)
    assert model.encodings.encodes == encodes + 3
    assert worn.shelf.loads == 3, "two adapters, one encoder"


def test_adapters_used_least_lately_leave_the_memory(
    folders: dict[str, Path], adapters: dict[tuple[str, str], IpAdapter]
) -> None:
    model = load_on_cpu(tiny_entry("sd", folders["sd"]))
    paintings = {kind: make_painting("sd", look=Look(adapters["sd", kind], a_picture(), 0.5)) for kind in KINDS}

    def use(worn: Adapters, kind: str) -> None:
        with worn.fitted(model, paintings[kind], stay):
            pass

    everything = Adapters(NO_ADDONS)
    for kind in KINDS:
        use(everything, kind)
    small = Adapters(NO_ADDONS, capacity_bytes=everything.shelf.held_bytes - 1)
    for kind in ("plain", "plus", "plus", "plain"):
        use(small, kind)
        assert 0 < small.shelf.held_bytes < everything.shelf.held_bytes
    assert small.shelf.loads == 4, "plain, the encoder, plus, and plain again"


@pytest.mark.parametrize("shape", [(1, 1000), (1000, 2), (3, 14), (40, 56), (1, 1)], ids=str)
def test_a_strip_is_cut_to_its_middle_before_it_is_enlarged(
    folders: dict[str, Path], adapters: dict[tuple[str, str], IpAdapter], shape: tuple[int, int]
) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    look = Look(adapters["sd", "plain"], picture, 0.5)
    sizes: list[tuple[int, int]] = []
    with Adapters(NO_ADDONS).fitted(
        load_on_cpu(tiny_entry("sd", folders["sd"])), make_painting(look=look), stay
    ) as model:
        assert model.looker is not None
        process = model.looker.encoder.process

        def measured(image: Image.Image, **options: Any) -> Any:
            sizes.append(image.size)
            return process(image, **options)

        encoder = dataclasses.replace(model.looker.encoder, process=measured)
        prepared = prepare_look(dataclasses.replace(model.looker, encoder=encoder), look)
    assert max(sizes[0]) <= 4 * min(sizes[0])
    if max(shape) <= 4 * min(shape):
        assert torch.equal(prepared.pixels, process(Image.fromarray(picture), return_tensors="pt").pixel_values)


def stay() -> None:
    """Nobody wants the job to leave."""


def test_an_image_encoder_is_shared_by_families(adapters: dict[tuple[str, str], IpAdapter]) -> None:
    assert len({adapter.image_encoder for adapter in adapters.values()}) == 1


# -- bad files ------------------------------------------------------------------------------------


def _without(tensors: dict[str, torch.Tensor], word: str) -> dict[str, torch.Tensor]:
    return {name: each for name, each in tensors.items() if word not in name}


@pytest.mark.parametrize(
    "fault",
    [
        *("another-family", "a-layer-less", "a-key-less", "no-projection", "half-a-projection", "another-kind"),
        *("cut-short", "a-pickle", "missing", "no-encoder", "encoder-of-another-width", "encoder-without-weights"),
    ],
)
def test_a_bad_ip_adapter_fails_its_job_alone(
    engine: Engine, inner_widths: dict[str, list[int]], tmp_path: Path, fault: str
) -> None:
    encoder = make_image_encoder(tmp_path / "encoder", embed_width=25 if "of-another" in fault else 24)
    tensors = adapter_tensors(plus=False, token_width=TEXT_WIDTH, inner_widths=inner_widths["sd"])
    changed: dict[str, Any] = {
        "another-family": lambda: adapter_tensors(
            plus=False, token_width=2 * TEXT_WIDTH, inner_widths=inner_widths["sdxl"]
        ),
        "a-layer-less": lambda: _without(tensors, f".{2 * len(inner_widths['sd']) - 1}."),
        "a-key-less": lambda: _without(tensors, ".1.to_k"),
        "no-projection": lambda: _without(tensors, "image_proj"),
        "half-a-projection": lambda: _without(tensors, "image_proj.norm"),
        "another-kind": lambda: _without(tensors, "image_proj") | {"image_proj.proj.3.weight": torch.zeros(2, 2)},
    }
    adapter = write_adapter(tmp_path / "bad.safetensors", encoder, changed.get(fault, lambda: tensors)())
    if fault == "cut-short":
        adapter.path.write_bytes(adapter.path.read_bytes()[:-7])
    if fault == "a-pickle":
        adapter = dataclasses.replace(adapter, path=tmp_path / "bad.bin")
        torch.save(tensors, adapter.path)
    if fault == "missing":
        adapter.path.unlink()
    if fault == "no-encoder":
        adapter = dataclasses.replace(adapter, image_encoder=tmp_path / "nowhere")
    if fault == "encoder-without-weights":
        (encoder / "model.safetensors").unlink()
    neighbour = make_painting("sd", job_id="neighbour")
    alone = engine.paint(neighbour)[0]
    with pytest.raises(AddonUnavailable) as failed:
        engine.paint(make_painting("sd", look=Look(adapter, a_picture(), 0.5)))
    assert failed.value.field == "ip_adapter_id"
    assert str(tmp_path) not in failed.value.message
    assert np.array_equal(engine.paint(neighbour)[0], alone)
