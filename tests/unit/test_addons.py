"""What goes onto a model, as the models file names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.addons import find_addon
from storage.model_catalog import BadModelsFile, ModelCatalog, load_catalog
from storage.settings import StorageSettings

FILE = """
[loras.contrast-fix]
file = "loras/contrast.safetensors"
aliases = ["contrast"]

[loras.xl-detail]
file = "/srv/xl.safetensors"
family = "sdxl"

[vaes.mse]
folder = "vaes/mse"

[ip_adapters.ip-adapter_sd15]
file = "ip/models/ip-adapter_sd15.safetensors"
image_encoder = "ip/models/image_encoder"

[embeddings.easynegative]
file = "embeddings/easynegative.safetensors"

[embeddings.hand]
file = "embeddings/hand.safetensors"
token = "<hand>"

[safety_checker]
folder = "checker"
"""


def load(folder: Path, text: str) -> ModelCatalog:
    path = folder / "models.toml"
    path.write_text(text)
    return load_catalog(StorageSettings(models_file=path))


def test_every_section_is_read_and_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    addons = load(tmp_path, FILE).addons

    assert [(lora.id, lora.family, lora.path) for lora in addons.loras] == [
        ("contrast-fix", "sd", tmp_path / "loras/contrast.safetensors"),
        ("xl-detail", "sdxl", Path("/srv/xl.safetensors")),
    ]
    assert addons.vaes[0].path == tmp_path / "vaes/mse"
    assert addons.ip_adapters[0].image_encoder == tmp_path / "ip/models/image_encoder"
    assert [embedding.token for embedding in addons.embeddings] == ["easynegative", "<hand>"]
    assert addons.safety_checker == tmp_path / "checker"


def test_an_addon_is_found_by_id_and_by_alias(tmp_path: Path) -> None:
    loras = load(tmp_path, FILE).addons.loras

    assert find_addon(loras, "contrast") is loras[0]
    assert find_addon(loras, "xl-detail") is loras[1]
    assert find_addon(loras, "mse") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[loras.a]\nfile = "a"\n[loras.b]\nfile = "b"\naliases = ["a"]\n', "'a' belongs to both 'a' and 'b'"),
        ('[loras."a,b"]\nfile = "a"\n', "no commas"),
        ('[loras.a]\nfolder = "a"\n', "loras.a"),
        ('[ip_adapters.a]\nfile = "a"\n', "ip_adapters.a.image_encoder"),
    ],
)
def test_a_section_that_cannot_be_right_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadModelsFile, match=said):
        load(tmp_path, text)
