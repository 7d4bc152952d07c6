"""Linear layers of a UNet's transformers in 8-bit floats: e4m3, each token and each output channel with a scale.

The weights themselves stay, for LoRAs to be patched into; products are over copies of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch.nn import functional

from ...kernels.quantise_rows import E4M3, quantise_rows
from ..lora.patching.weight_stack import segments

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..lora.patching.patcher import Patcher
    from ..lora.patching.weight_stack import WeightStack

OLDEST = (8, 9)
"""The first compute capability with products of e4m3."""

OF_PROMPTS = ("attn2.to_k", "attn2.to_v")
"""How the names of layers end that take prompts: a product for each batch, not for each step."""

MULTIPLE = 16
"""Of which `torch._scaled_mm` wants the widths of both factors to be multiples."""


class Fp8UnavailableError(RuntimeError):
    """A GPU has no products of e4m3."""


@dataclass(frozen=True)
class Fp8Weight:
    """Weights, or those of several modules.

    Attributes:
        values: [out, in], e4m3; of modules [n, out, in].
        scales: [out], float32; of modules [n, out].
    """

    values: torch.Tensor
    scales: torch.Tensor

    def of(self, positions: int | slice) -> Fp8Weight:
        """A view of those of one module, or of neighbours as one weight."""
        values, scales = self.values[positions], self.scales[positions]
        return Fp8Weight(values, scales) if values.ndim == 2 else Fp8Weight(values.flatten(0, 1), scales.flatten())


class Fp8Linear(torch.nn.Linear):
    """`torch.nn.Linear` that multiplies by a copy of its weight."""

    fp8: Fp8Weight

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        """[…, in] → […, out]."""
        return linear(input, self.fp8, self.bias)


class Fp8Copies:
    """Copies of the weights of a UNet's transformers, at addresses that never change.

    They follow the patcher: what it has patched or restored is copied anew, nothing else.
    """

    def __init__(self, unet: torch.nn.Module, patcher: Patcher, component: str) -> None:
        """Has layers multiply by copies.

        All of self-attention, cross-attention's for queries and output, those of feed-forwards, and the stacks'
        projections where they are linear.

        Args:
            unet: Changed in place: only the layers' class does.
            patcher: Of its weights, which it patches in place.
            component: Its name there.
        """
        self._patcher = patcher
        self._copies: dict[WeightStack, Fp8Weight] = {}
        self._patched: dict[WeightStack, set[int]] = {}
        for name, layer in list(_layers(unet)):
            stack, position = patcher.places[component, name]
            if stack not in self._copies:
                weights = stack.weights
                scales = torch.empty(weights.shape[:2], dtype=torch.float32, device=weights.device)
                self._copies[stack] = Fp8Weight(torch.empty_like(weights, dtype=E4M3), scales)
                self._patched[stack] = set(range(len(weights)))
            layer.__class__ = Fp8Linear
            layer.fp8 = self._copies[stack].of(position)
        self._follow()
        patcher.after_patch = self._follow

    def joined(self, component: str, names: Sequence[str]) -> Fp8Weight | None:
        """As of `Patcher.joined`: copies of layers as one."""
        found = self._patcher.neighbours(component, names)
        return None if found is None or found[0] not in self._copies else self._copies[found[0]].of(found[1])

    @torch.no_grad()
    def _follow(self) -> None:
        for stack, copies in self._copies.items():
            for start, end, _ in segments(sorted(self._patched[stack] | stack.touched), ()):
                quantise_rows(stack.weights[start:end], (copies.values[start:end], copies.scales[start:end]))
            self._patched[stack] = set(stack.touched)


def require_fp8(device: torch.device) -> None:
    """Checks that a device has such products; a CPU emulates them.

    Raises:
        Fp8UnavailableError: On a GPU that has none.
    """
    if device.type == "cuda" and (found := torch.cuda.get_device_capability(device)) < OLDEST:
        has, wanted = (".".join(map(str, each)) for each in (found, OLDEST))
        raise Fp8UnavailableError(
            f"fp8 is on, and {torch.cuda.get_device_name(device)} has compute capability {has}; wanted: {wanted} or "
            "later, or a repository exported without --fp8"
        )


def weight_of(layer: torch.nn.Linear) -> torch.Tensor | Fp8Weight:
    """What a layer multiplies by."""
    return layer.fp8 if isinstance(layer, Fp8Linear) else layer.weight


def linear(
    x: torch.Tensor,
    weight: torch.Tensor | Fp8Weight,
    bias: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The product x · weightᵀ + bias, of layers in any precision.

    Args:
        x: […, in].
        weight: [out, in].
        bias: [out].
        out: […, out] of x's type, contiguous, to be overwritten.

    Returns:
        […, out] of x's type.
    """
    if isinstance(weight, Fp8Weight):
        y = _product(x, weight)
        if bias is None:
            return y.to(x.dtype) if out is None else out.copy_(y)
        return torch.add(y, bias, out=torch.empty_like(y, dtype=x.dtype) if out is None else out)
    if out is None:
        return functional.linear(x, weight, bias)
    factors, flat = (x.flatten(0, -2), weight.t()), out.flatten(0, -2)
    if bias is None:
        torch.mm(*factors, out=flat)
    else:
        torch.addmm(bias, *factors, out=flat)
    return out


def _product(x: torch.Tensor, weight: Fp8Weight) -> torch.Tensor:
    """[…, out], bfloat16: the one type of results that PyTorch has had since row-wise scales came."""
    values, scales = quantise_rows(x)
    values, scales, weights = values.flatten(0, -2), scales.reshape(-1, 1), weight.values.t()
    if x.is_cuda:
        y = torch._scaled_mm(values, weights, scales, weight.scales[None], out_dtype=torch.bfloat16)
    else:
        y = ((values.float() @ weights.float()) * scales * weight.scales).bfloat16()
    return y.view(*x.shape[:-1], -1)


def _layers(unet: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    stacks = tuple(f"{name}." for name, module in unet.named_modules() if isinstance(module, Transformer2DModel))
    for name, layer in unet.named_modules():
        is_of_tokens = name.startswith(stacks) and not name.endswith(OF_PROMPTS)
        if is_of_tokens and type(layer) is torch.nn.Linear and not any(side % MULTIPLE for side in layer.weight.shape):
            yield name, layer
