"""TLS of a server's gRPC; Triton's HTTP has none."""

import re
import ssl
from dataclasses import dataclass
from pathlib import Path

from .errors import TlsError


@dataclass(frozen=True)
class GrpcTls:
    """The files, all PEM.

    Attributes:
        cert: the server's certificate, with those between it and the root.
        key: its private key, not encrypted.
        root_ca: of those who sign clients' certificates: who has none is not served. None serves everybody.
    """

    cert: Path
    key: Path
    root_ca: Path | None = None

    @classmethod
    def from_options(cls, cert: Path | None, key: Path | None, root_ca: Path | None) -> "GrpcTls | None":
        """Of `--grpc-cert`, `--grpc-key` and `--grpc-root-ca`; None without them.

        Raises:
            TlsError: one is lacking, or as `check`.
        """
        if cert is None and key is None and root_ca is None:
            return None
        if cert is None or key is None:
            raise TlsError(f"gRPC with TLS needs {'--grpc-cert' if cert is None else '--grpc-key'} too")
        tls = cls(cert.resolve(), key.resolve(), None if root_ca is None else root_ca.resolve())
        tls.check()
        return tls

    def check(self) -> None:
        """Does nothing if the files are what tritonserver needs.

        Raises:
            TlsError: one cannot be read or is no PEM, or the key is encrypted or not the certificate's.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _read("--grpc-cert", self.cert, "CERTIFICATE")
        key = _read("--grpc-key", self.key, "PRIVATE KEY")
        if "ENCRYPTED" in key:
            raise TlsError(f"--grpc-key: {self.key} is encrypted; wanted: a key without a passphrase")
        try:
            context.load_cert_chain(self.cert, self.key)
        except ssl.SSLError as error:
            what = "is not the key of" if error.reason == "KEY_VALUES_MISMATCH" else "cannot be used with"
            raise TlsError(f"--grpc-key: {self.key} {what} the certificate {self.cert} ({error.reason})") from error
        if self.root_ca is not None:
            root = _read("--grpc-root-ca", self.root_ca, "CERTIFICATE")
            try:
                context.load_verify_locations(cadata=root)
            except ssl.SSLError as error:
                raise TlsError(f"--grpc-root-ca: {self.root_ca} cannot be used ({error.reason})") from error

    def arguments(self) -> list[str]:
        """Options of tritonserver."""
        files = [f"--grpc-server-cert={self.cert}", f"--grpc-server-key={self.key}"]
        if self.root_ca is None:
            return ["--grpc-use-ssl=true", *files]
        return ["--grpc-use-ssl-mutual=true", *files, f"--grpc-root-cert={self.root_ca}"]


def _read(option: str, path: Path, kind: str) -> str:
    try:
        text = path.read_text("utf-8", "replace")
    except OSError as error:
        raise TlsError(f"{option}: {path} cannot be read: {error.strerror}") from error
    if not re.search(rf"^-----END ([A-Z]+ )?{kind}-----", text, re.MULTILINE):
        raise TlsError(f"{option}: {path} holds no {kind.lower()} in PEM")
    return text
