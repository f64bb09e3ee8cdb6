"""Values are read as clients send them, and refused by name where they cannot be used."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from api.errors import InvalidFields, MalformedBody
from api.fields import (
    WireFlag,
    WireInteger,
    WireName,
    WireNames,
    WireNumber,
    WireNumbers,
    WireTag,
    WireText,
    read_body,
    read_fields,
    require_fields,
)


class Body(BaseModel):
    text: Annotated[str, WireText()] = "absent"
    name: Annotated[str | None, WireName()] = None
    tag: Annotated[str | int | float | None, WireTag()] = None
    width: Annotated[int, WireInteger(64, 1024)] = 512
    steps: Annotated[int | None, WireInteger(1)] = None
    scale: Annotated[float, WireNumber(1, 20)] = 7.5
    flag: Annotated[bool, WireFlag()] = False
    names: Annotated[tuple[str, ...], WireNames()] = ()
    numbers: Annotated[tuple[float, ...], WireNumbers(-5, 5)] = ()


class Needy(BaseModel):
    prompt: Annotated[str, WireText()]
    width: Annotated[int, WireInteger(64, 1024)] = 512


def read(**values: Any) -> Body:
    return require_fields(Body, values)


def problem_of(**values: Any) -> tuple[str, str]:
    with pytest.raises(InvalidFields) as refused:
        read(**values)
    problem = refused.value.problems[0]
    return problem.field, problem.kind


@pytest.mark.parametrize("value", [100, 100.0, "100", " 100 ", "100.0", "1e2", "+100"])
def test_an_integer_is_read_however_it_is_written(value: Any) -> None:
    assert read(width=value).width == 100


@pytest.mark.parametrize("value", ["a,b", " a , b ", ["a", "b"], ["a,b"], "a,,b,", ["a", " b", ""]])
def test_names_are_read_however_they_are_listed(value: Any) -> None:
    assert read(names=value).names == ("a", "b")


@pytest.mark.parametrize("value", [None, "", "null", "none", "no", [], False, 0, " , "])
def test_no_names_are_none(value: Any) -> None:
    assert read(names=value).names == ()


@pytest.mark.parametrize("value", ["0.5,1", " 0.5 , 1 ", [0.5, 1], ["0.5", "1.0"], "5e-1,+1"])
def test_numbers_are_read_however_they_are_listed(value: Any) -> None:
    assert read(numbers=value).numbers == (0.5, 1.0)
    assert read(numbers=0.5).numbers == read(numbers="0.5").numbers == (0.5,)


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("names", ["a", 1], "not_text"),
        ("names", {"a": "b"}, "not_text"),
        ("numbers", "a", "not_a_number"),
        ("numbers", "1,,1", "not_a_number"),
        ("numbers", [[1]], "not_a_number"),
        ("numbers", True, "not_a_number"),
        ("numbers", "1,nan", "not_finite"),
        ("numbers", [1, 5.1], "out_of_range"),
    ],
)
def test_lists_that_cannot_be_used_are_refused_by_name(name: str, value: Any, kind: str) -> None:
    assert problem_of(**{name: value}) == (name, kind)


@pytest.mark.parametrize("value", ["yes", "YES", " true ", True, 1, "1", 1.0, "on", "y"])
def test_a_yes_is_read_however_it_is_written(value: Any) -> None:
    assert read(flag=value).flag is True


@pytest.mark.parametrize("value", ["no", "No", "false", False, 0, "0", 0.0, "off", "n"])
def test_a_no_is_read_however_it_is_written(value: Any) -> None:
    assert Body(flag=True).flag is True
    assert read(flag=value).flag is False


@pytest.mark.parametrize("value", [7, 7.0, "7", "7.", "7.0", "70e-1"])
def test_a_number_is_read_however_it_is_written(value: Any) -> None:
    assert read(scale=value).scale == 7.0


@pytest.mark.parametrize("value", [None, "", "   ", "null", "None", "undefined"])
def test_what_is_left_open_counts_as_absent(value: Any) -> None:
    filled = read(width=value, scale=value, flag=value, name=value, steps=value)
    assert filled == Body()


def test_none_is_a_prompt_though_it_is_no_name() -> None:
    assert read(text="none", name="none") == Body(text="none")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"width": 63}, ("width", "out_of_range")),
        ({"width": 1025}, ("width", "out_of_range")),
        ({"width": "64.5"}, ("width", "not_an_integer")),
        ({"width": "512px"}, ("width", "not_an_integer")),
        ({"width": "5_12"}, ("width", "not_an_integer")),
        ({"width": "５１２"}, ("width", "not_an_integer")),
        ({"width": True}, ("width", "not_an_integer")),
        ({"width": [512]}, ("width", "not_an_integer")),
        ({"width": {}}, ("width", "not_an_integer")),
        ({"width": math.nan}, ("width", "not_finite")),
        ({"width": "nan"}, ("width", "not_finite")),
        ({"width": "-Infinity"}, ("width", "not_finite")),
        ({"width": 10**400}, ("width", "out_of_range")),
        ({"steps": 0}, ("steps", "too_small")),
        ({"scale": math.inf}, ("scale", "not_finite")),
        ({"scale": "1e999"}, ("scale", "not_finite")),
        ({"scale": 10**400}, ("scale", "not_finite")),
        ({"scale": 0.99}, ("scale", "out_of_range")),
        ({"scale": "20.01"}, ("scale", "out_of_range")),
        ({"scale": "much"}, ("scale", "not_a_number")),
        ({"scale": False}, ("scale", "not_a_number")),
        ({"flag": "maybe"}, ("flag", "not_a_flag")),
        ({"flag": 2}, ("flag", "not_a_flag")),
        ({"flag": ["yes"]}, ("flag", "not_a_flag")),
        ({"text": 5}, ("text", "not_text")),
        ({"text": ["a"]}, ("text", "not_text")),
        ({"tag": True}, ("tag", "not_text")),
        ({"tag": "x" * 256}, ("tag", "too_long")),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_name(values: dict[str, Any], problem: tuple[str, str]) -> None:
    assert problem_of(**values) == problem


def test_all_problems_are_found_in_the_order_of_the_fields() -> None:
    filled, problems = read_fields(Needy, {"width": "wide"})
    assert filled is None
    assert [(problem.field, problem.kind) for problem in problems] == [
        ("prompt", "missing"),
        ("width", "not_an_integer"),
    ]


def test_half_a_surrogate_pair_and_nul_are_left_out_of_texts() -> None:
    assert read(text="a\ud800b\x00c").text == "abc"


def test_a_tag_comes_back_as_it_came() -> None:
    assert [read(tag=value).tag for value in (5, "5", 5.5)] == [5, "5", 5.5]


BODY = {"key": "k", "prompt": "a cat & a dog = 100%"}


@pytest.mark.parametrize("content_type", ["application/json", "application/x-www-form-urlencoded", "text/plain", ""])
def test_json_is_read_whatever_the_content_type_says(content_type: str) -> None:
    assert read_body(json.dumps(BODY).encode(), content_type) == BODY


@pytest.mark.parametrize("content_type", ["application/json", "application/x-www-form-urlencoded", "text/plain", ""])
def test_a_form_is_read_whatever_the_content_type_says(content_type: str) -> None:
    assert read_body(b"key=k&prompt=a+cat+%26+a+dog+%3D+100%25", content_type) == BODY


def test_a_multipart_form_is_read() -> None:
    raw = b'--x\r\nContent-Disposition: form-data; name="key"\r\n\r\nk\r\n--x--\r\n'
    assert read_body(raw, "multipart/form-data; boundary=x") == {"key": "k"}


def test_json_with_a_byte_order_mark_is_read() -> None:
    assert read_body(b"\xef\xbb\xbf" + json.dumps(BODY).encode()) == BODY


def test_names_are_stripped_and_case_folded_and_the_exact_one_counts() -> None:
    assert read_body(b'{" Seed": 1, "seed": 2, "SEED": 3, "Key ": "k"}') == {"seed": 2, "key": "k"}


def test_no_body_has_no_fields() -> None:
    assert read_body(b" \n") == {}


@pytest.mark.parametrize(
    "raw",
    [
        b'{"key": "k"',
        b"[1, 2]",
        b'"text"',
        b"5",
        b"null",
        b"hello",
        b"<xml a='1'/>",
        b"{'key': 'k'}",
        b"[" * 100_000,
        b'{"seed": ' + b"9" * 5000 + b"}",
        b"\xff\xfe\xff=1",
        b"&".join(b"a%d=1" % n for n in range(1000)),
    ],
)
def test_a_body_that_is_neither_is_malformed(raw: bytes) -> None:
    with pytest.raises(MalformedBody):
        read_body(raw)


def test_a_multipart_form_without_a_boundary_is_malformed() -> None:
    with pytest.raises(MalformedBody):
        read_body(b"key=k", "multipart/form-data")


@given(st.binary(max_size=200), st.sampled_from(["", "multipart/form-data; boundary=x", "application/json"]))
def test_any_bytes_are_read_or_malformed_and_nothing_else(raw: bytes, content_type: str) -> None:
    with contextlib.suppress(MalformedBody):
        assert isinstance(read_body(raw, content_type), dict)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(Body.model_fields, anything)))
def test_any_values_are_read_or_refused_and_nothing_else(values: dict[str, Any]) -> None:
    filled, problems = read_fields(Body, values)
    assert (filled is None) == bool(problems)
    if filled is not None:
        assert 64 <= filled.width <= 1024
        assert 1 <= filled.scale <= 20
