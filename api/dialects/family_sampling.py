"""The scheduler that a body of the ModelsLab family asks for, with its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from api.dialects.family_fields import InpaintBody
from api.errors import InvalidFields, Problem
from storage.model_catalog import ModelEntry
from storage.schedulers import KNOWN_SCHEDULERS, SCHEDULERS, SOLVERS, STAND_INS, known_scheduler

SHOWN_CHARS = 100


@dataclass(frozen=True)
class Sampling:
    """`ignored`: fields that were given and have no effect on this scheduler; `wire`: what the record keeps."""

    scheduler: str
    use_karras_sigmas: bool
    algorithm_type: str | None
    ignored: tuple[str, ...] = ()
    wire: Mapping[str, str] = field(default_factory=dict)


def sampling_of(asked: InpaintBody, entry: ModelEntry, *, karras_by_default: bool) -> Sampling:
    """A scheduler that cannot inpaint is painted by its stand-in. Raises InvalidFields."""
    name = _scheduler(asked.scheduler, entry)
    stand_in = STAND_INS.get(name)
    scheduler = stand_in.scheduler if stand_in else name
    facts = SCHEDULERS[scheduler]
    ignored = []
    wants_karras = karras_by_default if asked.use_karras_sigmas is None else asked.use_karras_sigmas
    if asked.use_karras_sigmas and not facts.honours_karras:
        ignored.append("use_karras_sigmas")
    if stand_in and stand_in.use_karras_sigmas:
        wants_karras = True
        if asked.use_karras_sigmas is False:
            ignored.append("use_karras_sigmas")
    algorithm_type = _algorithm_type(asked.algorithm_type)
    if algorithm_type is not None and algorithm_type not in facts.algorithm_types:
        ignored.append("algorithm_type")
        algorithm_type = None
    return Sampling(
        scheduler=scheduler,
        use_karras_sigmas=wants_karras and facts.honours_karras,
        algorithm_type=algorithm_type,
        ignored=tuple(ignored),
        wire={"scheduler_asked": name} if stand_in else {},
    )


def _scheduler(name: str | None, entry: ModelEntry) -> str:
    if name is None:
        return entry.scheduler
    known = known_scheduler(name)
    if known is None:
        choices = ", ".join(KNOWN_SCHEDULERS)
        raise InvalidFields([Problem("scheduler", "not_a_choice", {"value": name[:SHOWN_CHARS], "choices": choices})])
    return known


def _algorithm_type(name: str | None) -> str | None:
    """One of SOLVERS; None for no wish. The vendor's documents write three plus signs."""
    if name is None or name.casefold() == "none":
        return None
    solver = name.casefold().rstrip("+") + "++"
    if solver not in SOLVERS:
        raise InvalidFields([Problem("algorithm_type", "not_a_choice", {"choices": ", ".join(SOLVERS)})])
    return solver
