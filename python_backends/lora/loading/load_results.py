"""How the load of a LoRA ends. Needs no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from ...common.errors import RequestError


@dataclass(frozen=True)
class Loaded:
    """A LoRA that is in the host cache.

    Attributes:
        path: Its canonical file.
        source: The tier from which it came: `host`, `disk` or `remote`.
        notes: What the log is to say of it: sentences.
    """

    path: Path
    source: str
    notes: tuple[str, ...] = ()


class LoadError(Exception):
    """Why a load ended, before it is known for whom: requests with other names for it may have joined.

    Attributes:
        kind: The class of the reason, for metrics.
        error_type: What the client is sent.
    """

    def __init__(self, kind: str, reason: str, error_type: type[RequestError]) -> None:
        super().__init__(reason)
        self.kind, self.error_type = kind, error_type

    def bare(self) -> LoadError:
        """The same without traceback and cause, whose frames hold a file's tensors: to be remembered."""
        return LoadError(self.kind, str(self), self.error_type)

    def for_client(self, name: str) -> RequestError:
        """The error that a request reads which calls the LoRA so."""
        return self.error_type(f"LORAS names {json.dumps(name, ensure_ascii=False)}: {self}")
