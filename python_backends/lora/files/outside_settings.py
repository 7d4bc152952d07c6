"""What is said about a LoRA file outside it. Needs no torch."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

ADAPTER_CONFIG = "adapter_config.json"
"""PEFT's file of settings, beside the weights."""
_PEFT_NAME = re.compile(r"\.lora_[AB](?:\.\w+)?\.weight$|^base_model\.model\.")
_ROLE = re.compile(r"\.(?:lora_\w+(?:\.\w+)?\.weight|[^.]+)$")
"""What follows a module's name."""


def is_named_by_peft(names: Iterable[str]) -> bool:
    """Whether some of these tensors are named as PEFT does, which keeps alphas outside the tensors."""
    return any(_PEFT_NAME.search(name) for name in names)


def needs_settings(names: Collection[str]) -> bool:
    """Whether a module of a file with these tensors is named as PEFT does, and has no alpha of its own."""
    owners = {name.removesuffix(".alpha") for name in names if name.endswith(".alpha")}
    return is_named_by_peft(name for name in names if _ROLE.sub("", name) not in owners)


@dataclass(frozen=True)
class OutsideSettings:
    """Settings that stand beside a file or in the catalogue.

    Attributes:
        adapter_config: Content of the file's `adapter_config.json`, PEFT's; None where there is none.
        alpha: What `catalogue.json` says; None where it says nothing.
        has_strange_config: Whether an `adapter_config.json` lies beside the file that need not be its.
    """

    adapter_config: bytes | None = None
    alpha: float | None = None
    has_strange_config: bool = False

    def key(self, content: str) -> str:
        """Names a content under these settings; the content itself where nothing is said.

        Args:
            content: SHA-256 of the file, in lower-case hexadecimal.
        """
        if self == NO_SETTINGS:
            return content
        beside = b"" if self.adapter_config is None else hashlib.sha256(self.adapter_config).digest()
        return hashlib.sha256(
            b"|".join((content.encode(), beside, repr((self.alpha, self.has_strange_config)).encode()))
        ).hexdigest()


NO_SETTINGS = OutsideSettings()
