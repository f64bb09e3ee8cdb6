from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.model_catalog import SHORTEST_SIDE, BadModelsFile, Folder, Hub, SingleFile, load_catalog
from storage.settings import StorageSettings

DOODLE = load_catalog(StorageSettings(models_file=None)).default
OWN_FILE = """
default = "mine"
[models.mine]
aliases = ["m"]
folder = "weights/mine"
native_size = 512
guidance_scale = 7.0
[models.single]
file = "a.safetensors"
config = "a"
[models.alone]
file = "b.safetensors"
family = "sdxl"
prediction_type = "v_prediction"
[models.far]
hub = "someone/model"
revision = "abc"
"""


def catalog_of(tmp_path: Path, text: str):  # type: ignore[no-untyped-def]  # spelled out at its one definition
    path = tmp_path / "models.toml"
    path.write_text(text)
    return load_catalog(StorageSettings(models_file=path, models_dir=tmp_path / "pulled"))


def test_the_built_in_model_is_the_default_and_answers_to_the_seeds_names() -> None:
    catalog = load_catalog(StorageSettings(models_file=None))
    for name in ("doodle", "lazymixv4-inpaint", "stable-inpainting-512-v2-0", "fal-ai/inpaint"):
        assert catalog.find(name) is catalog.default
    assert catalog.find("unknown") is None
    assert isinstance(DOODLE.source, Folder) and (DOODLE.source.path / "model_index.json").is_file()


def test_an_operators_default_takes_over_the_aliases(tmp_path: Path) -> None:
    catalog = catalog_of(tmp_path, OWN_FILE)
    assert catalog.default.id == "mine"
    assert catalog.find("lazymixv4-inpaint") is catalog.find("m") is catalog.default
    assert catalog.find("doodle") is not None


def test_paths_start_at_the_models_file(tmp_path: Path) -> None:
    catalog = catalog_of(tmp_path, OWN_FILE)
    sources = {entry.id: entry.source for entry in catalog.entries}
    assert sources["mine"] == Folder(tmp_path / "weights/mine")
    assert sources["single"] == SingleFile(tmp_path / "a.safetensors", tmp_path / "a")
    assert sources["alone"] == SingleFile(tmp_path / "b.safetensors")
    assert catalog.find("alone").prediction_type == "v_prediction"
    assert sources["far"] == Hub("someone/model", "abc", tmp_path / "pulled" / "far")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[models.a]\n", "exactly one"),
        ('[models.a]\nfolder = "a"\nhub = "b"\n', "exactly one"),
        ('[models.a]\nfolder = "a"\nconfig = "b"\n', "config"),
        ('[models.a]\nfolder = "a"\nprediction_type = "sample"\n', "prediction_type"),
        ('[models.a]\nfolder = "a"\nscheduler = "Nope"\n', "scheduler"),
        ('[models.a]\nfolder = "a"\ncolour = 3\n', "colour"),
        ('[models.a]\nfolder = "a"\nmin_size = 512\nmax_size = 64\n', "min_size"),
        ('default = "b"\n[models.a]\nfolder = "a"\n', "default"),
        ('[models.a]\nfolder = "a"\naliases = ["doodle"]\n', "doodle"),
        ("[models", "TOML"),
    ],
)
def test_a_wrong_models_file_is_refused_with_the_place(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(BadModelsFile, match=word):
        catalog_of(tmp_path, text)


def test_a_missing_models_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadModelsFile, match=r"absent\.toml"):
        load_catalog(StorageSettings(models_file=tmp_path / "absent.toml"))


@pytest.mark.parametrize(
    ("size", "worked"),
    [
        ((256, 256), (256, 256)),
        ((300, 411), (304, 408)),
        ((512, 256), (512, 256)),
        ((1024, 512), (512, 256)),
        ((64, 64), (256, 256)),
        ((100, 150), (256, 384)),
        ((300, 100), (512, 168)),
        ((512, 64), (512, 64)),
        ((1024, 64), (512, 64)),
    ],
)
def test_the_model_works_at_the_nearest_size_it_supports(size: tuple[int, int], worked: tuple[int, int]) -> None:
    assert DOODLE.worked_size(*size) == worked


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_worked_sizes_are_always_supported(width: int, height: int) -> None:
    for length in DOODLE.worked_size(width, height):
        assert length % 8 == 0 and SHORTEST_SIDE <= length <= DOODLE.max_size
