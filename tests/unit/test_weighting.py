"""Brackets in prompts: what they weigh, what they mean where they do not pair, and how many steps that takes."""

from __future__ import annotations

import itertools
import sys
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import worker.weighting
from worker.weighting import MAX_WEIGHT, Fragment, split_by_weight

HOSTILE = [
    "(" * 20_000,
    ")" * 20_000,
    "[" * 10_000 + "(" * 10_000,
    "(" * 10_000 + ")" * 10_000,
    "([" * 5_000 + "])" * 5_000,
    "([)]" * 5_000,
    "(a" * 7_000 + ":1.5)" * 1_200,
    "(a:" + "1" * 19_990,
    ":1" * 10_000,
    ": " * 10_000 + ")",
    "(a:1" + " " * 19_990,
    "\\" * 19_999 + "(",
    "(a)[b]" * 3_333,
    "猫" * 20_000,
    "\N{CAT FACE}" * 20_000,
    "(\N{CAT FACE}:1.1)" * 2_857,
]


@pytest.mark.parametrize(
    ("prompt", "fragments"),
    [
        ("a red cat, plain", [("a red cat, plain", 1.0)]),
        ("", []),
        ("a (red) cat", [("a ", 1.0), ("red", 1.1), (" cat", 1.0)]),
        ("((red)) cat", [("red", 1.1 * 1.1), (" cat", 1.0)]),
        ("[red] cat", [("red", 1 / 1.1), (" cat", 1.0)]),
        ("(red:1.3) cat", [("red", 1.3), (" cat", 1.0)]),
        ("(red : 1.3 ) cat", [("red ", 1.3), (" cat", 1.0)]),
        ("(red:.5)(blue:-1)(old:2.)", [("red", 0.5), ("blue", -1.0), ("old", 2.0)]),
        ("(a (b:2) c:1.5)", [("a ", 1.5), ("b", 3.0), (" c", 1.5)]),
        ("(a)(b) [c]", [("ab", 1.1), (" ", 1.0), ("c", 1 / 1.1)]),
        (r"a \(red\) \[cat\] \\", [("a (red) [cat] \\", 1.0)]),
        (r"C:\pictures", [("C:\\pictures", 1.0)]),
        ("16:9 at 1:2", [("16:9 at 1:2", 1.0)]),
        ("a :) or :( cat", [("a :) or :( cat", 1.0)]),
        ("a) b] c", [("a) b] c", 1.0)]),
        ("(a [b) c]", [("(a ", 1.0), ("b) c", 1 / 1.1)]),
        ("ratio:1.3)", [("ratio:1.3)", 1.0)]),
        ("[red:1.3)", [("[red:1.3)", 1.0)]),
        ("(a:99999)", [("a", MAX_WEIGHT)]),
        ("(a:-99999)", [("a", -MAX_WEIGHT)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("()[]", []),
    ],
)
def test_brackets_weigh_what_is_between_them(prompt: str, fragments: list[tuple[str, float]]) -> None:
    found = split_by_weight(prompt)
    assert [fragment.text for fragment in found] == [text for text, _ in fragments]
    assert [fragment.weight for fragment in found] == pytest.approx([weight for _, weight in fragments])


@given(st.text(alphabet="ab :.19-+()[]\\", max_size=60))
def test_whatever_stands_there_no_letter_is_lost(prompt: str) -> None:
    fragments = split_by_weight(prompt)
    joined = "".join(fragment.text for fragment in fragments)
    assert [each for each in joined if each in "ab"] == [each for each in prompt if each in "ab"]
    assert all(abs(fragment.weight) <= MAX_WEIGHT for fragment in fragments)
    assert all(one.weight != other.weight for one, other in itertools.pairwise(fragments))


@given(st.text(alphabet=st.characters(exclude_characters="()[]\\"), max_size=60))
def test_a_prompt_without_brackets_is_one_fragment(prompt: str) -> None:
    assert split_by_weight(prompt) == ([Fragment(prompt)] if prompt else [])


@pytest.mark.parametrize("prompt", HOSTILE, ids=lambda prompt: f"{prompt[:6]}x{len(prompt)}")
def test_the_steps_grow_no_faster_than_the_text(prompt: str) -> None:
    steps = 0

    def count(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal steps
        if frame.f_code.co_filename != worker.weighting.__file__:
            return None
        steps += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        fragments = split_by_weight(prompt)
    finally:
        sys.settrace(before)
    assert steps <= 25 * len(prompt) + 25
    assert len(fragments) <= len(prompt)
