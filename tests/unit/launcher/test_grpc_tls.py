"""Files of TLS are looked at before a server is started with them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from certificates import Authority
from swiftdiffusion.python_backends.launcher.errors import TlsError
from swiftdiffusion.python_backends.launcher.grpc_tls import GrpcTls


def test_files_that_fit(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.sign("server")
    assert GrpcTls.from_options(cert, key, None) == GrpcTls(cert, key)
    mutual = GrpcTls.from_options(cert, key, authority.cert)
    assert mutual is not None
    assert f"--grpc-root-cert={authority.cert}" in mutual.arguments()


def test_nothing_is_no_tls(tmp_path: Path) -> None:
    assert GrpcTls.from_options(None, None, None) is None
    for options, lacking in (
        ((tmp_path, None, None), "--grpc-key"),
        ((None, tmp_path, None), "--grpc-cert"),
        ((None, None, tmp_path), "--grpc-cert"),
    ):
        with pytest.raises(TlsError, match=lacking):
            GrpcTls.from_options(*options)


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.sign("server")
    _other, other_key = authority.sign("other")
    text, cut = tmp_path / "text", tmp_path / "cut"
    text.write_text("no PEM")
    cut.write_text(cert.read_text()[:200])
    locked = tmp_path / "locked"
    subprocess.run(
        ["openssl", "pkcs8", "-topk8", "-in", str(key), "-passout", "pass:x", "-out", str(locked)], check=True
    )
    for files, sentence in (
        ((tmp_path / "none", key, None), "--grpc-cert: .*none cannot be read: No such file"),
        ((cert, tmp_path, None), "--grpc-key: .* cannot be read: Is a directory"),
        ((text, key, None), "--grpc-cert: .*text holds no certificate in PEM"),
        ((cut, key, None), "--grpc-cert: .*cut holds no certificate in PEM"),
        ((cert, cert, None), "--grpc-key: .*server.pem holds no private key in PEM"),
        ((cert, other_key, None), "other.key is not the key of the certificate .*server.pem"),
        ((cert, locked, None), "locked is encrypted"),
        ((cert, key, text), "--grpc-root-ca: .*text holds no certificate in PEM"),
    ):
        with pytest.raises(TlsError, match=sentence):
            GrpcTls.from_options(*files)
