"""The ModelsLab family's words for the safety checker: a flag, its older name, and what becomes of the picture."""

from __future__ import annotations

from typing import Protocol

from api.dialects.family_fields import InpaintBody
from api.errors import InvalidFields, Problem
from api.safety import NoSafetyChecker, granted
from storage.job import SafetyAction
from storage.model_catalog import ModelCatalog


class Circumstances(Protocol):
    @property
    def catalog(self) -> ModelCatalog: ...

    @property
    def ignores_missing_checker(self) -> bool: ...


def safety_of(
    asked: InpaintBody, default: SafetyAction, circumstances: Circumstances
) -> tuple[SafetyAction | None, list[str]]:
    """What the job does with a picture in which something is found, and the fields that have no effect.

    Raises InvalidFields where there is no checker, and for a type that there is not.
    """
    flag = "safetychecker" if asked.safety_checker is None else "safety_checker"
    name = asked.safety_checker_type
    has_type = [] if name is None else ["safety_checker_type"]
    if not getattr(asked, flag):
        return None, has_type
    action = default if name is None else _action(name)
    try:
        wish = granted(action, circumstances.catalog, ignores_missing=circumstances.ignores_missing_checker)
    except NoSafetyChecker:
        raise InvalidFields([Problem(flag, "no_safety_checker")]) from None
    return wish, [] if wish else [flag, *has_type]


def _action(name: str) -> SafetyAction:
    try:
        return SafetyAction(name.casefold())
    except ValueError:
        facts = {"choices": ", ".join(SafetyAction)}
        raise InvalidFields([Problem("safety_checker_type", "not_a_choice", facts)]) from None
