"""One shard's UNet with its LoRAs and ControlNets: noise predictions of whatever rows it is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..backend.metrics import TRANSFERRED, Counter, Histogram
from ..networks.unet_halves import residual_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from ..common.errors import RequestError
    from ..controlnets.calls import ControlNetCalls
    from ..lora.files.lora_set import LoraSet
    from ..lora.patching.resident import ResidentLoras
    from ..networks.unet import UNet
    from .unet_calls import UNetCall


@dataclass(frozen=True)
class Evaluated:
    """What came of a call.

    Attributes:
        prediction: [B, C, h, w] float32.
        patch_ms: What making the call's LoRA set resident took; 0 if it was.
        failures: Row → why its prediction is of no use.
        stale: For each row, which of its ControlNets gave residuals of the previous step.
    """

    prediction: torch.Tensor
    patch_ms: float
    failures: Mapping[int, RequestError]
    stale: Sequence[Sequence[int]]


class Evaluator:
    """Evaluates calls one by one; for one thread."""

    def __init__(self, name: str, unet: UNet, loras: ResidentLoras, controlnets: ControlNetCalls) -> None:
        """Puts the parts together.

        Args:
            name: Of the shard.
            unet: Warmed up.
            loras: Over the UNet's patcher.
            controlnets: Wherever they are.
        """
        self._name, self._unet, self._loras, self._controlnets = name, unet, loras, controlnets
        self._bytes = Counter(*TRANSFERRED)
        self._patch_seconds = Histogram(
            "swiftdiffusion_lora_patch_seconds", "Time to make another LoRA set resident, by shard"
        )

    @property
    def resident(self) -> LoraSet:
        """The LoRA set that is patched in."""
        return self._loras.current

    def __call__(self, call: UNetCall) -> Evaluated:
        """Makes the call's LoRA set resident, and evaluates its rows with their ControlNets.

        Raises:
            LoraUnavailableError: If a LoRA's file is gone.
        """
        self._loras.upload({key for key, _ in call.ahead})
        patch_ms = self._loras.ensure(call.loras)
        if patch_ms:
            self._patch_seconds.observe(patch_ms / 1000, shard=self._name)
        with self._controlnets.start(call.tensors, call.controls) as pending:
            encoded = self._unet.encode(call.tensors)
            residuals = pending.wait(residual_size(encoded.halfway))
        for name, nbytes in pending.sent.items():
            self._bytes.add(nbytes, model=f"controlnet_{name}", direction="to")
        for name, nbytes in residuals.nbytes.items():
            self._bytes.add(nbytes, model=f"controlnet_{name}", direction="from")
        prediction = self._unet.decode(encoded, residuals.total)
        return Evaluated(prediction, patch_ms, residuals.failures, pending.stale)
