"""LoRA files of any format become canonical ones."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ...common.errors import InvalidRequestError
from .canonical import CanonicalLora, Group
from .keys import Target, assign
from .modules import BaseCheckpoint, BaseModules, stack_order
from .safetensors_file import FileLimits, LoraFile, read_lora_file
from .terms import Term, make_term

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PEFT_METADATA = "lora_adapter_metadata"
MAX_RANK = 2048


class Canonicaliser:
    """Turns LoRA files of any format into canonical ones for one checkpoint."""

    def __init__(
        self,
        checkpoint: BaseCheckpoint,
        limits: FileLimits | None = None,
        max_rank: int = MAX_RANK,
        max_bytes: int = 16 * 2**30,
    ) -> None:
        """Reads the checkpoint's configurations.

        Args:
            checkpoint: What the LoRAs are to fit.
            limits: Of the files.
            max_rank: Highest rank of a module.
            max_bytes: Largest canonical form: DoRA and Tucker cores grow when they are merged.
        """
        self._base = BaseModules.of(checkpoint)
        self._limits = limits or FileLimits()
        self._max_rank, self._max_bytes = max_rank, max_bytes

    def __call__(self, source: Path, target: Path) -> None:
        """Reads, checks and rewrites one file; writes nothing if it is refused.

        Raises:
            InvalidRequestError: With a sentence that says what is wrong with the file.
        """
        self.read(source).save(target)

    def read(self, source: Path) -> CanonicalLora:
        """A LoRA file in canonical form.

        Raises:
            InvalidRequestError: As above.
        """
        file = read_lora_file(source, self._limits)
        alphas = _PeftAlphas.of(file)
        terms: dict[Target, Term] = {}
        left = self._max_bytes
        for target, roles in assign(file.tensors, self._base).items():
            term = self._term(target, {role: file.tensors[name] for role, name in roles.items()}, alphas)
            left -= sum(tensor.nbytes for tensor in term.tensors.values())
            if left < 0:
                raise InvalidRequestError(f"it takes more than {self._max_bytes} bytes in canonical form")
            terms[target] = term
        return CanonicalLora(_grouped(terms, self._base))

    def _term(self, target: Target, tensors: dict[str, torch.Tensor], alphas: _PeftAlphas) -> Term:
        shape = self._base.shapes[target.component][target.module]
        stored = tensors.pop("alpha", None)
        try:
            if stored is not None and stored.numel() != 1:
                raise InvalidRequestError(f"its alpha has {stored.numel()} values; wanted: one")
            rank = tensors["down"].shape[0] if "down" in tensors and tensors["down"].ndim else None
            alpha = alphas.alpha(target, rank) if stored is None else float(stored)
            return make_term(
                tensors, shape, alpha, self._max_rank, lambda: self._base.weight(target.component, target.module)
            )
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{target.component}.{target.module}: {error}") from None


def _grouped(terms: Mapping[Target, Term], base: BaseModules) -> tuple[Group, ...]:
    members: dict[tuple[Any, ...], list[Target]] = defaultdict(list)
    for component in base.shapes:
        for module in stack_order(target.module for target in terms if target.component == component):
            target = Target(component, module)
            term = terms[target]
            signature = tuple(sorted((name, t.dtype, tuple(t.shape)) for name, t in term.tensors.items()))
            members[component, term.form, base.shapes[component][module], str(signature)].append(target)
    return tuple(
        Group(
            component=component,
            form=form,
            modules=tuple(target.module for target in targets),
            scales=tuple(terms[target].scale for target in targets),
            tensors={
                name: torch.stack([terms[target].tensors[name] for target in targets])
                for name in terms[targets[0]].tensors
            },
        )
        for (component, form, _, _), targets in members.items()
    )


@dataclass(frozen=True)
class _PeftAlphas:
    """Alphas that PEFT keeps in the file's metadata: one for all modules, others by module name."""

    settings: Mapping[str, Any]

    @classmethod
    def of(cls, file: LoraFile) -> _PeftAlphas:
        text = file.metadata.get(PEFT_METADATA)
        try:
            settings = {} if text is None else json.loads(text)
        except (ValueError, RecursionError):
            settings = None
        if not isinstance(settings, dict):
            raise InvalidRequestError(f"the file's metadata {PEFT_METADATA} is not a JSON object")
        return cls(settings)

    def alpha(self, target: Target, rank: int | None) -> float | None:
        """The module's alpha, with rsLoRA's root of the rank accounted for; None where nothing is said."""
        if rank is None:
            return None
        patterns = self._get(target, "alpha_pattern", dict, {})
        value = next(
            (value for pattern, value in patterns.items() if _matches(pattern, target.module)),
            self._get(target, "lora_alpha", (int, float), None),
        )
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
            raise InvalidRequestError(f"its alpha in {PEFT_METADATA} is {value!r:.80}; allowed: a number above 0")
        return value * rank**0.5 if self._get(target, "use_rslora", bool, False) else float(value)

    def _get(self, target: Target, name: str, kind: Any, default: Any) -> Any:
        value = self.settings.get(f"{target.component}.{name}", default)
        if value is not default and not isinstance(value, kind):
            raise InvalidRequestError(f"{name} in {PEFT_METADATA} is {value!r:.80}")
        return value


def _matches(pattern: str, module: str) -> bool:
    """PEFT's rule for the literal names that diffusers writes: the module, or the end of its name.

    Raises:
        InvalidRequestError: For a regular expression, which a stranger's file shall not make this process run.
    """
    literal = pattern.removeprefix("^").removesuffix("$").replace(r"\.", ".")
    if not re.fullmatch(r"[\w.]+", literal):
        raise InvalidRequestError(f"alpha_pattern in {PEFT_METADATA} has {pattern!r:.80}; allowed: module names")
    return module == literal or (module.endswith(f".{literal}") and not pattern.startswith("^"))
