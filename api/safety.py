"""What a wish for the safety checker becomes, in every dialect the same."""

from __future__ import annotations

from storage.job import SafetyAction
from storage.model_catalog import ModelCatalog


class NoSafetyChecker(Exception):
    """There is none, and the operator wants such wishes refused."""


def granted(action: SafetyAction | None, catalog: ModelCatalog, *, ignores_missing: bool) -> SafetyAction | None:
    """The wish as far as it is met: None for no wish, and for one that is to be ignored. Raises NoSafetyChecker."""
    if action is None or catalog.addons.safety_checker is not None:
        return action
    if ignores_missing:
        return None
    raise NoSafetyChecker
