"""A model of the Hugging Face hub to a local folder: the only place that asks the hub, and only when told to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from httpx2 import HTTPError  # huggingface_hub's own HTTP client
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from storage.model_catalog import Hub
from worker.model_files import HALF_PRECISION, PARTS, SAFETENSORS, WEIGHT_PARTS, WHY_NO_PICKLES

ANSWER_TIMEOUT_SECONDS = 30
TEXT_SUFFIXES = (".json", ".txt")


class PullFailed(Exception):
    """The model could not be fetched from the hub."""


def pull(source: Hub) -> None:
    """Fetch what the engine loads of this model, safetensors and text files only, and show the progress.

    A pull that was broken off goes on where it was. Raises PullFailed.
    """
    with _hub_failures(source.repo_id, source.revision):
        found = HfApi().model_info(source.repo_id, revision=source.revision, timeout=ANSWER_TIMEOUT_SECONDS)
        wanted = wanted_files(sibling.rfilename for sibling in found.siblings or ())
        snapshot_download(source.repo_id, revision=found.sha, local_dir=source.path, allow_patterns=wanted)


def family_on_hub(repo_id: str) -> str:
    """By the names of its files. Raises PullFailed, also where weights are pickles only."""
    with _hub_failures(repo_id, None):
        found = HfApi().model_info(repo_id, timeout=ANSWER_TIMEOUT_SECONDS)
    names = [sibling.rfilename for sibling in found.siblings or ()]
    wanted_files(names)
    return _family_of(names)


@contextmanager
def _hub_failures(repo_id: str, revision: str | None) -> Iterator[None]:
    try:
        yield
    except GatedRepoError as error:
        raise PullFailed(
            f"{repo_id} asks for its terms to be accepted on the hub, and for a token in HF_TOKEN."
        ) from error
    except RevisionNotFoundError as error:
        raise PullFailed(f"{repo_id} has no revision {revision}.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise PullFailed(f"The hub has no public model {repo_id} (a private one needs HF_TOKEN).") from error
    except OfflineModeIsEnabled as error:
        raise PullFailed("HF_HUB_OFFLINE is set: nothing may be fetched.") from error
    except HfHubHTTPError as error:
        raise PullFailed(f"The hub refused {repo_id}: {error.response.status_code}.") from error
    except (HTTPError, OSError) as error:
        raise PullFailed(f"The hub cannot be reached, or not to the end ({error.__class__.__name__}).") from error


def wanted_files(names: Iterable[str]) -> list[str]:
    """Of the files of a repository in diffusers' layout, those that the engine loads.

    Whole weights are preferred to half-precision ones. Raises PullFailed where weights are pickles only.
    """
    listed = list(names)
    family = _family_of(listed)
    inside = [name for name in listed if name.split("/")[0] in PARTS[family]]
    texts = [name for name in inside if name.endswith(TEXT_SUFFIXES)]
    weights = [name for name in inside if name.endswith(SAFETENSORS)]
    whole = [name for name in weights if "." not in name.removesuffix(SAFETENSORS)]
    halves = [name for name in weights if f".{HALF_PRECISION}" in name]
    chosen = whole if _complete(whole, family) else halves
    if not _complete(chosen, family):
        raise PullFailed(f"The repository does not hold all parts as safetensors: {WHY_NO_PICKLES}.")
    return ["model_index.json", *texts, *chosen]


def _family_of(names: Iterable[str]) -> str:
    return "sdxl" if any(name.startswith("text_encoder_2/") for name in names) else "sd"


def _complete(weights: Iterable[str], family: str) -> bool:
    return {name.split("/")[0] for name in weights} >= set(WEIGHT_PARTS[family])
