"""Models from folders and single files: what is loaded, what is refused, and that no network is asked."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from storage.model_catalog import Folder, Hub, SingleFile
from tests.painting import LIBRARY_WARNINGS, load_on_cpu, make_painting, running_engine
from tests.single_file import write_single_file
from tests.tiny_models import make_tiny_model, tiny_entry
from worker import checkpoints
from worker.checking import check_model
from worker.errors import ModelUnavailable
from worker.loading import LOADING, load_model
from worker.model_files import BadModelFiles, count_weights, find_files
from worker.settings import WorkerSettings

pytestmark = LIBRARY_WARNINGS

UNET_WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"
TEXT_WEIGHTS = Path("text_encoder") / "model.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.getbasetemp() / "tiny-models")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def test_a_folder_is_loaded_with_every_weight(folder: Path) -> None:
    model = load_on_cpu(tiny_entry("tiny", folder))
    assert model.sees_mask
    assert (model.latent_channels, model.latent_factor) == (4, 8)
    parts = (model.unet, model.vae, model.prompts.towers[0].encoder)
    loaded = sum(weights.numel() for part in parts for weights in part.parameters())
    assert count_weights(find_files(Folder(folder))) == loaded
    assert not any(part.training for part in parts)


def test_a_worker_loads_models_while_no_library_builds_anything_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[bool] = []
    monkeypatch.setattr("worker.loading.quieten_libraries", lambda: held.append(LOADING.locked()))
    check_model(tiny_entry("tiny", folder), WorkerSettings(torch_threads=1))
    assert held[-1]


def test_a_single_file_gives_the_picture_of_its_folder(original: Path, tmp_path: Path) -> None:
    file = write_single_file(original, tmp_path / "model.safetensors")
    config = tmp_path / "config"
    shutil.copytree(original, config, ignore=shutil.ignore_patterns("*.safetensors"))
    entries = tiny_entry("folder", original), tiny_entry("file", SingleFile(path=file, config=config))
    with running_engine(*entries) as engine:
        [expected] = engine.paint(make_painting("folder"))
        [picture] = engine.paint(make_painting("file"))
    assert np.array_equal(picture, expected)


@pytest.mark.parametrize(
    ("layout", "model", "dtype"),
    [
        ("sd1", {"channels": 4}, torch.float16),
        ("sd2", {"like_2": True, "prediction_type": "v_prediction", "channels": 4}, None),
        ("sdxl", {"family": "sdxl", "two_widths": True}, None),
        (
            "sdxl",
            {"family": "sdxl", "two_widths": True, "channels": 4, "prediction_type": "v_prediction"},
            torch.float16,
        ),
    ],
    ids=["sd1 float16", "sd2 v", "sdxl", "sdxl v float16"],
)
def test_a_single_file_without_a_config_folder_gives_the_picture_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, model: dict[str, Any], dtype: torch.dtype | None
) -> None:
    folder = make_tiny_model(tmp_path, own_words=False, **model)
    if dtype is not None:
        _halve(folder)
    marks = {"v_pred": torch.ones(1)} if layout == "sdxl" and "prediction_type" in model else {}
    file = write_single_file(folder, tmp_path / "model.safetensors", layout=layout, dtype=dtype, marks=marks)
    configs = _configs_of(folder)
    configs["scheduler"]["prediction_type"] = "sample"  # the file decides
    configs["unet"]["in_channels"] = 99
    monkeypatch.setattr(checkpoints, "_layout_configs", {layout: configs}.__getitem__)
    family = model.get("family", "sd")
    entries = tiny_entry("folder", folder, family=family), tiny_entry("file", SingleFile(file), family=family)
    with running_engine(*entries) as engine:
        [expected] = engine.paint(make_painting("folder"))
        [picture] = engine.paint(make_painting("file"))
    assert np.array_equal(picture, expected)


def _halve(folder: Path) -> None:
    for weights in folder.glob("*/*.safetensors"):
        halved = {name: tensor.half() for name, tensor in load_file(weights).items()}
        save_file(halved, weights, metadata={"format": "pt"})


def _configs_of(folder: Path) -> dict[str, dict[str, Any]]:
    found = {"model_index": json.loads((folder / "model_index.json").read_text())}
    for path in folder.glob("*/*config.json"):
        if path.name != "generation_config.json":
            found[path.parent.name] = json.loads(path.read_text())
    return found


def test_a_single_file_of_another_kind_than_its_config_folder_is_refused(original: Path, tmp_path: Path) -> None:
    file = write_single_file(original, tmp_path / "model.safetensors")
    for model, told in (
        ({"family": "sdxl"}, "of family sdxl, model.safetensors is Stable Diffusion 1"),
        ({"channels": 4}, "4 input channels, model.safetensors has 9"),
    ):
        config = make_tiny_model(tmp_path, **model)  # type: ignore[arg-type]  # of two types
        with pytest.raises(BadModelFiles, match=told):
            find_files(SingleFile(path=file, config=config))


def test_what_the_models_file_says_of_the_prediction_counts(original: Path) -> None:
    entry = dataclasses.replace(tiny_entry("tiny", original), prediction_type="v_prediction")
    scheduler = load_on_cpu(entry).schedulers.begin(make_painting().plan)[0]
    assert scheduler.config.prediction_type == "v_prediction"


def test_only_what_is_loaded_of_a_single_file_is_counted(original: Path, tmp_path: Path) -> None:
    plain = write_single_file(original, tmp_path / "plain.safetensors")
    more = write_single_file(original, tmp_path / "more.safetensors", marks={"model_ema.x": torch.ones(1000)})
    assert count_weights(find_files(SingleFile(plain))) == count_weights(find_files(SingleFile(more)))


def test_weights_in_half_precision_only_are_found_and_loaded(folder: Path) -> None:
    for weights in folder.glob("*/*.safetensors"):
        halved = {name: tensor.half() for name, tensor in load_file(weights).items()}
        save_file(halved, weights.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
        weights.unlink()
    model = load_on_cpu(tiny_entry("tiny", folder))
    assert {weights.dtype for weights in model.unet.parameters()} == {torch.float32}


def test_pickled_weights_beside_safetensors_are_never_opened(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"not even a pickle")
    assert load_on_cpu(tiny_entry("tiny", folder)).sees_mask


def _pickle_only(folder: Path) -> None:
    (folder / UNET_WEIGHTS).rename(folder / "unet" / "diffusion_pytorch_model.bin")


def _cut(folder: Path) -> None:
    weights = (folder / UNET_WEIGHTS).read_bytes()
    (folder / UNET_WEIGHTS).write_bytes(weights[: len(weights) // 2])


def _lose_weights(part: Path) -> Callable[[Path], None]:
    def lose(folder: Path) -> None:
        weights = load_file(folder / part)
        weights.pop(sorted(weights)[0])
        save_file(weights, folder / part, metadata={"format": "pt"})

    return lose


def _configure(part: str, **changes: object) -> Callable[[Path], None]:
    def configure(folder: Path) -> None:
        path = folder / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return configure


BROKEN = {
    "pickles only": (_pickle_only, "unet is there as a pickle only .*can run any program"),
    "no weights": (lambda folder: (folder / UNET_WEIGHTS).unlink(), "unet has no .safetensors file"),
    "cut file": (_cut, "cut short"),
    "no safetensors": (lambda folder: (folder / UNET_WEIGHTS).write_bytes(b"x" * 99), "no safetensors file"),
    "no config": (lambda folder: (folder / "vae" / "config.json").unlink(), "vae/config.json"),
    "no index": (lambda folder: (folder / "model_index.json").unlink(), "no model_index.json"),
    "missing UNet weight": (_lose_weights(UNET_WEIGHTS), "unet does not fit its configuration"),
    "missing text weight": (_lose_weights(TEXT_WEIGHTS), "text_encoder does not fit its configuration"),
    "another VAE": (_configure("vae", _class_name="AsymmetricAutoencoderKL"), "its VAE is none of"),
    "another shape": (_configure("unet", in_channels=5), "unet does not fit its configuration"),
}


@pytest.mark.parametrize(("spoil", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_model_that_is_not_whole_is_refused_with_the_reason(
    folder: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    spoil(folder)
    with pytest.raises(BadModelFiles, match=reason) as refusal:
        load_on_cpu(tiny_entry("tiny", folder))
    assert str(folder) not in str(refusal.value)


def test_a_unet_of_another_family_is_refused(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path, channels=5)
    with pytest.raises(BadModelFiles, match="5 input channels; 9 and 4"):
        load_on_cpu(tiny_entry("tiny", folder))


def test_a_model_of_another_family_than_the_models_file_says_is_refused(original: Path, tmp_path: Path) -> None:
    with pytest.raises(BadModelFiles, match="of family sd, the models file says sdxl"):
        load_on_cpu(tiny_entry("tiny", original, family="sdxl"))
    xl = make_tiny_model(tmp_path, family="sdxl")
    with pytest.raises(BadModelFiles, match="of family sdxl, the models file says sd"):
        load_on_cpu(tiny_entry("tiny", xl))


def test_a_model_of_xl_is_loaded_with_both_text_encoders(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path, family="sdxl")
    model = load_on_cpu(tiny_entry("tiny", folder, family="sdxl"))
    parts = (model.unet, model.vae, *(tower.encoder for tower in model.prompts.towers))
    assert len(model.prompts.towers) == 2
    loaded = sum(weights.numel() for part in parts for weights in part.parameters())
    assert count_weights(find_files(Folder(folder))) == loaded


@pytest.mark.parametrize(
    ("part", "changes", "reason"),
    [
        ("unet", {"projection_class_embeddings_input_dim": 5 * 8 + 32}, "does not fit its configuration"),
        ("vae", {"latents_mean": [0.0, 0.0, 0.0, 0.0]}, "moves its latents by a mean"),
        ("unet", {"addition_embed_type": None}, "wants to be told other things"),
    ],
)
def test_a_model_of_xl_that_wants_what_the_engine_does_not_do_is_refused(
    tmp_path: Path, part: str, changes: dict[str, object], reason: str
) -> None:
    folder = make_tiny_model(tmp_path, family="sdxl")
    _configure(part, **changes)(folder)
    with pytest.raises(BadModelFiles, match=reason):
        load_on_cpu(tiny_entry("tiny", folder, family="sdxl"))


def test_a_model_of_xl_without_its_second_text_encoder_is_refused(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path, family="sdxl")
    (folder / "text_encoder_2" / "model.safetensors").unlink()
    with pytest.raises(BadModelFiles, match="text_encoder_2"):
        find_files(Folder(folder))


def test_a_vae_that_overflows_in_float16_runs_in_bfloat16(original: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "upcast"))
    for upcast, expected in ((True, torch.bfloat16), (False, torch.float16)):
        _configure("vae", force_upcast=upcast)(folder)
        model = load_model(
            tiny_entry("tiny", folder), device=torch.device("cpu"), dtype=torch.float16, prompt_cache_entries=1
        )
        assert (model.vae.dtype, model.unet.dtype) == (expected, torch.float16)
    with running_engine(tiny_entry("tiny", folder), load=lambda _entry: model) as engine:
        assert engine.paint(make_painting(num_inference_steps=2))[0].std() > 10


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin"])
def test_a_pickled_checkpoint_is_refused_with_the_reason(original: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(BadModelFiles, match="is a pickle: reading a pickle can run any program"):
        find_files(SingleFile(path=tmp_path / name, config=original))


@pytest.mark.parametrize("part", ["model.diffusion_model", "first_stage_model", "cond_stage_model"])
def test_a_checkpoint_that_lacks_a_weight_is_refused(original: Path, tmp_path: Path, part: str) -> None:
    file = write_single_file(original, tmp_path / "model.safetensors")
    weights = load_file(file)
    weights.pop(next(name for name in sorted(weights) if name.startswith(part) and "bias" in name))
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(BadModelFiles, match=r"does not fit its configuration|lacks weights"):
        load_on_cpu(tiny_entry("tiny", SingleFile(path=file, config=original)))


def test_a_checkpoint_of_other_sizes_or_names_than_its_kind_is_refused_with_what_it_is(
    original: Path, tmp_path: Path
) -> None:
    file = write_single_file(original, tmp_path / "model.safetensors")
    entry = tiny_entry("tiny", SingleFile(file))
    with pytest.raises(BadModelFiles, match=r"fit its configuration, which is that of Stable Diffusion 1; .* config"):
        load_on_cpu(entry)
    renamed = {name.replace(".text_model.", "."): weights for name, weights in load_file(file).items()}
    save_file(renamed, file)
    with pytest.raises(BadModelFiles, match="does not fit its configuration"):
        load_on_cpu(dataclasses.replace(entry, source=SingleFile(file, config=original)))


def test_a_hub_model_that_was_not_pulled_says_how_to_pull_it(tmp_path: Path) -> None:
    entry = tiny_entry("far", Hub(repo_id="someone/something", revision=None, path=tmp_path / "far"))
    with running_engine(entry) as engine, pytest.raises(ModelUnavailable, match="inpaintd models pull"):
        engine.paint(make_painting("far"))


LOAD_WITHOUT_NETWORK = """
import socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = refuse
import dataclasses, json, torch
from pathlib import Path
from storage.model_catalog import Folder, SingleFile, load_catalog
from storage.settings import StorageSettings
from worker.loading import load_model
from worker import checkpoints
folder, file, alone = map(Path, sys.argv[1:4])
checkpoints._layout_configs = json.loads(sys.argv[4]).__getitem__
doodle = load_catalog(StorageSettings()).find("doodle")
for source in (doodle.source, Folder(folder), SingleFile(path=file, config=folder), SingleFile(path=alone)):
    entry = dataclasses.replace(doodle, source=source)
    load_model(entry, device=torch.device("cpu"), dtype=torch.float32, prompt_cache_entries=1)
