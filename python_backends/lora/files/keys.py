"""Names of tensors in LoRA files → module of the checkpoint and role in its factorisation.

Every format's names come down to one table, the checkpoint's own modules (`BaseModules.aliases`); names of other UNet
layouts (Stability's sgm blocks, diffusers' attention processors) go through diffusers' converters first, one name at a
time, so that one name cannot change how another is read.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING

from diffusers.loaders.lora_conversion_utils import _convert_unet_lora_key, _maybe_map_sgm_blocks_to_diffusers
from diffusers.utils.state_dict_utils import (
    DIFFUSERS_OLD_TO_PEFT,
    DIFFUSERS_TO_PEFT,
    convert_state_dict,
    convert_unet_state_dict_to_peft,
)

from ...common.errors import InvalidRequestError
from .modules import TEXT_ENCODER, TEXT_ENCODER_2, UNET, alias

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .modules import BaseModules

_ROLE = re.compile(
    r"\.(?:lora_(?P<kohya>up|down|mid)(?:\.weight)?"
    r"|lora_(?P<peft>[AB])(?:\.default)?\.weight"
    r"|(?P<magnitude>lora_magnitude_vector)(?:\.default)?(?:\.weight)?"
    r"|(?P<other>alpha|dora_scale|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)))$"
)
_PEFT_ROLES = {"A": "down", "B": "up"}

_PREFIXES: tuple[tuple[str, str | None], ...] = (
    ("lora_unet_", UNET),
    ("lora_te1_", TEXT_ENCODER),
    ("lora_te2_", TEXT_ENCODER_2),
    ("lora_te_", TEXT_ENCODER),
    ("unet.", UNET),
    ("text_encoder.", TEXT_ENCODER),
    ("text_encoder_2.", TEXT_ENCODER_2),
    ("text_encoders.clip_l.transformer.", TEXT_ENCODER),
    ("text_encoders.clip_l.", TEXT_ENCODER),
    ("text_encoders.clip_g.transformer.", TEXT_ENCODER_2),
    ("text_encoders.clip_g.", TEXT_ENCODER_2),
    ("base_model.model.", None),
    ("diffusion_model.", None),
    ("lycoris_", None),
)
"""Beginnings of names: kohya, diffusers, ComfyUI; raw PEFT, ComfyUI and LyCORIS say no component: that is the UNet."""
PREFIX_OF = {UNET: "lora_unet_", TEXT_ENCODER: "lora_te1_", TEXT_ENCODER_2: "lora_te2_"}
"""kohya's, by component."""
_SHOWN, _MOST_PREFIXES = 5, 4


@dataclass(frozen=True)
class Target:
    """A module of the checkpoint."""

    component: str
    module: str


def assign(names: Iterable[str], base: BaseModules) -> dict[Target, dict[str, str]]:
    """Module → role → tensor name, for every tensor name of a file.

    Roles: `up`, `down`, `mid`, `alpha`, `dora_scale` (of LyCORIS), `magnitude` (of PEFT's DoRA), `hada_…`, `lokr_…`.

    Raises:
        InvalidRequestError: If a name is not understood, names no module of the checkpoint, or names one twice.
    """
    assigned: dict[Target, dict[str, str]] = defaultdict(dict)
    unknown: list[str] = []
    targets: dict[str, Target | None] = {}
    for name in names:
        module, role = _split(name)
        if role is None:
            unknown.append(name)
            continue
        if module not in targets:
            targets[module] = target_of(module, base)
        target = targets[module]
        if target is None:
            unknown.append(name)
        elif role in assigned[target]:
            raise InvalidRequestError(f"the file gives {target.module} twice: {assigned[target][role]} and {name}")
        else:
            assigned[target][role] = name
    if unknown:
        shown = ", ".join(name[:120] for name in sorted(unknown)[:_SHOWN])
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        raise InvalidRequestError(
            f"{len(unknown)} of the file's tensors are not understood or name no module of this checkpoint: "
            f"{shown}{more}; allowed: LoRA, LoCon, LoHa, LoKr or DoRA of the served base model"
        )
    if not assigned:
        raise InvalidRequestError("the file adapts no module; allowed: at least one")
    return dict(assigned)


def module_name(name: str) -> str:
    """The module of a tensor as the file names it, prefix included."""
    return _split(name)[0]


def _split(name: str) -> tuple[str, str | None]:
    """Module as the file names it, prefix included, and role; the role is None for a name that is not understood."""
    text = name.replace(".lora_linear_layer.", ".lora.")
    text = next(iter(convert_state_dict({text: 0}, {".lora.up.": ".lora_B.", ".lora.down.": ".lora_A."})))
    if text.startswith("text_encoder"):
        text = next(iter(convert_state_dict({text: 0}, {**DIFFUSERS_TO_PEFT, **DIFFUSERS_OLD_TO_PEFT})))
    else:
        text = next(iter(convert_unet_state_dict_to_peft({text: 0})))
    match = _ROLE.search(text)
    if match is None:
        return name, None
    role = match["kohya"] or _PEFT_ROLES.get(match["peft"]) or match["other"] or "magnitude"
    return text[: match.start()], role


def target_of(name: str, base: BaseModules) -> Target | None:
    """The module that a file means by a name, prefix included: it may stand twice, or behind one of another tool."""
    component: str | None = None
    for _ in range(_MOST_PREFIXES):
        prefix, says = next((each for each in _PREFIXES if name.startswith(each[0])), ("", None))
        if None not in (component, says) and component != says:
            return None
        name, component = name.removeprefix(prefix), component or says
    component = component or UNET
    aliases = base.aliases.get(component)
    if aliases is None:
        return None
    name = alias(name)
    found = aliases.get(name)
    if found is None and component == UNET:
        found = aliases.get(_from_sgm(name, base.checkpoint.unet_config.get("layers_per_block")))
    return None if found is None else Target(component, found)


def _from_sgm(name: str, layers_per_block: int | list[int] | None) -> str:
    """Alias of the module that Stability's UNet layout calls so; the name itself where diffusers knows no other."""
    key = f"lora_unet_{name}.lora_down.weight"
    try:
        config = SimpleNamespace(layers_per_block=layers_per_block)
        (key,) = _maybe_map_sgm_blocks_to_diffusers({key: 0}, config)
        (key,) = convert_unet_state_dict_to_peft({_convert_unet_lora_key(key): 0})
    except (ValueError, IndexError, TypeError):
        return name
    return alias(key.removesuffix(".lora_A.weight"))
