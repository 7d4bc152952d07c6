"""What a server wants of who connects: trust in its certificate, the key of its administration."""

from dataclasses import dataclass, field
from pathlib import Path

HTTP_ADMIN_HEADER = "admin-key"
GRPC_ADMIN_HEADER = f"triton-grpc-protocol-{HTTP_ADMIN_HEADER}"


@dataclass(frozen=True)
class Access:
    """Both.

    Attributes:
        ca_file: PEM of who signed the server's certificate; None trusts whom the system trusts.
        admin_key: opens the administration of a restricted server.
    """

    ca_file: str | Path | None = None
    admin_key: str | None = field(default=None, repr=False)


def admin_headers(header: str, admin_key: str | None) -> dict[str, str] | None:
    """Of a call that restricted servers refuse to who has no key."""
    return None if admin_key is None else {header: admin_key}
