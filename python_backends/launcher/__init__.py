"""Starting, watching and checking the Triton server.

May import all rooms, but no model: it stands beside them. Needs no torch.
"""

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
