"""Readers of untrusted values: bodies as clients really send them, and the field types of the wire's models.

Clients send numbers as strings, flags as yes/no, true, 1 or "true", names with blanks and capitals, and
null or "" for what they do not set. Each field type reads all of these, and describes itself to OpenAPI.
"""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError, core_schema
from werkzeug.formparser import FormDataParser
from werkzeug.http import parse_options_header

from api.errors import InvalidFields, MalformedBody, Problem

MAX_FORM_FIELDS = 500
MAX_DIGITS = 30
NO_VALUE_WORDS = frozenset({"null", "none", "undefined"})
YES_WORDS = frozenset({"yes", "true", "1", "on", "y"})
NO_WORDS = frozenset({"no", "false", "0", "off", "n"})
NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.ASCII | re.IGNORECASE)
INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
FORM_START = re.compile(rb"\s*[^\s=&{}\[\]\"<>]*=", re.ASCII)
# JSON can name half of a surrogate pair, and NUL: no text that can be stored or painted has them.
NOT_TEXT = re.compile("[\x00\ud800-\udfff]")

Model = TypeVar("Model", bound=BaseModel)


# -- bodies ---------------------------------------------------------------------------------------


def read_body(raw: bytes, content_type: str = "") -> dict[str, Any]:
    """The fields of a JSON object or a form, whichever it is; the Content-Type decides only for multipart.

    Names are folded. Raises MalformedBody.
    """
    if not raw.strip():
        return {}
    mimetype, options = parse_options_header(content_type)
    if mimetype == "multipart/form-data":
        return fold(_read_multipart(raw, options))
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        body = _read_form(raw)
    if not isinstance(body, dict):
        raise MalformedBody
    return fold(body)


def _read_form(raw: bytes) -> dict[str, Any]:
    if not FORM_START.match(raw):
        raise MalformedBody
    try:
        pairs = parse_qsl(raw.decode().strip(), keep_blank_values=True, max_num_fields=MAX_FORM_FIELDS)
    except ValueError as error:
        raise MalformedBody from error
    return dict(reversed(pairs))


def _read_multipart(raw: bytes, options: Mapping[str, str]) -> dict[str, Any]:
    parser = FormDataParser(
        max_form_memory_size=len(raw), max_content_length=len(raw), max_form_parts=MAX_FORM_FIELDS, silent=False
    )
    try:
        _, form, _ = parser.parse(BytesIO(raw), "multipart/form-data", len(raw), dict(options))
    except (ValueError, KeyError) as error:
        raise MalformedBody from error
    return form.to_dict()


def fold(body: Mapping[str, Any]) -> dict[str, Any]:
    """Names stripped and case-folded; of two that become equal, the one written exactly so counts."""
    folded: dict[str, Any] = {}
    for name, value in body.items():
        folded.setdefault(name.strip().casefold(), value)
    return folded | {name: value for name, value in body.items() if name == name.strip().casefold()}


def is_blank(value: Any) -> bool:
    """Whether the client has left this open: null, "", or a word for it."""
    if isinstance(value, str):
        return not value.strip() or value.strip().casefold() in NO_VALUE_WORDS
    return value is None


# -- field types ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wire(ABC):
    """A field type of the wire: `Annotated[int, WireInteger(1, 4)]` reads, checks and describes the field."""

    @abstractmethod
    def read(self, value: Any) -> Any:
        """Raises PydanticCustomError."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """JSON Schema."""

    def is_blank(self, value: Any) -> bool:
        return is_blank(value)

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(
        self, _schema: core_schema.CoreSchema, _handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return self.describe()


@dataclass(frozen=True)
class WireText(Wire):
    def read(self, value: Any) -> str:
        if not isinstance(value, str):
            raise PydanticCustomError("not_text", "not a string")
        return NOT_TEXT.sub("", value).strip()

    def describe(self) -> dict[str, Any]:
        return {"type": "string"}

    def is_blank(self, value: Any) -> bool:
        # "none" is a prompt.
        return value is None or (isinstance(value, str) and not NOT_TEXT.sub("", value).strip())


@dataclass(frozen=True)
class WireName(WireText):
    """A name of something: no prompt is one, so "null" is none."""

    def is_blank(self, value: Any) -> bool:
        return is_blank(value) or super().is_blank(value)


@dataclass(frozen=True)
class WireWish(WireName):
    """A name of something that may be wanted. A word for "no" asks for nothing."""

    def is_blank(self, value: Any) -> bool:
        return _asks_for_nothing(value) or super().is_blank(value)


@dataclass(frozen=True)
class WireTag(Wire):
    """The client's own mark, given back as it came: text or a number."""

    max_chars: int = 255

    def read(self, value: Any) -> str | int | float:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise PydanticCustomError("not_text", "not a string")
        if isinstance(value, float) and not math.isfinite(value):
            raise PydanticCustomError("not_finite", "not finite")
        text = NOT_TEXT.sub("", str(value))
        if len(text) > self.max_chars:
            raise PydanticCustomError("too_long", "too long", {"high": self.max_chars})
        return text if isinstance(value, str) else value

    def describe(self) -> dict[str, Any]:
        return {"type": ["string", "number"]}


