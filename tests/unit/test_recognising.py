"""What people bring: recognised without reading a weight, named where it is not read, and for which family it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.loras import write_lora
from tests.painting import CPU, LIBRARY_WARNINGS, load_on_cpu
from tests.tiny_models import make_tiny_model, tiny_entry
from worker.headers import BadModelFiles
from worker.lora_files import read_lora
from worker.recognising import of_family, recognise

pytestmark = LIBRARY_WARNINGS

BLOCK = "down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
DOTTED = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"


def write(folder: Path, names: dict[str, tuple[int, ...]], name: str = "it.safetensors") -> Path:
    save_file({key: torch.zeros(shape) for key, shape in names.items()}, folder / name)
    return folder / name


@pytest.mark.parametrize(
    ("names", "section", "family", "says"),
    [
        ({f"lora_unet_{BLOCK}.lora_down.weight": (4, 768)}, "loras", "sd", "Stable Diffusion 1, in kohya's"),
        ({f"unet.{DOTTED}.lora_A.weight": (4, 1024)}, "loras", "sd", "Stable Diffusion 2, in diffusers'"),
        ({f"unet.{DOTTED}.lora.down.weight": (4, 2048)}, "loras", "sdxl", "Stable Diffusion XL, in diffusers'"),
        ({f"{DOTTED.replace('to_k', 'processor.to_k_lora')}.down.weight": (4, 768)}, "loras", "sd", "diffusers'"),
        (
            {"lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 2048)},
            *("loras", "sdxl", "kohya's"),
        ),
        (
            {"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 9)},
            *("loras", "sdxl", "for Stable Diffusion XL"),
        ),
        ({f"unet.{DOTTED}.lora_A.weight": (4, 5)}, "loras", None, "a family that cannot be seen"),
        ({"image_proj.latents": (1,), "ip_adapter.1.to_k_ip.weight": (9, 2048)}, "ip_adapters", "sdxl", "(plus)"),
        ({"image_proj.proj.weight": (1,), "ip_adapter.1.to_k_ip.weight": (9, 768)}, "ip_adapters", "sd", "(plain)"),
        ({"emb_params": (3, 768)}, "embeddings", "sd", "Stable Diffusion 1"),
        ({"<cat>": (1024,)}, "embeddings", "sd", "Stable Diffusion 2"),
        ({"clip_l": (2, 768), "clip_g": (2, 1280)}, "embeddings", "sdxl", "Stable Diffusion XL"),
    ],
)
def test_an_addon_is_known_by_its_names_and_widths(
    tmp_path: Path, names: dict[str, tuple[int, ...]], section: str, family: str | None, says: str
) -> None:
    found = recognise(write(tmp_path, names))
    assert (found.section, found.family) == (section, family)
    assert says in found.says


def test_a_family_that_is_said_is_not_called_unseen(tmp_path: Path) -> None:
    found = recognise(write(tmp_path, {f"unet.{DOTTED}.lora_A.weight": (4, 5)}))
    told = of_family(found, "sd")
    assert (told.family, told.says) == ("sd", "a LoRA for Stable Diffusion 1 or 2, in diffusers' format")
    seen = recognise(write(tmp_path, {"emb_params": (3, 768)}))
    assert of_family(seen, "sdxl") == seen


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 9)}, "a LoRA for Flux"),
        ({"transformer.single_transformer_blocks.0.attn.to_k.lora_A.weight": (4, 9)}, "a LoRA for Flux"),
        ({"transformer.transformer_blocks.0.attn.to_k.lora_A.weight": (4, 9)}, "transformer of a later family"),
        ({"lora_unet_joint_blocks_0_x.lora_down.weight": (4, 9)}, "a LoRA for Stable Diffusion 3"),
        ({"diffusion_model.blocks.0.self_attn.q.lora_A.weight": (4, 9)}, "a LoRA for a video model"),
        ({f"lora_unet_{BLOCK}.hada_w1_a": (4, 9)}, "is a LoHa for a family that cannot be seen"),
        ({"lora_unet_double_blocks_0_x.lokr_w1": (4, 9)}, "is a LoKr for Flux"),
        (
            {f"lora_unet_{BLOCK}.lora_down.weight": (4, 768), f"lora_unet_{BLOCK}.dora_scale": (1,)},
            "is a DoRA for Stable Diffusion 1; of these only plain LoRAs are read",
        ),
        ({f"base_model.model.{DOTTED}.lora_A.weight": (4, 768)}, "as PEFT alone writes it"),
        (
            {"image_proj.proj.0.weight": (1,), "ip_adapter.1.to_k_ip.weight": (9, 768)},
            "of another kind than plain and plus",
        ),
        ({"encoder.down.0.block.0.conv1.weight": (1,), "decoder.x": (1,)}, "a VAE in its original layout"),
        ({"encoder.down_blocks.0.x": (1,)}, "no config.json beside it"),
        ({"a": (1,), "b": (1,)}, "something unknown"),
        ({"double_blocks.0.img_attn.qkv.weight": (1,)}, "a checkpoint of Flux"),
    ],
)
def test_what_is_not_read_is_named_with_its_family(
    tmp_path: Path, names: dict[str, tuple[int, ...]], told: str
) -> None:
    with pytest.raises(BadModelFiles, match=r"it\.safetensors is") as refusal:
        recognise(write(tmp_path, names))
    assert told in str(refusal.value)
    assert str(tmp_path) not in str(refusal.value)


@pytest.mark.parametrize("file_format", ["diffusers", "old_diffusers", "kohya"])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_what_trainers_write_and_the_worker_reads_is_a_lora(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, file_format: Any, family: str
) -> None:
    folder = make_tiny_model(tmp_path_factory.getbasetemp() / "tiny-models", family=family)
    model = load_on_cpu(tiny_entry("tiny", folder, family=family))
    lora = write_lora(tmp_path / "it.safetensors", model, file_format=file_format, texts=True)
    assert read_lora(lora, model.unet.config, family=family, device=CPU, dtype=torch.float32).parts
    found = recognise(lora)
    assert found.section == "loras"
    assert found.family == ("sdxl" if family == "sdxl" else None)
    assert ("kohya's" if file_format == "kohya" else "diffusers'") in found.says
    only_text = write_lora(tmp_path / "text.safetensors", model, file_format=file_format, texts=True, unet=False)
    assert recognise(only_text).section == "loras"


def test_pickles_and_files_cut_short_are_never_opened(tmp_path: Path) -> None:
    whole = write(tmp_path, {"emb_params": (3, 768)})
    whole.write_bytes(whole.read_bytes()[:-10])
    with pytest.raises(BadModelFiles, match="is cut short"):
        recognise(whole)
    (tmp_path / "lora.pt").write_bytes(b"")
    with pytest.raises(BadModelFiles, match="can run any program"):
        recognise(tmp_path / "lora.pt")
    for text in (b"", b"x" * 99, b"\x02\0\0\0\0\0\0\0[]", b'\x0f\0\0\0\0\0\0\0{"a":{"b":[1]}}'):
        (tmp_path / "odd.safetensors").write_bytes(text)
        with pytest.raises(BadModelFiles, match="is no safetensors file"):
            recognise(tmp_path / "odd.safetensors")


FIRST = "model.diffusion_model.input_blocks.0.0.weight"
SOUND = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def write_header(folder: Path, header: dict[str, Any]) -> Path:
    text = json.dumps(header).encode()
    path = folder / "odd.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    return path


@pytest.mark.parametrize(
    "header",
    [
        {"a": SOUND, "__metadata__": ["a"]},
        {"a": SOUND, "__metadata__": 5},
        {"a": SOUND | {"shape": [1e999]}},
        {"a": SOUND | {"data_offsets": [0, 1e999]}},
        {"a": SOUND | {"shape": [10**30, 2]}},
        {"a": SOUND | {"shape": [-2, -2]}},
    ],
    ids=str,
)
def test_a_header_that_nobody_would_write_is_refused(tmp_path: Path, header: dict[str, Any]) -> None:
    with pytest.raises(BadModelFiles, match="is no safetensors file"):
        recognise(write_header(tmp_path, header))


def test_weights_of_odd_forms_are_no_models(tmp_path: Path) -> None:
    parts = ("first_stage_model.x", "cond_stage_model.transformer.x")
    with pytest.raises(BadModelFiles, match="no convolution"):
        recognise(write_header(tmp_path, dict.fromkeys((FIRST, *parts), SOUND | {"shape": [4]})))
    names = ("image_proj.latents", "ip_adapter.1.to_k_ip.weight")
    assert recognise(write_header(tmp_path, dict.fromkeys(names, SOUND | {"shape": []}))).family is None


def test_folders_are_models_vaes_checkers_or_nothing(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path, family="sdxl", channels=4, prediction_type="v_prediction")
    found = recognise(model)
    assert (found.section, found.family, found.values["native_size"]) == ("models", "sdxl", 64)
    assert found.says == "a folder of Stable Diffusion XL, its UNet with 4 channels, predicting v_prediction"
    assert (recognise(model / "vae").section, recognise(model / "vae").family) == ("vaes", "sd")
    assert recognise(model / "vae" / "diffusion_pytorch_model.safetensors").path == model / "vae"
    with pytest.raises(BadModelFiles, match="no VAE or safety checker"):
        recognise(model / "unet")
    for kind, told in (("StableDiffusionSafetyChecker", None), ("CLIPVisionModelWithProjection", "--image-encoder")):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"architectures": [kind]}))
        write(folder, {"x": (1,)}, "model.safetensors")
        if told is None:
            assert recognise(folder).section == "safety_checker"
        else:
            with pytest.raises(BadModelFiles, match=told):
                recognise(folder)


def test_everything_that_a_folder_lacks_is_said_at_once(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path)
    for part in ("unet", "vae"):
        (model / part / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(BadModelFiles, match=r"unet has no \.safetensors file; vae has no \.safetensors file"):
        recognise(model)
    for part in ("unet", "vae"):
        (model / part / "config.json").unlink()
    with pytest.raises(BadModelFiles, match=r"unet/config.json, vae/config.json: not there"):
        recognise(model)
