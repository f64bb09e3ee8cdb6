"""Prints what the named modules of protoc describe, as JSON: run in a process for each set of them."""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

told: dict[str, dict[str, Any]] = {"messages": {}, "enumerations": {}, "methods": {}}


def field(each: Any) -> dict[str, Any]:
    kind = each.message_type or each.enum_type
    return {
        "number": each.number,
        "type": each.type,
        "of": kind and kind.full_name,
        "repeated": each.is_repeated,
        "presence": each.has_presence,
        "oneof": each.containing_oneof and each.containing_oneof.name,
    }


def tell(file: Any) -> None:
    for message in file.message_types_by_name.values():
        told["messages"][message.full_name] = {each.name: field(each) for each in message.fields}
    for enumeration in file.enum_types_by_name.values():
        told["enumerations"][enumeration.full_name] = {each.name: each.number for each in enumeration.values}
    for service in file.services_by_name.values():
        for each in service.methods:
            kinds = [
                each.input_type.full_name,
                each.output_type.full_name,
                each.client_streaming,
                each.server_streaming,
            ]
            told["methods"][each.full_name] = kinds
    for other in file.dependencies:
        if other.package in ("gooseai", "tensors"):
            tell(other)


for name in sys.argv[1:]:
    tell(importlib.import_module(name).DESCRIPTOR)
json.dump(told, sys.stdout)
