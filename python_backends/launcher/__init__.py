"""Starting, watching and checking the Triton server."""

from .errors import LauncherError, ModelFailure, ModelLoadError, PortBusyError, ServerDiedError
from .options import ServerOptions
from .triton_server import TritonServer

__all__ = [
    "LauncherError",
    "ModelFailure",
    "ModelLoadError",
    "PortBusyError",
    "ServerDiedError",
    "ServerOptions",
    "TritonServer",
]
