"""Free ports to listen on, and busy ones refused by name before a server is started on them."""

import errno
import socket
from collections.abc import Mapping

import psutil

from .errors import PortBusyError


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Different ports that nobody listens on at this moment."""
    sockets = [socket.socket(_family(host), socket.SOCK_STREAM) for _ in range(count)]
    try:
        for bound in sockets:
            bound.bind((host, 0))
        return [bound.getsockname()[1] for bound in sockets]
    finally:
        for bound in sockets:
            bound.close()


def check_ports(host: str, ports: Mapping[str, int]) -> None:
    """Refuses ports that cannot be listened on.

    Args:
        host: address to listen on.
        ports: port by the command line flag that sets it.

    Raises:
        PortBusyError: names the port, its flag and what to do.
    """
    flags: dict[int, str] = {}
    for flag, port in ports.items():
        if port in flags:
            raise PortBusyError(f"{flag} and {flags[port]} are both {port}: give each its own port")
        flags[port] = flag
        try:
            with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections do not count
                probe.bind((host, port))
        except OSError as error:
            raise PortBusyError(_sentence(error, host, port, flag)) from error


def listens(pid: int, port: int) -> bool:
    """Whether a process listens on a TCP port; True where the system does not tell."""
    try:
        connections = psutil.Process(pid).net_connections("tcp")
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
    return any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in connections)


def _sentence(error: OSError, host: str, port: int, flag: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is in use by another process: stop that one or choose another port with {flag}"
    if error.errno == errno.EACCES:
        return f"port {port} is only for root: choose one above 1023 with {flag}"
    return f"cannot listen on {host}, port {port} ({flag}): {error.strerror}"


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
