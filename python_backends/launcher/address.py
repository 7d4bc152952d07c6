"""Where a server listens."""

from dataclasses import dataclass

from .ports import check_ports, free_ports


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


def choose_address(host: str, http_port: int | None, grpc_port: int | None, metrics_port: int | None) -> ServerAddress:
    """A host's address with these ports, None for any that is free.

    Raises:
        PortBusyError: one cannot be listened on.
    """
    wanted = {"--http-port": http_port, "--grpc-port": grpc_port, "--metrics-port": metrics_port}
    check_ports(host, {flag: port for flag, port in wanted.items() if port is not None})
    free = iter(free_ports(len(wanted), host))
    return ServerAddress(host, *(next(free) if port is None else port for port in wanted.values()))
