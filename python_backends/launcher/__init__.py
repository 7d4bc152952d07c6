"""Starting, watching and checking the Triton server.

May import all rooms, but no model: it stands beside them. Needs no torch.
"""

from .errors import ModelLoadError, ServerDiedError
from .grpc_tls import GrpcTls
from .options import ServerOptions
from .restriction import AdminKey
from .supervision import Supervisor
from .triton_server import TritonServer
from .watcher import Watcher

__all__ = [
    "AdminKey",
    "GrpcTls",
    "ModelLoadError",
    "ServerDiedError",
    "ServerOptions",
    "Supervisor",
    "TritonServer",
    "Watcher",
]
