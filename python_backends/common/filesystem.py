"""Files: their names as text, and what they hash to. Needs no torch.

Triton's stub takes file names for ASCII, whatever the locale. There Python stands for other bytes of a name by
surrogates, which every function that opens files takes, but no text that leaves the process.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import secrets
import sys
from pathlib import Path

_PLAIN = re.compile(r"[A-Za-z0-9@%+=:,./_-]+")


def is_plain(path: Path) -> bool:
    """Whether a shell takes the path for one word as it stands: Triton's Python backend hands paths to one unquoted."""
    return _PLAIN.fullmatch(str(path)) is not None


def write_utf8() -> None:
    """Has this process print and log names of files as they are, whatever it takes the terminal's encoding for."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")


def as_path(text: str) -> Path:
    """A path that came as text (of a configuration, of JSON) as this process's file functions take it."""
    return Path(os.fsdecode(text.encode("utf-8", "surrogateescape")))


def as_text(path: str | Path) -> str:
    """A path, or a sentence with one in it, as it was before this process read it; bytes that are no UTF-8 as `?`."""
    text = str(path)
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:  # surrogates that stand for no byte
        return text.encode("utf-8", "replace").decode("utf-8")


def replace_text(path: Path, text: str) -> None:
    """Writes a file that is whole or as it was, whenever it is read and whatever ends this process."""
    replace_bytes(path, text.encode("utf-8"))


def replace_bytes(path: Path, content: bytes | memoryview) -> None:
    """The same of bytes; of several processes that write it, one wins."""
    fresh = path.with_suffix(f".{secrets.token_hex(4)}.new")
    try:
        fresh.write_bytes(content)
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in lower-case hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