"""


def test_loading_asks_no_network_and_prints_nothing_of_the_libraries(original: Path, tmp_path: Path) -> None:
    file = write_single_file(original, tmp_path / "model.safetensors")
    with_words = make_tiny_model(tmp_path, own_words=False)
    alone = write_single_file(with_words, tmp_path / "alone.safetensors")
    configs = json.dumps({"sd1": _configs_of(with_words)})
    command = [sys.executable, "-c", LOAD_WITHOUT_NETWORK, str(original), str(file), str(alone), configs]
    quiet = ("TRANSFORMERS_VERBOSITY", "HF_HUB_OFFLINE")
    plain = {name: value for name, value in os.environ.items() if name not in quiet}
    run = subprocess.run(command, env=plain, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stderr
    assert [line for line in run.stderr.splitlines() if line] == []
    assert run.stdout.count("model_loaded") == len(run.stdout.splitlines()) == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_paints(original: Path, dtype: torch.dtype) -> None:
    def load(entry: object) -> object:
        return load_model(entry, device=torch.device("cpu"), dtype=dtype, prompt_cache_entries=1)  # type: ignore[arg-type]

    with running_engine(tiny_entry("tiny", original), load=load) as engine:  # type: ignore[arg-type]
        [picture] = engine.paint(make_painting("tiny", num_inference_steps=2))
    assert picture.shape == (64, 64, 3)
    assert picture.std() > 10
