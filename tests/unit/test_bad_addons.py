"""Files of LoRAs and VAEs that cannot be used: each fails its job alone, and says why without naming a path."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from storage.addons import Addons
from storage.job import LoraUse
from tests.loras import addons_of, write_lora, write_vae
from tests.painting import LIBRARY_WARNINGS, load_on_cpu, make_painting, psnr, running_engine
from tests.tiny_models import make_tiny_model, tiny_entry
from worker.adapters import Adapters
from worker.engine import Painting
from worker.errors import AddonUnavailable
from worker.loading import LoadedModel

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
