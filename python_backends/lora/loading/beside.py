"""Where PEFT's settings of a LoRA's file are: beside it, if what lies there is known to be its. Needs no torch."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..files.outside_settings import ADAPTER_CONFIG
from .profiles import signature_of

SUFFIX = ".safetensors"
PEFT_FILE = f"adapter_model{SUFFIX}"
"""What PEFT calls the weights that it writes beside the settings."""
_PEFT_URL = re.compile(rf"(?P<directory>[^?#]*/){re.escape(PEFT_FILE)}(?P<rest>(?:[?#]|::).*)?", re.DOTALL)
"""A URL of such weights, with what may follow: a query, or a store that the file's is in (fsspec's chains)."""


def remote_config(url: str) -> str | None:
    """Where the settings of a remote file are, if there are some; None where they need not be its."""
    match = _PEFT_URL.fullmatch(url)
    return None if match is None else f"{match['directory']}{ADAPTER_CONFIG}{match['rest'] or ''}"


def local_config(file: Path) -> str | None:
    """Where the settings of a local file are, if there are some; None where some lie there that need not be its."""
    beside = file.with_name(ADAPTER_CONFIG)
    is_its = file.name == PEFT_FILE or not signature_of(beside) or _is_alone(file)
    return str(beside) if is_its else None


def _is_alone(file: Path) -> bool:
    """Whether its directory has no other weights; looks no further than to the first."""
    try:
        with os.scandir(file.parent) as found:
            return not any(other.name.endswith(SUFFIX) and other.name != file.name for other in found)
    except OSError:
        return False
