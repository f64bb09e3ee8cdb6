"""Says what is wrong with the settings before anything starts: `python -m deploy.check_settings`."""

from __future__ import annotations

import sys

from pydantic import ValidationError

from deploy.settings_reference import CLASSES
from storage.model_catalog import BadModelsFile, load_catalog
from storage.settings import StorageSettings


def problems() -> list[str]:
    """One line for each setting that cannot be used; the secrets' values are in none."""
    found = []
    for _, settings in CLASSES:
        try:
            settings()
        except ValidationError as error:
            found += [f"{str(row['loc'][0]).upper()}: {row['msg']}" for row in error.errors() if row["loc"]]
    if not found:
        try:
            load_catalog(StorageSettings())
        except BadModelsFile as error:
            found.append(f"MODELS_FILE: {error}")
    return found


if __name__ == "__main__":
    told = problems()
    print("\n".join(told))
    sys.exit(1 if told else 0)
