"""What is posted to a webhook: a dialect's `render_webhook(job)` makes it, here it becomes signed bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from standardwebhooks import Webhook

LONGEST_SHOWN_CHARS = 1000


@dataclass(frozen=True, kw_only=True)
class WebhookMessage:
    """`body` is plain JSON values and carries links, never pictures. `headers` are the dialect's own."""

    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)


def encode_body(body: Mapping[str, Any], *, max_bytes: int) -> bytes:
    """JSON as it is posted and signed. Long texts inside `meta` are cut where it would be too long.

    Raises ValueError where that does not help. Source of the 20 kB: Standard Webhooks, "payload size".
    """
    encoded = _encode(body)
    if len(encoded) >= max_bytes and isinstance(body.get("meta"), Mapping):
        encoded = _encode({**body, "meta": _cut(body["meta"])})
    if len(encoded) >= max_bytes:
        raise ValueError(f"a webhook body of {len(encoded)} bytes")
    return encoded


def sign(job_id: str, body: bytes, *, secret: str) -> dict[str, str]:
    """The headers of Standard Webhooks. The id is the same on every try, the time is this one's."""
    message_id = f"msg_{job_id}"
    now = datetime.now(tz=UTC)
    return {
        "Content-Type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign(message_id, now, body.decode()),
    }


def _encode(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


def _cut(value: Any) -> Any:
    if isinstance(value, str) and len(value) > LONGEST_SHOWN_CHARS:
        return value[: LONGEST_SHOWN_CHARS - 1] + "…"
    if isinstance(value, Mapping):
        return {name: _cut(each) for name, each in value.items()}
    return [_cut(each) for each in value] if isinstance(value, list | tuple) else value
