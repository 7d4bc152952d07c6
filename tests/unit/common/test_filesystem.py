"""Paths as text where Python takes file names for ASCII, as it does in Triton's stub."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from swiftdiffusion.python_backends.common.filesystem import as_path, as_text, is_plain

IN_ASCII = """
import sys
from swiftdiffusion.python_backends.common.filesystem import as_path, as_text
assert sys.getfilesystemencoding() == "ascii"
path = as_path(sys.stdin.buffer.read().decode("utf-8"))
assert path.read_text() == "found"
sys.stdout.buffer.write(as_text(f"{path} was read").encode("utf-8"))
"""


@pytest.mark.parametrize("name", ["plain", "möbel 家.txt"])
def test_a_text_opens_its_file_and_comes_back(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("found")
    said = subprocess.run(
        [sys.executable, "-c", IN_ASCII],
        input=str(tmp_path / name).encode(),
        env={"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"},
        capture_output=True,
        check=True,
    ).stdout
    assert said.decode() == f"{tmp_path / name} was read"
    assert as_text(as_path(name)) == name


def test_what_stands_for_no_text_is_shown_all_the_same() -> None:
    assert as_text("a\udcffb") == "a\ufffdb"
    assert as_text("a\ud800b") == "a?b"


@pytest.mark.parametrize(("path", "plain"), [("/a/b-c_d.e@f", True), ("/a b", False), ("/ä", False), ("/$x", False)])
def test_what_a_shell_takes_as_it_stands(path: str, plain: bool) -> None:
    assert is_plain(Path(path)) == plain
