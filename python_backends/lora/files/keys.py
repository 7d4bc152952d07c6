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
from .modules import BIAS, TEXT_ENCODER, TEXT_ENCODER_2, UNET, alias

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .modules import BaseModules

_ROLE = re.compile(
    r"\.(?:lora_(?P<kohya>up|down|mid)(?:\.weight)?"
    r"|lora_(?P<peft>[AB])(?:\.\w+)?\.weight"
    r"|(?P<magnitude>lora_magnitude_vector)(?:\.default)?(?:\.weight)?"
    r"|(?P<glora>[ab][12])\.weight"
    r"|(?P<other>alpha|dora_scale|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)"
    r"|diff|diff_b|w_norm|b_norm|oft_blocks|rescale|on_input|weight))$"
)
_PEFT_ROLES = {"A": "down", "B": "up"}
_ROLES_OF_VECTORS = {"diff_b": "diff", "w_norm": "diff", "b_norm": "diff"}
_FOREIGN = "name nothing that this checkpoint has"
WHOLE = "whole weights and no differences"
_UNSERVED = (
    (re.compile(r"\.[ab][12m]\.weight$"), "GLoRA with a core"),
    (re.compile(r"\.ia3_l\b"), "IA3 as PEFT saves it"),
    (re.compile(r"\.oft_[rR]\b"), "OFT as PEFT saves it"),
    (re.compile(r"\.boft_[A-Za-z]+\b"), "BOFT as PEFT saves it"),
    (re.compile(r"\.vera_lambda_|^base_model\.vera_"), "VeRA"),
    (re.compile(r"\.lora_embedding_[AB]\b|token_embedding|position_embedding"), "for an embedding"),
    (re.compile(r"\.lora_B(?:\.\w+)?\.bias$"), "biases of LoRA factors"),
    (re.compile(r"\.(?:modules_to_save|original_module|base_layer)\."), WHOLE),
    (re.compile(r"^(?:lora_unet_)?lllite_"), "ControlNet-LLLite"),
    (re.compile(r"^lora_controlnet|\.?zero_convs?\."), "of a ControlNet"),
    (re.compile(r"^(?:ip_adapter|image_proj)\."), "IP-Adapter"),
    (re.compile(r"^(?:bundle_emb\.|emb_params$|string_to_param|clip_[lg]$)"), "textual inversion"),
)
"""Names of kinds that are known and not served, and what the kinds are called."""
SERVED = (
    "LoRA, LoCon, LoHa, LoKr and DoRA, differences of weights, norms and biases, "
    "and GLoRA, OFT, BOFT and IA3 as LyCORIS saves them"
)

