"""Our .proto files: compiled as they stand, and the same on the wire as those inside stability-sdk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from api.dialects.stability.compile import FOLDER, SOURCE_DIR, compile_protos
from tests.clients_of_others import python_package

DUMPER = Path(__file__).parents[1] / "drivers" / "descriptors.py"
OURS = [f"api.dialects.stability.proto.{name}_pb2" for name in ("generation", "engines", "dashboard", "tensors")]
THEIRS = [f"stability_sdk.interfaces.gooseai.{name}.{name}_pb2" for name in ("generation", "engines", "dashboard")]
# In the vendor's newer files and not in this package.
NEWER_FIELDS = {
    "gooseai.OnStatus.artifact_type",
    "gooseai.ImageParameters.content_credentials_parameters",
    "gooseai.EngineInfo.is_adaptive",
}
NEWER_VALUES = {"gooseai.ArtifactType.ARTIFACT_3D_MODEL", "gooseai.ArtifactType.ARTIFACT_AUDIO"}
NEWER_MESSAGES = {"gooseai.ContentCredentialsParameters"}


def dumped(modules: list[str], path: Path) -> Any:
    """Two descriptor sets of one package cannot live in one process."""
    done = subprocess.run(
        [sys.executable, str(DUMPER), *modules],
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_is_compiled_is_what_lies_beside_the_sources(tmp_path: Path) -> None:
    assert compile_protos(tmp_path) == 0
    folder = tmp_path / FOLDER.relative_to(SOURCE_DIR)
    made = {path.name: path.read_text() for path in folder.iterdir()}
    kept = {path.name: path.read_text() for path in FOLDER.glob("*_pb2.py*")}
    assert made == kept, "run: .venv/bin/python -m api.dialects.stability.compile"


@pytest.fixture(scope="module")
def both() -> tuple[Any, Any]:
    return dumped(OURS, SOURCE_DIR), dumped(THEIRS, python_package("stability-sdk==0.8.6"))


def test_every_field_of_ours_is_theirs(both: tuple[Any, Any]) -> None:
    ours, theirs = both
    assert set(ours["messages"]) - set(theirs["messages"]) == NEWER_MESSAGES
    compared = 0
    for message, fields in ours["messages"].items():
        known = theirs["messages"].get(message, {})
        for name, facts in fields.items():
            if f"{message}.{name}" not in NEWER_FIELDS:
                assert facts == known.get(name), f"{message}.{name}"
                compared += 1
    assert compared > 100
    assert {f"{message}.{name}" for message, fields in ours["messages"].items() for name in fields} >= NEWER_FIELDS


def test_every_enumeration_of_ours_is_theirs(both: tuple[Any, Any]) -> None:
    ours, theirs = both
    for enumeration, values in ours["enumerations"].items():
        known = theirs["enumerations"][enumeration]
        for name, number in values.items():
            if f"{enumeration}.{name}" not in NEWER_VALUES:
                assert known.get(name) == number, f"{enumeration}.{name}"
    for complete in ("DiffusionSampler", "MaskedAreaInit", "FinishReason", "GuidancePreset", "StageAction"):
        assert ours["enumerations"][f"gooseai.{complete}"] == theirs["enumerations"][f"gooseai.{complete}"]


def test_every_method_of_ours_is_theirs(both: tuple[Any, Any]) -> None:
    ours, theirs = both
    assert ours["methods"].items() <= theirs["methods"].items()
    assert len(ours["methods"]) == 5
