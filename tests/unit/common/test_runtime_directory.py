"""The directory that the models of one server share."""

from __future__ import annotations

from pathlib import Path

import pytest

from swiftdiffusion.python_backends.common.runtime_directory import VARIABLE, runtime_directory


def test_the_directory_is_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    directory = runtime_directory()
    assert directory.parent == tmp_path
    assert directory.stat().st_mode & 0o777 == 0o700
    directory.chmod(0o755)
    with pytest.raises(PermissionError, match="not a directory of this user alone"):
        runtime_directory()
    directory.rmdir()
    directory.symlink_to(tmp_path)
    with pytest.raises(PermissionError):
        runtime_directory()


def test_the_launcher_names_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "mine"))
    assert runtime_directory() == tmp_path / "mine"
