"""One table says of each field whether it is honoured, refused or ignored; it covers what the vendors document."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from api.dialects import modelslab, stable_diffusion_v3
from api.dialects.family import parse
from api.dialects.family_fields import FIELDS, Fate, InpaintBody
from tests.golden_pairs import circumstances

# What the documented bodies of the three endpoints name.
DOCUMENTED = {
    *("key", "prompt", "negative_prompt", "init_image", "mask_image", "model_id", "width", "height", "samples"),
    *("steps", "num_inference_steps", "guidance_scale", "strength", "seed", "scheduler", "use_karras_sigmas"),
    *("base64", "temp", "webhook", "track_id", "instant_response", "enhance_prompt", "safety_checker"),
    *("safety_checker_type", "clip_skip", "algorithm_type", "lora_model", "lora_strength", "vae"),
    *("ip_adapter_id", "ip_adapter_scale", "ip_adapter_image"),
}
SEEDS = Path(__file__).parents[3] / "shared" / "seeds"
FATES = {each.name: each.fate for each in FIELDS}


def named_in_seeds() -> set[str]:
    """Names of request fields: in bodies (`"name":`), attribute tables and request schemas."""
    names = set()
    for path in SEEDS.glob("00[124]_*.txt"):
        text = path.read_text(errors="replace")
        for body in re.findall(r"## Body\s+```json[^\n]*\n(.*?)```", text, re.DOTALL):
            names |= set(re.findall(r'"(\w+)"\s*:', body))
        for table in re.findall(r"^\| \*\*([\w\\]+)\*\* \|", text, re.MULTILINE):
            names.add(table.replace("\\", ""))
        for schema in re.findall(r"(?:Request|Params):\n(.*?)\n    \w", text + "\n    x", re.DOTALL):
            names |= set(re.findall(r"^        (\w+):$", schema, re.MULTILINE))
    return names


def test_the_table_covers_every_documented_field() -> None:
    assert set(FATES) >= DOCUMENTED


@pytest.mark.skipif(not SEEDS.is_dir(), reason="the vendors' documents are not part of the repository")
def test_the_table_covers_every_field_that_the_vendors_documents_name() -> None:
    names = named_in_seeds()
    assert names >= DOCUMENTED
    assert set(FATES) >= names


def test_each_field_has_one_fate_and_a_note() -> None:
    assert max(Counter(each.name for each in FIELDS).values()) == 1
    assert all(each.note for each in FIELDS)


def test_the_honoured_fields_are_those_the_models_read() -> None:
    assert {name for name, fate in FATES.items() if fate is Fate.HONOURED} == set(InpaintBody.model_fields)


def body(**changes: Any) -> dict[str, Any]:
    return {"prompt": "p", "init_image": "i", "mask_image": "m", "model_id": "photo", **changes}


VARIANTS = [modelslab.REALTIME, modelslab.COMMUNITY, stable_diffusion_v3.INPAINT]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("name", [name for name, fate in FATES.items() if fate is Fate.IGNORED])
def test_an_ignored_field_is_accepted_and_named(variant: Any, name: str) -> None:
    job = parse(body(**{name: "anything"}), variant, circumstances(), dialect="modelslab")
    assert job.wire["ignored"] == [name]
    job = parse(body(**{name: None}), variant, circumstances(), dialect="modelslab")
    assert job.wire["ignored"] == []