@dataclass(frozen=True)
class WireFlag(Wire):
    def read(self, value: Any) -> bool:
        word = str(int(value) if isinstance(value, float) and value in (0, 1) else value).strip().casefold()
        if word in YES_WORDS:
            return True
        if word in NO_WORDS:
            return False
        raise PydanticCustomError("not_a_flag", "neither yes nor no")

    def describe(self) -> dict[str, Any]:
        words = {"type": "string", "enum": ["yes", "no", "true", "false", "1", "0"]}
        return {"anyOf": [{"type": "boolean"}, words, {"type": "integer", "enum": [0, 1]}]}


@dataclass(frozen=True)
class WireInteger(Wire):
    """`low` and `high` are allowed values; None leaves that side open."""

    low: int
    high: int | None = None

    def read(self, value: Any) -> int:
        return int(_in_range(_integer(value), self.low, self.high))

    def describe(self) -> dict[str, Any]:
        return _numeric_schema("integer", self.low, self.high)


@dataclass(frozen=True)
class WireNumber(Wire):
    """`low` and `high` are allowed values."""

    low: float
    high: float

    def read(self, value: Any) -> float:
        return _in_range(_number(value), self.low, self.high)

    def describe(self) -> dict[str, Any]:
        return _numeric_schema("number", self.low, self.high)


@dataclass(frozen=True)
class WireNames(Wire):
    """Names with commas between, or a list of them. A word for "no" asks for none."""

    def read(self, value: Any) -> tuple[str, ...]:
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, str) for part in parts):
            raise PydanticCustomError("not_text", "not a string")
        names = (NOT_TEXT.sub("", name).strip() for part in parts for name in part.split(","))
        return tuple(name for name in names if name)

    def describe(self) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}

    def is_blank(self, value: Any) -> bool:
        return _asks_for_nothing(value)


@dataclass(frozen=True)
class WireNumbers(Wire):
    """A number, numbers with commas between, or a list of them. `low` and `high` are allowed values."""

    low: float
    high: float

    def read(self, value: Any) -> tuple[float, ...]:
        parts = value if isinstance(value, list) else [value]
        each = [text for part in parts for text in (part.split(",") if isinstance(part, str) else [part])]
        return tuple(_in_range(_number(number), self.low, self.high) for number in each)

    def describe(self) -> dict[str, Any]:
        number = _numeric_schema("number", self.low, self.high)
        return {"anyOf": [*number["anyOf"], {"type": "array", "items": number}]}

    def is_blank(self, value: Any) -> bool:
        return is_blank(value) or value == []


def _asks_for_nothing(value: Any) -> bool:
    return is_blank(value) or value in ([], {}, False) or str(value).strip().casefold() in NO_WORDS


def _integer(value: Any) -> int:
    if isinstance(value, str) and len(value) <= MAX_DIGITS and INTEGER.fullmatch(value.strip()):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number = _number(value, kind="not_an_integer")
    if not number.is_integer():
        raise PydanticCustomError("not_an_integer", "not an integer")
    return int(number)


def _number(value: Any, kind: str = "not_a_number") -> float:
    if isinstance(value, str):
        value = value.strip()
        if not NUMBER.fullmatch(value) and not NOT_FINITE.fullmatch(value):
            raise PydanticCustomError(kind, "not a number")
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise PydanticCustomError(kind, "not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise PydanticCustomError("not_finite", "not finite")
    return number


def _in_range(number: float, low: float, high: float | None) -> float:
    if high is None and number < low:
        raise PydanticCustomError("too_small", "too small", {"low": low})
    if number < low or (high is not None and number > high):
        raise PydanticCustomError("out_of_range", "out of range", {"low": low, "high": high})
    return number


def _numeric_schema(kind: str, low: float, high: float | None) -> dict[str, Any]:
    limits = {"minimum": low} if high is None else {"minimum": low, "maximum": high}
    return {"anyOf": [{"type": kind, **limits}, {"type": "string"}]}


# -- models ---------------------------------------------------------------------------------------


def read_fields(model: type[Model], body: Mapping[str, Any]) -> tuple[Model | None, list[Problem]]:
    """The model filled from a body of read_body, or every problem found, in the order of its fields.

    What is blank counts as absent; what the model does not know is ignored.
    """
    values = {
        name: body[name] for name, info in model.model_fields.items() if name in body and not _is_open(info, body[name])
    }
    try:
        return model.model_validate(values), []
    except ValidationError as error:
        return None, [
            Problem(field=str(each["loc"][0]), kind=each["type"], facts=each.get("ctx", {}))
            for each in error.errors(include_url=False, include_input=False)
        ]


def require_fields(model: type[Model], body: Mapping[str, Any]) -> Model:
    """The same, raising InvalidFields."""
    filled, problems = read_fields(model, body)
    if filled is None:
        raise InvalidFields(problems)
    return filled


def _is_open(info: FieldInfo, value: Any) -> bool:
    """Whether the client has left this field open, as its type of the wire has it."""
    for each in info.metadata:
        if isinstance(each, Wire):
            return each.is_blank(value)
    return is_blank(value)
