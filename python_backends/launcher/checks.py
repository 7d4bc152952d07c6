"""What `doctor` says of one thing."""

from dataclasses import dataclass
from enum import Enum


class Status(Enum):
    """Outcome of a check."""

    OK = "ok"
    WARNING = "warning"
    MISSING = "missing"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, what was found, and what to do about it if that is not good."""

    subject: str
    status: Status
    found: str
    advice: str = ""
