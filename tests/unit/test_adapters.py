"""What jobs put onto models: VAEs in place of the model's, files that cannot be used, and what is kept in memory."""

from __future__ import annotations

import dataclasses
import gc
import json
import pickle
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file

from storage.addons import Addons
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
from worker.errors import AddonUnavailable, Cancelled
from worker.graphs import GraphedUNet
from worker.ip_adapters import Look
from worker.loading import LoadedModel
from worker.looking import cross_attentions
from worker.shelf import Shelf
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


# -- what cannot be used --------------------------------------------------------------------------


class Trap:
    """Unpickling this would run a program."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return pytest.fail, ("a pickle was read",)


def pickled(path: Path, _lora: Path) -> Path:
    path = path.with_suffix(".ckpt")
    path.write_bytes(pickle.dumps(Trap()))
    return path


def pickled_under_another_name(path: Path, _lora: Path) -> Path:
    path.write_bytes(pickle.dumps(Trap()))
    return path


def junk(path: Path, _lora: Path) -> Path:
    path.write_bytes(b"no weights at all" * 100)
    return path


def cut_short(path: Path, lora: Path) -> Path:
    path.write_bytes(lora.read_bytes()[:-1000])
    return path


def missing(path: Path, _lora: Path) -> Path:
    return path


def of_no_lora(path: Path, _lora: Path) -> Path:
    save_file({"weight": torch.zeros(3)}, path)
    return path


def half_a_layer(path: Path, lora: Path) -> Path:
    tensors = load_file(lora)
    del tensors[next(iter(tensors))]
    save_file(tensors, path)
    return path


def of_wrong_shapes(path: Path, lora: Path) -> Path:
    tensors = load_file(lora)
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name] = torch.zeros(7, tensors[name].shape[1])
    save_file(tensors, path)
    return path


def of_integers(path: Path, lora: Path) -> Path:
    save_file({name: tensor.to(torch.int32) for name, tensor in load_file(lora).items()}, path)
    return path


def of_another_method(path: Path, lora: Path) -> Path:
    name = "lora_unet_down_blocks_1_attentions_0_proj_in"
    save_file(load_file(lora) | {f"{name}.dora_scale": torch.ones(64, 1)}, path)
    return path


def with_unreadable_alphas(path: Path, lora: Path) -> Path:
    noted = {"unet.alpha_pattern": {"(": 2}}
    save_file(load_file(lora), path, metadata={"lora_adapter_metadata": json.dumps(noted)})
    return path


def noting(**notes: object) -> Callable[[Path, Path], Path]:
    def make(path: Path, lora: Path) -> Path:
        named = {f"unet.{key}": value for key, value in notes.items()}
        save_file(load_file(lora), path, metadata={"lora_adapter_metadata": json.dumps(named)})
        return path

    make.__name__ = f"noting_{','.join(notes)}_{str(notes)[-20:]}"
    return make


def with_deep_notes(path: Path, lora: Path) -> Path:
    save_file(load_file(lora), path, metadata={"lora_adapter_metadata": "[" * 100_000})
    return path


def without_rank(path: Path, lora: Path) -> Path:
    empty = {
        name: (tensor[:0] if "lora_A" in name else tensor[:, :0]).clone() for name, tensor in load_file(lora).items()
    }
    save_file(empty, path)
    return path


def of_no_numbers(path: Path, lora: Path) -> Path:
    save_file({name: tensor * float("nan") for name, tensor in load_file(lora).items()}, path)
    return path


BAD_LORAS = {
    pickled: "is a pickle",
    pickled_under_another_name: "no whole safetensors file",
    junk: "no whole safetensors file",
    cut_short: "no whole safetensors file",
    missing: "is not there",
    of_no_lora: "holds no LoRA",
    half_a_layer: "half a layer",
    of_wrong_shapes: "other sizes",
    of_integers: "a kind that is not supported",
    of_another_method: "is a DoRA",
    with_unreadable_alphas: "alphas cannot be read",
    noting(alpha_pattern={r"(([a-z]|_|[0-9]|\.)+)+!": 1}): "alphas cannot be read",  # of hours of work
    noting(alpha_pattern=[1]): "alphas cannot be read",
    noting(lora_alpha=10**400): "alphas cannot be read",
    noting(lora_alpha=float("nan")): "alphas cannot be read",
    without_rank: "alphas cannot be read",
    with_deep_notes: "no whole safetensors file",
    of_no_numbers: "no numbers",
}


@pytest.mark.parametrize("make", BAD_LORAS, ids=lambda make: make.__name__)
def test_a_lora_that_cannot_be_used_fails_its_job_alone(
    model: LoadedModel, folder: Path, tmp_path: Path, lora: Path, make: Callable[[Path, Path], Path]
) -> None:
    bad = make(tmp_path / "bad.safetensors", lora)
    adapters = Adapters(addons_of({"ink": lora, "bad": bad}))
    good = [make_painting(job_id="plain"), with_lora("ink", "with")]
    entry = tiny_entry("tiny", folder)
    with running_engine(entry, load=lambda _entry: model, adapters=adapters, checks_files=False) as engine:
        alone = [engine.paint(painting)[0] for painting in good]
        with ThreadPoolExecutor(4) as threads:
            painted = [threads.submit(engine.paint, painting) for painting in (good[0], with_lora("bad"), good[1])]
            failure = painted[1].exception(WAIT_SECONDS)
            others = [painted[index].result(WAIT_SECONDS)[0] for index in (0, 2)]
    assert isinstance(failure, AddonUnavailable)
    assert failure.field == "lora_model"
    assert BAD_LORAS[make] in failure.message
    assert "bad" in failure.message
    assert len(failure.message) < 200
    assert str(tmp_path) not in failure.message
    for one, other in zip(alone, others, strict=True):
        assert psnr(one, other) >= BATCHED_PSNR


@pytest.mark.parametrize("file_format", ["diffusers", "kohya"])
@pytest.mark.parametrize(("made_for", "used_on"), [("sdxl", "sd"), ("sd", "sdxl")])
def test_a_lora_of_another_family_is_told_by_its_layers(
    folder: Path, tmp_path: Path, made_for: str, used_on: str, file_format: str
) -> None:
    loaded = {
        family: load_on_cpu(tiny_entry("tiny", make_tiny_model(folder, family=family), family=family))
        for family in ("sd", "sdxl")
    }
    path = write_lora(tmp_path / "a.safetensors", loaded[made_for], texts=True, file_format=file_format)  # type: ignore[arg-type]  # a literal
    adapters = Adapters(addons_of({"a": path}, family=used_on))
    with (
        pytest.raises(AddonUnavailable, match=r"was made for another|for its family"),
        adapters.fitted(loaded[used_on], with_lora("a"), lambda: None),
    ):
        pytest.fail("it must not fit")


def test_what_is_in_the_models_file_no_more_fails_by_name(model: LoadedModel) -> None:
    for asked in (with_lora("gone"), make_painting(vae="gone")):
        with pytest.raises(AddonUnavailable, match="gone"), Adapters(Addons()).fitted(model, asked, lambda: None):
            pytest.fail("it must not fit")


def vae_missing(_folder: Path) -> None:
    pass


def vae_cut_short(folder: Path) -> None:
    [path] = write_vae(folder, seed=1).glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1000])


def vae_pickled(folder: Path) -> None:
    [path] = write_vae(folder, seed=1).glob("*.safetensors")
    path.unlink()
    (folder / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Trap()))


def vae_that_is_none(folder: Path) -> None:
    write_vae(folder, seed=1)
    change_config(folder, _class_name="UNet2DConditionModel")


def vae_of_sixteen_channels(folder: Path) -> None:
    write_vae(folder, seed=1)
    change_config(folder, latent_channels=16)


def vae_of_other_shapes(folder: Path) -> None:
    write_vae(folder, seed=1)
    change_config(folder, block_out_channels=[16, 16, 32, 64])


def vae_of_other_latents(folder: Path) -> None:
    AutoencoderKL(block_out_channels=(16,), norm_num_groups=8, latent_channels=4).save_pretrained(folder)


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


BAD_VAES = {
    vae_missing: "config.json is not there",
    vae_cut_short: "no whole safetensors file",
    vae_pickled: "a pickle only",
    vae_that_is_none: "none of AutoencoderKL",
    vae_of_sixteen_channels: "16 latent channels",
    vae_of_other_shapes: "do not fit",
    vae_of_other_latents: "latents are of another size",
}


@pytest.mark.parametrize("make", BAD_VAES, ids=lambda make: make.__name__)
def test_a_vae_that_cannot_be_used_fails_its_job_alone(
    model: LoadedModel, folder: Path, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "vae")
    adapters = Adapters(addons_of(vaes={"bad": tmp_path / "vae"}))
    entry = tiny_entry("tiny", folder)
    with running_engine(entry, load=lambda _entry: model, adapters=adapters, checks_files=False) as engine:
        [alone] = engine.paint(make_painting())
        with ThreadPoolExecutor(2) as threads:
            bad, good = (threads.submit(engine.paint, make_painting(vae=vae)) for vae in ("bad", None))
            failure = bad.exception(WAIT_SECONDS)
            assert np.array_equal(good.result(WAIT_SECONDS)[0], alone)
    assert isinstance(failure, AddonUnavailable)
    assert failure.field == "vae"
    assert BAD_VAES[make] in failure.message
    assert len(failure.message) < 200
    assert str(tmp_path) not in failure.message


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


@dataclasses.dataclass(frozen=True)
class Thing:
    size_bytes: int


def unhurried() -> None:
    pass


def test_what_was_used_least_recently_leaves_and_what_is_in_use_stays() -> None:
    shelf, loaded = Shelf(30), []

    def take(name: str) -> None:
        with shelf.hold(name, lambda: loaded.append(name) or Thing(10), unhurried):  # type: ignore[func-returns-value]  # None is what it is for
            pass

    for name in ("a", "b", "c", "a", "d"):
        take(name)
    assert shelf.held_bytes == 30
    take("a")
    take("c")
    assert loaded == ["a", "b", "c", "d"], "b has left, the others are there"
    with shelf.hold("a", pytest.fail, unhurried), shelf.hold("big", lambda: Thing(25), unhurried):  # type: ignore[arg-type]  # kept
        assert shelf.held_bytes == 35, "both in use, and nothing else"
    assert shelf.held_bytes <= 30


def test_a_thing_is_loaded_once_for_all_who_ask_at_once() -> None:
    shelf, may_load, loads = Shelf(100), threading.Event(), []

    def load() -> Thing:
        loads.append(1)
        assert may_load.wait(WAIT_SECONDS)
        return Thing(1)

    def take() -> Thing:
        with shelf.hold("a", load, unhurried) as thing:
            taken: Thing = thing
            return taken

    with ThreadPoolExecutor(4) as threads:
        takers = [threads.submit(take) for _ in range(4)]
        may_load.set()
        assert len({id(taker.result(WAIT_SECONDS)) for taker in takers}) == 1
    assert len(loads) == 1


def test_a_job_may_leave_while_another_loads_and_a_failed_load_is_tried_again() -> None:
    shelf, may_load, entered = Shelf(100), threading.Event(), threading.Event()

    def load() -> Thing:
        entered.set()
        assert may_load.wait(WAIT_SECONDS)
        raise ValueError("broken")

    def take(check: Callable[[], None]) -> None:
        with shelf.hold("a", load, check):
            pytest.fail("nothing to hold")

    def cancelled() -> None:
        raise Cancelled

    with ThreadPoolExecutor(2) as threads:
        first: Future[None] = threads.submit(take, unhurried)
        assert entered.wait(WAIT_SECONDS)
        with pytest.raises(Cancelled):
            take(cancelled)
        may_load.set()
        with pytest.raises(ValueError, match="broken"):
            first.result(WAIT_SECONDS)
    with shelf.hold("a", lambda: Thing(3), unhurried) as thing:
        assert thing == Thing(3)


def test_a_job_that_leaves_while_it_loads_takes_none_of_those_with_it_who_wait_for_the_same() -> None:
    shelf, entered, may_leave = Shelf(100), threading.Event(), threading.Event()
    asked = [threading.Event() for _ in range(2)]

    def load_and_leave() -> Thing:
        entered.set()
        assert may_leave.wait(WAIT_SECONDS)
        raise Cancelled

    def take(has_asked: threading.Event) -> Thing:
        # Asked for the first time when it waits already.
        with shelf.hold("a", lambda: Thing(3), has_asked.set) as thing:
            taken: Thing = thing
            return taken

    def leave() -> None:
        with shelf.hold("a", load_and_leave, unhurried):
            pytest.fail("nothing to hold")

    with ThreadPoolExecutor(3) as threads:
        leaving = threads.submit(leave)
        assert entered.wait(WAIT_SECONDS)
        others = [threads.submit(take, each) for each in asked]
        assert all(each.wait(WAIT_SECONDS) for each in asked)
        may_leave.set()
        with pytest.raises(Cancelled):
            leaving.result(WAIT_SECONDS)
        assert [other.result(WAIT_SECONDS) for other in others] == [Thing(3)] * 2
    assert shelf.loads == 1


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
