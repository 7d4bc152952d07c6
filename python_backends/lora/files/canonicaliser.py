"""LoRA files of any format become canonical ones."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ...common.errors import InvalidRequestError
from .alphas import Alphas
from .canonical import CanonicalLora, Group
from .forms import make_term
from .keys import Target, assign, module_name
from .modules import CONSTANT, BaseCheckpoint, BaseModules, stack_order
from .outside_settings import NO_SETTINGS, OutsideSettings, is_named_by_peft
from .patterns import PatternMatcher
from .safetensors_file import FileLimits, read_lora_file
from .terms import DORA_ROLES, Place, Term, has_scale, rank_of
from .textual_inversion import vectors_in

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

MAX_RANK = 2048


class Canonicaliser:
    """Turns LoRA files of any format into canonical ones for one checkpoint."""

    def __init__(
        self,
        checkpoint: BaseCheckpoint,
        limits: FileLimits | None = None,
        max_rank: int = MAX_RANK,
        max_bytes: int = 16 * 2**30,
        constants: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        """Reads the checkpoint's configurations.

        Args:
            checkpoint: What the LoRAs are to fit.
            limits: Of the files.
            max_rank: Highest rank of a module.
            max_bytes: Largest canonical form: DoRA and Tucker cores grow when they are merged.
            constants: Component that engines evaluate → modules whose weights they hold. LoRAs of these are refused,
                and of its norms and biases.
        """
        self._base = BaseModules.of(checkpoint)
        self._limits = limits or FileLimits()
        self._max_rank, self._max_bytes, self._constants = max_rank, max_bytes, constants or {}

    def __call__(self, source: Path, target: Path, outside: OutsideSettings = NO_SETTINGS) -> tuple[str, ...]:
        """Reads, checks and rewrites one file; writes nothing if it is refused.

        Args:
            source: The LoRA file.
            target: Where its canonical form goes.
            outside: What is said of the file elsewhere.

        Returns:
            What has to be told of it (`CanonicalLora.notes`).

        Raises:
            InvalidRequestError: With a sentence that says what is wrong with the file.
        """
        lora = self.read(source, outside)
        lora.save(target)
        return lora.notes

    def read(self, source: Path, outside: OutsideSettings = NO_SETTINGS) -> CanonicalLora:
        """A LoRA file in canonical form.

        Raises:
            InvalidRequestError: As above.
        """
        file = read_lora_file(source, self._limits)
        if vectors_in({name: tensor.shape for name, tensor in file.tensors.items()}):
            raise InvalidRequestError("it is a textual inversion embedding; allowed: its name as a word of the prompt")
        assigned = assign(file.tensors, self._base)
        names = {target: module_name(next(iter(roles.values()))) for target, roles in assigned.items()}
        alphas = Alphas(file.metadata, outside, PatternMatcher(self._base, names))
        terms: dict[Target, Term] = {}
        left, skipped = self._max_bytes, Counter[str]()
        for target, roles in assigned.items():
            tensors = {role: file.tensors[name] for role, name in roles.items()}
            factors = [tensor for role, tensor in tensors.items() if role != "alpha"]
            if "alpha" in tensors and not (factors and (has_scale(tensors) or "oft_blocks" in tensors)):
                skipped["alpha without factors"] += 1
            if not any(factor.numel() for factor in factors):
                skipped["module of rank 0"] += len(factors) > 0
                continue
            term = self._term(target, tensors, alphas, is_named_by_peft(roles.values()))
            left -= sum(tensor.nbytes for tensor in term.tensors.values())
            if left < 0:
                raise InvalidRequestError(f"it takes more than {self._max_bytes} bytes in canonical form")
            terms[target] = term
        notes = [f"skipped: {count} × {what}" for what, count in sorted((+skipped).items())]
        if not terms:
            raise InvalidRequestError("; ".join(["the file adapts no module", *notes]))
        return CanonicalLora(_grouped(terms, self._base), (*alphas.notes(), *notes))

    def _term(self, target: Target, tensors: dict[str, torch.Tensor], alphas: Alphas, is_peft: bool) -> Term:
        place = Place(
            self._base.shape(target.component, target.module) or (),
            lambda: self._base.weight(target.component, target.module),
            self._max_rank,
        )
        stored = tensors.pop("alpha", None)
        is_asked = stored is None and has_scale(tensors)
        if is_asked:
            alphas.places(is_peft)  # outside the `try`: what is wrong with them is not the module's
        try:
            self._refuse_constant(target)
            if stored is not None and stored.numel() != 1:
                raise InvalidRequestError(f"its alpha has {stored.numel()} values; wanted: one")
            own, rank = None if stored is None else float(stored), rank_of(tensors)
            says_dora = alphas.uses_dora(target, is_peft) if is_asked else None
            if says_dora is not None and not DORA_ROLES & tensors.keys():
                raise InvalidRequestError(f"it has no lora_magnitude_vector, though use_dora in {says_dora} says so")
            alpha = alphas.alpha(target, own, rank, is_peft) if has_scale(tensors) else own
            term = make_term(tensors, place, alpha)
            is_whole = term.form == "kronecker" and rank is None
            declared = alphas.declared_rank(target, is_peft) if is_asked and is_peft and is_whole else None
            if alpha and declared:  # PEFT scales whole Kronecker factors too
                return replace(term, scale=alpha / declared)
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{target.component}.{target.module}: {error}") from None
        return term

    def _refuse_constant(self, target: Target) -> None:
        held, vectors = self._constants.get(target.component), self._base.vectors[target.component]
        if held is not None and (target.module in held or target.module in vectors):
            raise InvalidRequestError(CONSTANT)


def _grouped(terms: Mapping[Target, Term], base: BaseModules) -> tuple[Group, ...]:
    members: dict[tuple[Any, ...], list[Target]] = defaultdict(list)
    for component in base.shapes:
        for module in stack_order(target.module for target in terms if target.component == component):
            target = Target(component, module)
            term = terms[target]
            signature = tuple(sorted((name, t.dtype, tuple(t.shape)) for name, t in term.tensors.items()))
            members[component, term.form, base.shape(component, module), str(signature)].append(target)
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
