"""Certificates for tests, made with the `openssl` command."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


class Authority:
    """Who signs certificates of one directory; skips the test where there is no openssl."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        """Makes its own certificate."""
        if shutil.which("openssl") is None:
            pytest.skip("needs openssl")
        self._directory = directory
        self.cert, self._key = directory / f"{name}.pem", directory / f"{name}.key"
        _openssl("req", "-x509", *_new_key(self._key), "-days", "1", "-subj", f"/CN={name}", "-out", self.cert)

    def sign(self, name: str) -> tuple[Path, Path]:
        """Certificate and key of a server on 127.0.0.1, or of a client."""
        cert, key, request = (self._directory / f"{name}{suffix}" for suffix in (".pem", ".key", ".csr"))
        extension = self._directory / f"{name}.ext"
        extension.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        _openssl("req", *_new_key(key), "-subj", f"/CN={name}", "-out", request)
        signer = ("-CA", self.cert, "-CAkey", self._key, "-CAcreateserial", "-days", "1")
        _openssl("x509", "-req", "-in", request, *signer, "-extfile", extension, "-out", cert)
        return cert, key


def _new_key(path: Path) -> tuple[str | Path, ...]:
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", path)


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
