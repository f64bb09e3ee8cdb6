"""`inpaintd models add` and `check`: what people bring gets an entry of the models file, which stays theirs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from storage.model_catalog import Folder, ModelCatalog, SingleFile, load_catalog
from storage.settings import StorageSettings, storage_settings
from tests.painting import LIBRARY_WARNINGS
from tests.single_file import write_single_file
from tests.tiny_models import make_tiny_model
from worker import cli

pytestmark = LIBRARY_WARNINGS

OWN_TEXT = """# My models.
default = "mine"   # for now

[models.mine]   # an old one
folder = "weights/mine"
"""
Command = Callable[..., str]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("MODELS_FILE", str(tmp_path / "models.toml"))
    monkeypatch.setenv("MODELS_DIR", str(tmp_path / "pulled"))
    monkeypatch.setenv("DEVICE", "cpu")
    monkeypatch.setattr(cli, "console", cli.Console(highlight=False, width=200))
    storage_settings.cache_clear()
    yield tmp_path
    storage_settings.cache_clear()


@pytest.fixture
def command(home: Path) -> Command:
    def run(*arguments: object, code: int = 0) -> str:
        result = CliRunner().invoke(cli.models, [str(each) for each in arguments])
        said = " ".join(result.output.split())
        assert result.exit_code == code, said
        return said

    return run


def catalog(home: Path) -> ModelCatalog:
    return load_catalog(StorageSettings(models_file=home / "models.toml", models_dir=home / "pulled"))


def write_lora(path: Path, *, width: int = 768) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"
    save_file({name: torch.zeros(4, width)}, path)
    return path


def test_a_checkpoint_is_added_with_what_its_header_says_and_paths_start_at_the_file(
    home: Path, command: Command
) -> None:
    (home / "weights").mkdir()
    folder = make_tiny_model(home, family="sdxl", channels=4)
    file = write_single_file(folder, home / "weights" / "Fine XL (v2).safetensors", layout="sdxl")
    said = command("add", file, "--alias", "fine", "--alias", "xl", "--default")
    assert "fine-xl-v2 is a checkpoint of Stable Diffusion XL in float32, its UNet with 4 channels" in said
    found = catalog(home)
    entry = found.find("xl")
    assert entry is found.default
    assert entry is not None and entry.source == SingleFile(file)
    assert (entry.family, entry.native_size, entry.min_size, entry.max_size) == ("sdxl", 1024, 512, 1536)
    assert 'file = "weights/Fine XL (v2).safetensors"' in (home / "models.toml").read_text()


def test_what_people_wrote_stays(home: Path, command: Command) -> None:
    (home / "models.toml").write_text(OWN_TEXT)
    (home / "models.toml").chmod(0o640)
    make_tiny_model(home)
    model = make_tiny_model(home / "elsewhere")
    command("add", model, "--id", "new one", "--default")
    text = (home / "models.toml").read_text()
    assert text.startswith(OWN_TEXT.replace('default = "mine"', 'default = "new one"').rstrip())
    assert (home / "models.toml").stat().st_mode & 0o777 == 0o640
    assert catalog(home).default.source == Folder(model)
    assert [path.name for path in home.glob(".*")] == [], "nothing is left lying about"


@pytest.mark.parametrize("before", ["", "# nothing yet\n", '[models.a]\nfolder = "a"\n'])
def test_a_default_is_written_before_the_first_table(home: Path, command: Command, before: str) -> None:
    (home / "models.toml").write_text(before)
    command("add", make_tiny_model(home), "--id", "b", "--default")
    assert catalog(home).default.id == "b"
    assert before.strip() in (home / "models.toml").read_text()


def test_addons_are_added_each_to_its_section_and_listed_and_checked(home: Path, command: Command) -> None:
    model = make_tiny_model(home)
    save_file({"emb_params": torch.zeros(2, 768)}, home / "toad.safetensors")
    adapter = home / "sd15"
    (adapter / "image_encoder").mkdir(parents=True)
    (adapter / "image_encoder" / "config.json").write_text("{}")
    save_file(
        {"image_proj.proj.weight": torch.zeros(1), "ip_adapter.1.to_k_ip.weight": torch.zeros(2, 768)},
        adapter / "ip.safetensors",
    )
    command("add", write_lora(home / "Ink.safetensors"), "--alias", "contrast")
    command("add", model / "vae")
    command("add", home / "toad.safetensors", "--token", "<toad>")
    command("add", adapter / "ip.safetensors", "--id", "ip-adapter_sd15")
    addons = catalog(home).addons
    assert (addons.loras[0].id, addons.loras[0].aliases, addons.loras[0].family) == ("ink", ("contrast",), "sd")
    assert (addons.vaes[0].id, addons.vaes[0].path) == ("vae", model / "vae")
    assert (addons.embeddings[0].token, addons.ip_adapters[0].image_encoder) == ("<toad>", adapter / "image_encoder")
    listed = command("list", "--aliases")
    for shown in ("doodle (default)", "LoRA", "ink", "contrast", "IP-adapter", "textual inversion", "VAE"):
        assert shown in listed
    for name in ("contrast", "vae", "toad", "ip-adapter_sd15"):
        said = command("check", name)
        assert "sha256" in said
        assert "the next job that uses it has the new one" in said
        assert "restart them" not in said
    (adapter / "image_encoder" / "config.json").unlink()
    assert "image encoder's folder has no config.json" in command("check", "ip-adapter_sd15", code=1)
    write_lora(home / "Ink.safetensors", width=2048)
    assert "the models file says that it is of family sd" in command("check", "ink", code=1)


def test_a_file_in_the_hubs_own_cache_is_named_by_its_name_there(home: Path, command: Command) -> None:
    """The cache keeps files under their hashes; the names are links to them."""
    blob = write_lora(home / "blobs" / "0a1b2c")
    link = home / "snapshots" / "Ink.safetensors"
    link.parent.mkdir()
    link.symlink_to(blob)
    assert command("add", link).startswith("ink is a LoRA")
    assert [each.path for each in catalog(home).addons.loras] == [link]
    assert "sha256" in command("check", "ink")


def test_a_name_that_is_no_text_is_refused_and_nothing_lies_about(home: Path, command: Command) -> None:
    lora = write_lora(home / os.fsdecode(b"ink-\xff.safetensors"))
    assert "no text in UTF-8" in command("add", lora, code=1)
    assert {path.suffix for path in home.iterdir()} == {".safetensors"}
    (home / "models.toml").write_bytes(b'default = "\xff"')
    assert "is not TOML" in command("list", code=1)


def test_a_safety_checker_is_added_once(home: Path, command: Command) -> None:
    folder = home / "checker"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["StableDiffusionSafetyChecker"]}')
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    command("add", folder)
    assert catalog(home).addons.safety_checker == folder
    said = command("check", "safety_checker")
    assert "safety_checker is a safety checker." in said
    assert "restart them after a change" in said
    assert "the next job" not in said
    before = (home / "models.toml").read_text()
    assert "Nothing was added" in command("add", folder, code=1)
    assert (home / "models.toml").read_text() == before


def test_what_cannot_be_added_says_why_and_changes_nothing(home: Path, command: Command) -> None:
    (home / "models.toml").write_text(OWN_TEXT)
    lora = write_lora(home / "ink.safetensors")
    odd = write_lora(home / "odd.safetensors", width=5)
    save_file(
        {"image_proj.proj.weight": torch.zeros(1), "ip_adapter.1.to_k_ip.weight": torch.zeros(2, 768)},
        home / "ip.safetensors",
    )
    (home / "old.ckpt").write_bytes(b"")
    for arguments, told in (
        ([home / "old.ckpt"], "old.ckpt is a pickle: reading a pickle can run any program"),
        ([odd], "say --family sd or --family sdxl"),
        ([lora, "--family", "sdxl"], "a LoRA for Stable Diffusion 1, in kohya's format, not of family sdxl"),
        ([lora, "--default"], "Only a model can be the default"),
        ([home / "ip.safetensors"], "--image-encoder"),
        ([make_tiny_model(home), "--id", "mine"], "not TOML"),
        ([make_tiny_model(home), "--alias", "doodle"], "belongs to both"),
        ([home / "nowhere.safetensors"], "no file or folder here"),
    ):
        assert told in command("add", *arguments, code=1)
    assert (home / "models.toml").read_text() == OWN_TEXT
    assert "odd is a LoRA" in command("add", odd, "--family", "sdxl")


def test_check_paints_with_a_checkpoint_and_names_one_that_is_cut_short(home: Path, command: Command) -> None:
    folder = make_tiny_model(home)
    file = write_single_file(folder, home / "tiny.safetensors")
    command("add", file, "--config", folder)
    text = (home / "models.toml").read_text().replace("min_size = 256", "min_size = 64")
    (home / "models.toml").write_text(text)
    said = command("check", "tiny")
    assert "tiny is a checkpoint of Stable Diffusion 1 in float32" in said
    assert "tiny works: painted 64x64 on cpu" in said
    os.truncate(file, file.stat().st_size - 100)
    assert "tiny.safetensors is cut short" in command("check", "tiny", code=1)
    assert "no: tiny.safetensors is cut short" in command("list")
