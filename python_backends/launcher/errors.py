"""What can go wrong between `start` and `stop`, one exception per cause."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass


class LauncherError(Exception):
    """Base of everything the launcher raises; its message is a sentence for the operator."""


class ServerBinaryNotFoundError(LauncherError):
    """There is no tritonserver that could be started."""


class PythonVersionError(LauncherError):
    """The server's Python backend is not for the running Python version."""


class StubPermissionError(LauncherError):
    """The server's Python backend is not for this user to run: pip may install it for its owner alone."""


class MissingLibraryError(LauncherError):
    """The server's Python backend lacks a shared library of the system's."""


class NumpyVersionError(LauncherError):
    """The server's Python backend cannot read the tensors of the installed numpy."""


class InvalidRepositoryError(LauncherError):
    """The model repository directory is missing or holds no model."""


class TemporaryDirectoryError(LauncherError):
    """The directory for temporary files has a path that the server cannot use."""


class SharedMemoryError(LauncherError):
    """The machine gives less shared memory than the models' processes begin with."""


class PortBusyError(LauncherError):
    """A port cannot be listened on."""


class AdminKeyError(LauncherError):
    """The key of a restricted server cannot be had."""


class TlsError(LauncherError):
    """The files of gRPC's TLS cannot be used."""


class UnsupportedOptionError(LauncherError):
    """This version of tritonserver does not know an option that was asked for."""


class StartupTimeoutError(LauncherError):
    """The server was not ready in time."""


class ServerDiedError(LauncherError):
    """The server process ended although nobody asked it to.

    Attributes:
        status: its exit status, negative for a signal.
    """

    def __init__(self, status: int, log: str) -> None:
        """Says so, with the last lines of its log."""
        cause = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        super().__init__(f"tritonserver ended by itself ({cause}); last of its log:\n{log}")
        self.status = status


@dataclass(frozen=True)
class ModelFailure:
    """One model that did not load and why."""

    model: str
    reason: str


class ModelLoadError(LauncherError):
    """Models did not load.

    Attributes:
        failures: the models at fault, each with its own error.
    """

    def __init__(self, failures: tuple[ModelFailure, ...], dependents: Sequence[str]) -> None:
        """Says what failed, and which models (`dependents`) are down only because they are composed of those."""
        lines = [f"model {failure.model!r} failed to load: {failure.reason}" for failure in failures]
        if dependents:
            lines.append(f"not served because of that: {', '.join(dependents)}")
        super().__init__("\n".join(lines))
        self.failures = failures
