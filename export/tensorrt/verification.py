"""Engines compared with what they were made from, before LoRAs are patched in, with them, and after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.utils.benchmark import Timer

from .references import random_inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ...python_backends.lora.files.canonical import CanonicalLora
    from ...python_backends.tensorrt.metadata import EngineMetadata
    from .references import Runnable, Tensors

TOLERANCES = {"float32": 2e-3, "float16": 1e-2, "bfloat16": 6e-2}
"""Precision → largest error of an output, relative to its norm. Of float32 because TensorRT multiplies with TF32."""

LoraSet = list[tuple["CanonicalLora", float]]


@dataclass(frozen=True)
class Comparison:
    """One engine's outputs at one shape, in one state.

    Attributes:
        engine: Its name.
        variant: What runs it, and its norms.
        rows: Of the batch.
        state: Which LoRAs are in it.
        error: Largest of its outputs', relative to the output's norm; infinite if something is not a number.
        tolerance: Largest that is allowed.
        milliseconds: Of one call; None where it was not timed.
    """

    engine: str
    variant: str
    rows: int
    state: str
    error: float
    tolerance: float
    milliseconds: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the error is within tolerance."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class Case:
    """One engine at one shape, with what it is compared with.

    Attributes:
        engine: Its name.
        variant: See Comparison.
        precision: See TOLERANCES.
        run: The engine.
        reference: What it is compared with; follows the LoRAs as well.
        inputs: By name.
    """

    engine: str
    variant: str
    precision: str
    run: Runnable
    reference: Runnable
    inputs: Tensors

    @classmethod
    def of(cls, metadata: EngineMetadata, variant: str, run: Runnable, reference: Runnable) -> list[Case]:
        """A case for each profile of an engine, at its best shape."""
        best = [{name: bounds[1] for name, bounds in profile.items()} for profile in metadata.profiles]
        inputs = [random_inputs(shapes, seed) for seed, shapes in enumerate(best)]
        return [cls(metadata.name, variant, metadata.precision, run, reference, given) for given in inputs]

    def compare(self, state: str, timed: bool = False) -> Comparison:
        """The engine against the reference."""
        found = self.outputs()
        error = relative_error(found, self.reference.run(self.inputs))
        milliseconds = time_calls(lambda: self.run.run(self.inputs)) if timed else None
        return self._comparison(state, error, TOLERANCES[self.precision], milliseconds)

    def compare_bits(self, state: str, earlier: Tensors) -> Comparison:
        """The engine against itself at an earlier time; not a bit may differ."""
        return self._comparison(state, relative_error(self.outputs(), earlier), 0.0)

    def outputs(self) -> Tensors:
        """Of the engine, copied."""
        return {name: tensor.clone() for name, tensor in self.run.run(self.inputs).items()}

    def _comparison(self, state: str, error: float, tolerance: float, milliseconds: float | None = None) -> Comparison:
        rows = len(next(iter(self.inputs.values())))
        return Comparison(self.engine, self.variant, rows, state, error, tolerance, milliseconds)


def verify(
    checked: Sequence[Case],
    sets: Mapping[str, LoraSet],
    apply: Callable[[LoraSet], object],
    on_progress: Callable[[], object] = lambda: None,
) -> list[Comparison]:
    """Compares everything without LoRAs, then with every set, then with the first again, then without any.

    Args:
        checked: The cases.
        sets: Name → LoRAs; without any, only the first comparison is made.
        apply: Makes LoRAs, and no others, be in engines and references.
        on_progress: Called after each comparison.
    """
    results: list[Comparison] = []

    def take(comparisons: Iterable[Comparison]) -> None:
        for comparison in comparisons:
            results.append(comparison)
            on_progress()

    take(case.compare("as built", timed=True) for case in checked)
    if not sets:
        return results
    untouched = [case.outputs() for case in checked]
    first, *_ = sets
    with_first: list[Tensors] = []
    for name, loras in sets.items():
        apply(loras)
        take(case.compare(name) for case in checked)
        with_first = with_first or [case.outputs() for case in checked]
    apply(sets[first])
    take(case.compare_bits(f"{first} again", old) for case, old in zip(checked, with_first, strict=True))
    apply([])
    take(case.compare_bits("no LoRAs again", old) for case, old in zip(checked, untouched, strict=True))
    return results


def relative_error(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> float:
    """Largest over outputs of |found - wanted| ÷ |wanted|, in float64.

    Raises:
        ValueError: If the outputs are not the same ones, of the same shapes.
    """
    if set(found) != set(wanted):
        raise ValueError(f"outputs are {sorted(found)}; wanted: {sorted(wanted)}")
    errors = []
    for name, tensor in found.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(f"{name} is {list(tensor.shape)}; wanted: {list(wanted[name].shape)}")
        exact = wanted[name].double().cpu()
        difference = (tensor.double().cpu() - exact).norm()
        size = exact.norm()
        error = 0.0 if difference == 0 else float(difference / size) if size else float("inf")
        errors.append(error if error == error else float("inf"))  # not a number: it is not equal to itself
    return max(errors)


def time_calls(call: Callable[[], object]) -> float:
    """Milliseconds of a call, the middle one of a second's."""
    return 1000 * float(Timer("call()", globals={"call": call}).blocked_autorange(min_run_time=1).median)
