"""What became of each request of a replay."""

from dataclasses import dataclass
from enum import StrEnum

from ..client.errors import LoraUnavailable, RequestTimeout, ServerUnavailable, ServerUnreachable, SwiftDiffusionError
from ..client.result import LoraReport


class Status(StrEnum):
    """How a request ended.

    OK: with a picture. REFUSED: UNAVAILABLE, the server or a part of it cannot take requests now. TIMED_OUT: its own
    time was up. FAILED: anything else, such as that nobody answers or that a LoRA cannot be had.
    """

    OK = "ok"
    REFUSED = "refused"
    TIMED_OUT = "timed out"
    FAILED = "failed"


@dataclass(frozen=True)
class Outcome:
    """One request's end.

    Attributes:
        at: when it was to arrive, seconds after the replay's start.
        late: seconds after that at which it was sent.
        seconds: from when it was to arrive to its answer, so that what the client adds counts as well.
        status: how it ended.
        sentence: the server's, where there is no picture.
        loras: INFO's reports.
    """

    at: float
    late: float
    seconds: float
    status: Status
    sentence: str = ""
    loras: tuple[LoraReport, ...] = ()

    @property
    def end(self) -> float:
        """When the answer came, seconds after the replay's start."""
        return self.at + self.seconds


def status_of(error: SwiftDiffusionError) -> Status:
    """What a client's error means for a request."""
    if isinstance(error, RequestTimeout):
        return Status.TIMED_OUT
    if isinstance(error, ServerUnavailable) and not isinstance(error, LoraUnavailable | ServerUnreachable):
        return Status.REFUSED
    return Status.FAILED
