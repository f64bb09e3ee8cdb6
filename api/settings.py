"""What the operator may choose about the front end: its addresses, its limits, how long clients wait."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, field_validator
from pydantic_settings import NoDecode

from storage.settings import EnvironmentSettings

MEBIBYTE = 1024**2


class ApiSettings(EnvironmentSettings):
    public_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^/?#\s]+(/[^?#\s]*)?$",
        description="Where clients reach this service, with a path if it has one. Unset: the request's host.",
    )
    own_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Further hosts (host or host:port, comma separated) under which links to our pictures go.",
    )
    trusted_proxies: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = Field(
        default=(),
        description="CIDRs, comma separated, of the proxies whose X-Forwarded-* headers are believed.",
    )

    wait_seconds: NonNegativeFloat = Field(
        default=15.0, description="How long a submit waits for its result before it answers `processing`."
    )
    max_waiting_clients: NonNegativeInt = Field(
        default=224,
        description="Clients of one process that wait at a time; those beyond are answered `processing` at "
        "once. Below gunicorn's threads, so that some are always free for the others.",
    )

    max_body_bytes: PositiveInt = Field(default=64 * MEBIBYTE, description="Bytes of one request body; above: 413.")
    max_queued_jobs: NonNegativeInt = Field(
        default=100, description="Jobs that one key may have waiting; above: 429. 0: no limit."
    )
    max_submits_per_minute: NonNegativeInt = Field(
        default=0, description="Submits per key and minute; above: 429. 0: no limit."
    )
    max_steps: PositiveInt = Field(
        default=51, description="Denoising steps of one picture; a larger number asked for is capped to this."
    )
    max_prompt_chars: PositiveInt = Field(default=10_000, description="Characters of a prompt.")

    auth_cache_seconds: NonNegativeFloat = Field(
        default=3.0, description="How long a key, once checked, is taken as good without asking Redis."
    )

    @field_validator("own_hosts", "trusted_proxies", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("public_url")
    @classmethod
    def _without_trailing_slash(cls, value: str | None) -> str | None:
        return value.rstrip("/") if value else value

    @field_validator("own_hosts")
    @classmethod
    def _lower(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(host.lower() for host in value)
