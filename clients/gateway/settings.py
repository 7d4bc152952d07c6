"""How a gateway runs."""

from dataclasses import dataclass
from pathlib import Path

MIB = 2**20


@dataclass(frozen=True)
class GatewaySettings:
    """All of it.

    Attributes:
        servers: URLs of Triton servers, `grpc://HOST:PORT`.
        ca_file: PEM of who signed their certificates; None trusts whom the system trusts.
        retries: how often a picture that met a part of a server which died is begun again.
        keys_file: who may come in (see `keys`); None lets everybody.
        origins: of pages elsewhere that browsers may let use this gateway; none by default.
        public_url: what the URLs of pictures begin with; None takes each request's own.
        max_body_bytes: of one request.
        body_seconds: in which a request's body has to be here.
        max_pixels: of one picture that a caller sends, before it is decoded.
        max_runs: pictures that are made at once; who would be beyond gets 429.
        run_seconds: longest that a picture without `timeout_ms` may take.
        kept_bytes: of pictures that are fetched by URL.
        kept_seconds: for which they can be.
        page: whether there is a page at `/`.
    """

    servers: tuple[str, ...] = ("grpc://127.0.0.1:8001",)
    ca_file: Path | None = None
    retries: int = 3
    keys_file: Path | None = None
    origins: tuple[str, ...] = ()
    public_url: str | None = None
    max_body_bytes: int = 32 * MIB
    body_seconds: float = 30.0
    max_pixels: int = 4096 * 4096
    max_runs: int = 256
    run_seconds: float = 600.0
    kept_bytes: int = 256 * MIB
    kept_seconds: float = 3600.0
    page: bool = True