_PREFIXES: tuple[tuple[str, str | None], ...] = (
    ("lora_unet_", UNET),
    ("oft_unet_", UNET),
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
"""Beginnings of names: kohya, diffusers, ComfyUI; raw PEFT, ComfyUI and LyCORIS say no component."""
PREFIX_OF = {UNET: "lora_unet_", TEXT_ENCODER: "lora_te1_", TEXT_ENCODER_2: "lora_te2_"}
"""kohya's, by component."""
_NORMS = {"_in_layers_0": "_norm1", "_out_layers_0": "_norm2"}
"""Stability's names of a residual block's norms → diffusers'."""
_UPSAMPLER = re.compile(r"(?P<block>output_blocks_\d+)_1_conv")
"""Of an up block without attentions, such as SD 1.5's first; behind attentions, as the converter has it, it's third."""
_SHOWN, _MOST_PREFIXES = 5, 4


@dataclass(frozen=True)
class Target:
    """A module of the checkpoint; of linear layers and convolutions the weight, of norms too; or a bias."""

    component: str
    module: str


def assign(names: Iterable[str], base: BaseModules) -> dict[Target, dict[str, str]]:
    """Module, norm or bias → role → tensor name, for every tensor name of a file.

    Roles: `up`, `down`, `mid`, `alpha`, `dora_scale` (of LyCORIS), `magnitude` (of PEFT's DoRA), `hada_…`, `lokr_…`,
    `a1` to `b2` (GLoRA), `oft_blocks`, `rescale`, `weight` and `on_input` (IA3), `diff` (of norms and biases too).

    Raises:
        InvalidRequestError: If a name is not understood, names nothing of the checkpoint, or names it twice.
    """
    assigned: dict[Target, dict[str, str]] = defaultdict(dict)
    refused: dict[str, list[str]] = defaultdict(list)
    targets: dict[str, Target | None] = {}
    for name in names:
        module, role = _split(name)
        kind = _unserved(name) if role in (None, "weight") else None
        if role is None or kind is not None:
            refused["not understood" if kind is None else f"{kind}, which is not served"].append(name)
            continue
        if module not in targets:
            targets[module] = target_of(module, base)
        target = _changed(targets[module], role, base)
        if target is None:
            refused[_FOREIGN].append(name)
            continue
        role = _ROLES_OF_VECTORS.get(role, role)
        if role in assigned[target]:
            raise InvalidRequestError(f"the file gives {target.module} twice: {assigned[target][role]} and {name}")
        assigned[target][role] = name
    for roles in assigned.values():
        if "weight" in roles and "on_input" not in roles:
            refused[f"{WHOLE}, which is not served"].append(roles["weight"])
    if refused:
        raise InvalidRequestError(_sentence(refused))
    return dict(assigned)


def _unserved(name: str) -> str | None:
    """What kind that is known and not served a tensor is of."""
    return next((kind for pattern, kind in _UNSERVED if pattern.search(name)), None)


def _changed(target: Target | None, role: str, base: BaseModules) -> Target | None:
    """What a tensor changes: the module itself, or its bias; None if there is none."""
    if target is None or role not in ("diff_b", "b_norm"):
        return target
    bias = Target(target.component, f"{target.module}{BIAS}")
    return None if base.shape(bias.component, bias.module) is None else bias


def _sentence(refused: Mapping[str, list[str]]) -> str:
    """Why names are refused, for the first reason that is not that they are foreign."""
    reason = next((reason for reason in refused if reason != _FOREIGN), _FOREIGN)
    names = refused[reason]
    shown = ", ".join(name[:120] for name in sorted(names)[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    verb, allowed = ("", "those of the served base model") if reason == _FOREIGN else (" are", SERVED)
    return f"{len(names)} of the file's tensors{verb} {reason}: {shown}{more}; allowed: {allowed}"


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
    role = match["kohya"] or _PEFT_ROLES.get(match["peft"]) or match["glora"] or match["other"] or "magnitude"
    return text[: match.start()], role


def target_of(name: str, base: BaseModules) -> Target | None:
    """The module that a file means by a name, prefix included: it may stand twice, or behind one of another tool."""
    component: str | None = None
    for _ in range(_MOST_PREFIXES):
        prefix, says = next((each for each in _PREFIXES if name.startswith(each[0])), ("", None))
        if None not in (component, says) and component != says:
            return None
        name, component = name.removeprefix(prefix), component or says
    name = alias(name)
    for each in _components(base) if component is None else (component,):
        aliases = base.aliases.get(each, {})
        found = aliases.get(name)
        if found is None and each == UNET:
            found = aliases.get(_from_sgm(name, base.checkpoint.unet_config.get("layers_per_block")))
        if found is not None:
            return Target(each, found)
    return None


def _components(base: BaseModules) -> tuple[str, ...]:
    """What a name without a component may mean: the UNet, or the text encoder where there is but one."""
    return (UNET,) if TEXT_ENCODER_2 in base.shapes else (UNET, TEXT_ENCODER)


def _from_sgm(name: str, layers_per_block: int | list[int] | None) -> str:
    """Alias of the module that Stability's UNet layout calls so; the name itself where diffusers knows no other."""
    upsampler = _UPSAMPLER.fullmatch(name)
    key = f"lora_unet_{name if upsampler is None else upsampler['block'] + '_2_conv'}.lora_down.weight"
    try:
        config = SimpleNamespace(layers_per_block=layers_per_block)
        (key,) = _maybe_map_sgm_blocks_to_diffusers({key: 0}, config)
        (key,) = convert_unet_state_dict_to_peft({_convert_unet_lora_key(key): 0})
    except (ValueError, IndexError, TypeError):
        return name
    found = alias(key.removesuffix(".lora_A.weight"))
    if found == "out_0":
        return "conv_norm_out"
    for norm, ours in _NORMS.items():  # diffusers' converters know weights of layers alone
        found = f"{found.removesuffix(norm)}{ours}" if found.endswith(norm) else found
    return found
