"""The answers of the ModelsLab family as models: what OpenAPI says of them and tests hold them to."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")


class SuccessAnswer(Answer):
    """The pictures are there."""

    status: Literal["success"]
    generationTime: float = Field(description="Seconds that the pictures took.")  # noqa: N815 - the wire's name
    id: PositiveInt
    output: list[str] = Field(description="Links to the pictures, or to base64 text files.")
    meta: dict[str, Any] = Field(description="What was asked, after defaults; real seed and steps; `ignored`.")


class ProcessingAnswer(Answer):
    """The job is accepted and not over."""

    status: Literal["processing"]
    eta: PositiveFloat = Field(description="Seconds.")
    message: str
    messege: str = Field(description="The same: clients of these APIs read one or the other.")
    fetch_result: str = Field(description="POST the key here for the result.")
    id: PositiveInt
    output: list[str] = Field(max_length=0)
    future_links: list[str] = Field(description="The final links; 404 until the pictures are there.")
    meta: dict[str, Any]


class FailureAnswer(Answer):
    """The job was accepted and could not be done."""

    status: Literal["error", "failed"]
    message: str
    id: PositiveInt


class ErrorAnswer(Answer):
    """The request was refused; there is no job."""

    status: Literal["error", "failed"]
    message: str | dict[str, list[str]]
    retry_after: int | None = Field(default=None, description="Seconds; on 429.")


class UploadAnswer(Answer):
    status: Literal["success"]
    id: int
    output: list[str]


class LoadAnswer(Answer):
    status: Literal["ok"]
    queue_num: int = Field(description="Jobs that wait.")
    queue_time: int = Field(description="Seconds until a job submitted now would start.")


class ModelAnswer(Answer):
    model_id: str
    model_name: str
    status: str
    description: str
