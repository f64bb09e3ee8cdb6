"""What ends a job (`JobFailed`) and what ends this process (`WorkerUnfit`). The docstring is the message."""

from __future__ import annotations

import inspect
from typing import ClassVar


class JobFailed(Exception):
    """The job could not be done."""

    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str | None = None, *, field: str | None = None) -> None:
        self.message = message or inspect.cleandoc(type(self).__doc__ or "")
        self.field = field
        super().__init__(self.message)


class InputRefused(JobFailed):
    """The address of a picture of this job may not be opened."""

    code = "input_refused"


class InputUnreachable(JobFailed):
    """A picture of this job could not be fetched from its address."""

    code = "input_unreachable"


class InputTooLarge(JobFailed):
    """A picture of this job has more bytes than are accepted."""

    code = "input_too_large"


class NotAnImage(JobFailed):
    """A picture of this job is not an image that can be read."""

    code = "not_an_image"


class ImageTooLarge(JobFailed):
    """A picture of this job has more pixels than are accepted."""

    code = "image_too_large"


class ModelUnavailable(JobFailed):
    """The model cannot be loaded."""

    code = "model_unavailable"


class SafetyCheckerUnavailable(JobFailed):
    """The job wants its pictures checked, and the safety checker cannot be loaded."""

    code = "safety_checker_unavailable"


class AddonUnavailable(JobFailed):
    """What the job puts onto the model (a LoRA, a VAE, an IP-adapter) or into its words cannot be used."""

    code = "addon_unavailable"


class PromptTooLong(JobFailed):
    """A prompt of this job has more words than are read."""

    code = "prompt_too_long"


class OutOfMemory(JobFailed):
    """The job does not fit into the memory of the device."""

    code = "out_of_memory"


class TimedOut(JobFailed):
    """The job took longer than a job may take."""

    code = "timed_out"


class StartTimedOut(JobFailed):
    """No worker took the job in the time it was given to start."""

    code = "start_timed_out"


class Cancelled(JobFailed):
    """The job was cancelled."""

    code = "cancelled"


class ContentFiltered(JobFailed):
    """The result was withheld by the content filter."""

    code = "content_filtered"


class NothingToContinue(JobFailed):
    """The mask covers the whole picture: there is nothing around it to continue."""

    code = "nothing_to_continue"


class ResultNotStored(JobFailed):
    """The result could not be stored."""

    code = "storage_unavailable"


class InternalError(JobFailed):
    """Something unexpected went wrong; it was logged."""

    code = "internal_error"


class WorkerUnfit(Exception):
    """This process cannot paint any more: give its jobs back and stop."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or inspect.cleandoc(type(self).__doc__ or ""))
