"""Lists every setting, in environment.example and SETTINGS.md: `python -m deploy.settings_reference`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from api.dialects.stability.settings import GrpcSettings
from api.dispatcher import DispatcherSettings
from api.settings import ApiSettings
from api.webhooks import WebhookSettings
from deploy.protected_flower import FlowerSettings
from storage.settings import EnvironmentSettings, StorageSettings
from worker.settings import WorkerSettings

FILE = Path(__file__).parent / "environment.example"
README = Path(__file__).parent.parent / "README.md"
DOCUMENT = Path(__file__).parent / "SETTINGS.md"
TABLE_BEGIN, TABLE_END = (
    "<!-- settings: made by python -m deploy.settings_reference -->\n",
    "<!-- end of settings -->\n",
)
COMMENT_WIDTH = 100
BEGINNING = (
    "Every setting, with its default. All are environment variables; a line counts once its # is gone. "
    "To use a copy of this file:",
    "    set -a; . ./my.environment; set +a; bash deploy/up",
    "Relative paths start at the root of the repository. The value of NAME may also lie in a file that NAME_FILE "
    "names: the way for secrets. deploy/up puts pictures and models into STATE_DIR unless IMAGE_DIR and MODELS_DIR "
    "say otherwise.",
)
# What the scripts of deploy/ read themselves: name, default, meaning.
LOCAL = (
    ("STATE_DIR", "var", "Where all state lies: Redis's file, pictures, logs, the development key, passwords."),
    ("API_PORT", "8080", "The API's port."),
    ("API_TLS_PORT", "8443", "The API's port over TLS, for deploy/up --tls."),
    ("API_ADDRESS", "127.0.0.1", "The address that the API listens at."),
    ("API_PROCESSES", "1", "gunicorn's worker processes."),
    ("API_THREADS", "320", "Threads of each of them; a client that waits for its picture holds one."),
    ("REDIS_PORT", "16379", "The embedded Redis' port, on 127.0.0.1. There is none where REDIS_URL is set."),
    ("READY_TIMEOUT_SECONDS", "300", "How long deploy/up waits for all parts and the sample picture."),
    ("TORCH_BUILD", "auto", "Which build of torch to install: auto, cpu, cu128, … (uv's --torch-backend)."),
    ("PYTHON", "", "The Python 3.11 or newer that .venv is made with; empty: the first one on the PATH."),
)
# What boto3 reads itself.
AWS = (
    ("AWS_ACCESS_KEY_ID", "", "For the object store, as boto3 reads it; so are the other usual AWS variables."),
    ("AWS_SECRET_ACCESS_KEY", "", "Its secret."),
)
CLASSES: tuple[tuple[str, type[EnvironmentSettings]], ...] = (
    ("Storage: read by every part", StorageSettings),
    ("API", ApiSettings),
    ("gRPC", GrpcSettings),
    ("Webhooks", WebhookSettings),
    ("Dispatcher", DispatcherSettings),
    ("Worker", WorkerSettings),
    ("Flower", FlowerSettings),
)
# What the README shows of them.
FEW = (
    *("STATE_DIR", "API_PORT", "API_ADDRESS", "PUBLIC_URL", "REDIS_URL", "S3_BUCKET"),
    *("MODELS_FILE", "MODEL_MEMORY_BYTES", "WAIT_SECONDS", "ALLOWED_PRIVATE_NETWORKS"),
)


Row = tuple[str, str, str]


def sections() -> list[tuple[str, list[Row]]]:
    """Every setting as (name, default, meaning), by the part that reads it."""
    local = [("This machine's installation: deploy/up, deploy/down", list(LOCAL)), ("S3", list(AWS))]
    return local + [
        (
            title,
            [(name.upper(), _default(field), field.description or "") for name, field in settings.model_fields.items()],
        )
        for title, settings in CLASSES
    ]


def with_table(document: str) -> str:
    """The document with its table of settings as it should be."""
    lines = []
    for title, rows in sections():
        lines += [f"**{title}**", "", *_table(rows), ""]
    return _between_marks(document, lines)


def with_few(readme: str) -> str:
    """The README with its table of the settings most needed as it should be."""
    by_name = {row[0]: row for _, rows in sections() for row in rows}
    return _between_marks(readme, [*_table([by_name[name] for name in FEW]), ""])


def _table(rows: Iterable[Row]) -> list[str]:
    lines = [f"| `{name}` | {f'`{default}`' if default else ''} | {meaning} |" for name, default, meaning in rows]
    return ["| setting | default | meaning |", "| --- | --- | --- |", *lines]


def _between_marks(document: str, lines: list[str]) -> str:
    before, _, rest = document.partition(TABLE_BEGIN)
    _, _, after = rest.partition(TABLE_END)
    return before + TABLE_BEGIN + "\n".join(lines) + TABLE_END + after


def rendered() -> str:
    lines = [line for paragraph in BEGINNING for line in _comment(paragraph)]
    for title, rows in sections():
        lines += ["", "", f"# == {title}"]
        for name, default, meaning in rows:
            lines += ["", *_comment(meaning), f"#{name}={default}"]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> Iterator[str]:
    return (f"# {line}" for line in textwrap.wrap(text, COMMENT_WIDTH))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    value = field.get_default()
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    return "" if value is None else str(value)


if __name__ == "__main__":
    FILE.write_text(rendered())
    DOCUMENT.write_text(with_table(DOCUMENT.read_text()))
    README.write_text(with_few(README.read_text()))
