"""What the operator may choose about gRPC."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, SecretStr, model_validator

from storage.settings import EnvironmentSettings


class GrpcSettings(EnvironmentSettings):
    grpc_address: str = Field("127.0.0.1", description="The address that native gRPC listens at.")
    grpc_port: int = Field(50051, ge=0, lt=2**16, description="Its plaintext port; 0: none.")
    grpc_tls_port: int = Field(
        50443,
        ge=0,
        lt=2**16,
        description="Its TLS port, used where there is a certificate. It should end in 443: Stability's Python client "
        "uses TLS, and sends its key, only there.",
    )
    grpc_certificate: str | None = Field(
        None, description="The certificate chain in PEM; GRPC_CERTIFICATE_FILE names its file."
    )
    grpc_private_key: SecretStr | None = Field(None, description="Its key; GRPC_PRIVATE_KEY_FILE names its file.")
    grpc_keyless: Literal["loopback", "always", "never"] = Field(
        "loopback",
        description="Who may call without an API key on the plaintext port, where Stability's Python client sends "
        "none: callers on this machine, all, or none.",
    )
    grpc_streams: PositiveInt = Field(200, description="Native calls that wait for pictures at a time; a thread each.")
    grpc_grace_seconds: NonNegativeFloat = Field(5.0, description="After SIGTERM, calls may still end within this.")

    @model_validator(mode="after")
    def _has_both_or_none(self) -> GrpcSettings:
        if (self.grpc_certificate is None) != (self.grpc_private_key is None):
            raise ValueError("GRPC_CERTIFICATE and GRPC_PRIVATE_KEY come together")
        return self
