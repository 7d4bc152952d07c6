"""Where a server listens."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerAddress:
    """Host and ports of a server's three endpoints."""

    host: str
    http_port: int
    grpc_port: int
    metrics_port: int

    @property
    def reachable_host(self) -> str:
        """A host that a client on this machine can use, in the form URLs want."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"[{host}]" if ":" in host else host
