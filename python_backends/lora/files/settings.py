"""Settings of a LoRA, wherever they stand: in the file's header, beside it, or in the catalogue.

In the order in which they are asked, for modules that have no alpha of their own:

| place | what is read |
|---|---|
| `lora_adapter_metadata` of the header | PEFT's settings as JSON, each name behind its component (diffusers) or alone |
| `adapter_config` of the header, and the like | PEFT's settings as JSON |
| other entries of the header | PEFT's settings one by one; for modules that the file names as PEFT does |
| `adapter_config.json` of the file | PEFT's settings; for modules that the file names as PEFT does |
| `catalogue.json` | `alpha` |

kohya's `ss_network_alpha` is none of them: where a module has no alpha, kohya (`create_network_from_weights`) and
diffusers take its rank.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...common.errors import InvalidRequestError
from ...common.sentences import shown
from .outside_settings import ADAPTER_CONFIG

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .outside_settings import OutsideSettings

PEFT_METADATA, CATALOGUE = "lora_adapter_metadata", "catalogue.json"
_WHOLE_CONFIGS = ("adapter_config", "peft_config", "lora_config")
_NAMES = frozenset(
    {"lora_alpha", "r", "alpha_pattern", "rank_pattern", "use_rslora", "use_dora", "peft_type", "init_lora_weights"}
)
_OTHER_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways of initialising that change the base model's weights (PEFT, `LoraConfig.init_lora_weights`)."""
_TYPES = ("LORA", "LOHA", "LOKR", "IA3")
_UNSAID = ("", "none", "null")
"""Texts of the header that say nothing."""


@dataclass(frozen=True)
class Settings:
    """What one place says.

    Attributes:
        place: Its name, for sentences.
        values: By PEFT's names, behind `component.` or alone.
    """

    place: str
    values: Mapping[str, Any]

    def get(self, component: str, name: str) -> Any:
        """The setting of a component, else that of all; None where nothing is said.

        Raises:
            InvalidRequestError: If it is of the wrong type.
        """
        value = self.values.get(f"{component}.{name}", self.values.get(name))
        wanted = _WANTED.get(name)
        if value is not None and wanted is not None and not isinstance(value, wanted):
            raise InvalidRequestError(f"{name} in {self.place} is {shown(value)}; allowed: {_SAID[wanted]}")
        return value

    def number(self, value: Any) -> float:
        """An alpha, checked.

        Raises:
            InvalidRequestError: If it is none.
        """
        number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
        if not 0 < number < 1e6:
            raise InvalidRequestError(f"an alpha in {self.place} is {shown(value)}; allowed: a number above 0")
        return float(number)


_WANTED: dict[str, type] = {"alpha_pattern": dict, "rank_pattern": dict, "use_rslora": bool, "use_dora": bool}
_SAID = {dict: "an object of module names", bool: "true or false"}


def settings_of(metadata: Mapping[str, str], outside: OutsideSettings, is_peft: bool) -> list[Settings]:
    """All places that say something about modules of a file, in the order in which they are asked.

    Args:
        metadata: The file's header.
        outside: What is said elsewhere.
        is_peft: Whether the file names the modules as PEFT does.

    Raises:
        InvalidRequestError: If one cannot be read, or says what is not served.
    """
    found = []
    if PEFT_METADATA in metadata:
        found.append(Settings(PEFT_METADATA, _object(metadata[PEFT_METADATA], f"the file's metadata {PEFT_METADATA}")))
    for name in _WHOLE_CONFIGS:
        if name in metadata:
            found.append(Settings(name, _object(metadata[name], f"the file's metadata {name}")))
    if is_peft:
        flat = {name: _value(text) for name, text in metadata.items() if name.rpartition(".")[2] in _NAMES}
        found.append(
            Settings("the file's metadata", {name: value for name, value in flat.items() if value is not None})
        )
        if outside.adapter_config is not None:
            found.append(Settings(ADAPTER_CONFIG, _object(outside.adapter_config, ADAPTER_CONFIG)))
    if outside.alpha is not None:
        found.append(Settings(CATALOGUE, {"lora_alpha": outside.alpha}))
    for settings in found:
        _check_served(settings)
    return found


def _check_served(settings: Settings) -> None:
    for name, value in settings.values.items():
        if name.endswith("peft_type") and value is not None and str(value).upper() not in _TYPES:
            raise InvalidRequestError(
                f"peft_type in {settings.place} is {shown(value)}, which is not served; allowed: {', '.join(_TYPES)}"
            )
        if name.endswith("init_lora_weights") and str(value).lower().startswith(_OTHER_BASE):
            raise InvalidRequestError(
                f"init_lora_weights in {settings.place} is {shown(value)}, which changes the base model itself; "
                "allowed: adapters of the base model as it is (PEFT converts such a file when it saves it)"
            )


def _value(text: str) -> Any:
    """What a text of the header says: JSON, or a text as Python prints it; None where that is nothing."""
    if text.strip().lower() in _UNSAID:
        return None
    try:
        return json.loads({"True": "true", "False": "false"}.get(text, text))
    except (ValueError, RecursionError):
        return text


def _object(text: str | bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{name} is not a JSON object")
    return value
