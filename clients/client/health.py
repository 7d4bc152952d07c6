"""How a server is, as it says itself."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelState:
    """One model of the server's repository; `reason` says why it is not `READY`."""

    name: str
    state: str
    reason: str = ""


@dataclass(frozen=True)
class Health:
    """How the server is.

    Attributes:
        version: of the server.
        ready: the server and all models take requests.
        models: every model of the repository.
    """

    version: str
    ready: bool
    models: tuple[ModelState, ...]
