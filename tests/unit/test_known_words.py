"""Words that a model does not know are named, where its folder says which it does."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from storage.model_catalog import Folder, SingleFile, load_catalog
from storage.settings import StorageSettings
from worker.known_words import MAX_NAMED, unknown_words

DOODLE = load_catalog(StorageSettings(models_file=None)).default


def test_the_doodle_knows_its_world_and_names_the_rest_once_in_order() -> None:
    assert unknown_words(DOODLE, ["A red circle, on a BLUE background!"]) == []
    assert unknown_words(DOODLE, ["a zebra and a tiger, a Zebra"]) == ["zebra", "tiger"]
    assert unknown_words(DOODLE, ["a red fox", "a 3d café"]) == ["fox", "d", "café"]
    assert unknown_words(DOODLE, ["the cat's t-shirt, a cat’s red-blue house"]) == ["t-shirt"]


def test_the_words_of_textual_inversions_are_known_to_the_job() -> None:
    assert unknown_words(DOODLE, ["a zebra, EasyNegative"], taught=["easynegative"]) == ["zebra"]


def test_a_model_without_a_list_of_words_has_seen_them_all(tmp_path: Path) -> None:
    entry = dataclasses.replace(DOODLE, source=Folder(tmp_path))
    assert unknown_words(entry, ["a zebra"]) == []


def test_a_single_file_has_its_words_beside_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "words.json").write_text(json.dumps(["a"]))
    entry = dataclasses.replace(DOODLE, source=SingleFile(tmp_path / "model.safetensors", config=tmp_path))
    assert unknown_words(entry, ["a zebra"]) == ["zebra"]


def test_a_long_prompt_does_not_fill_the_answer() -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    named = unknown_words(DOODLE, [" ".join(f"q{one}{two}" for one in letters for two in letters), "x" * 500])
    assert len(named) == MAX_NAMED
    assert unknown_words(DOODLE, ["x" * 500]) == ["x" * 40]
