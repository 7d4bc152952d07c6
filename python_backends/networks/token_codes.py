"""What transformer blocks gave, in a byte a value: int8 with a scale for each token, which costs no quality to see."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LARGEST, SCALE_BYTES = 127, 4
MASK, NAME_KEY = "mask", "name"


class Codes(NamedTuple):
    """One block's tokens.

    Attributes:
        values: [tokens, width] int8.
        scales: [tokens, 1] float32, which they are multiplied with.
    """

    values: torch.Tensor
    scales: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Of both."""
        return self.values.nbytes + self.scales.nbytes

    @classmethod
    def of(cls, tokens: torch.Tensor) -> Codes:
        """Those of [tokens, width]; what is not finite becomes 0."""
        finite = tokens.float().nan_to_num(0.0, 0.0, 0.0)
        scales = finite.abs().amax(1, keepdim=True) / LARGEST
        return cls((finite / scales.clamp_min(torch.finfo(torch.float32).tiny)).round_().to(torch.int8), scales)

    def to(self, device: torch.device) -> Codes:
        """The same there."""
        return Codes(self.values.to(device, non_blocking=True), self.scales.to(device, non_blocking=True))

    @property
    def is_finite(self) -> bool:
        """Whether its tokens are."""
        return bool(self.scales.isfinite().all())

    def into(self, out: torch.Tensor) -> None:
        """The tokens."""
        torch.mul(self.values, self.scales, out=out)


def coded(values: Sequence[torch.Tensor], mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the blocks of a row gave, as `write_codes` takes it: on the CPU.

    Args:
        values: By block, [tokens, width].
        mask: [h, w]: where they are of something else than the template.
    """
    tensors = {MASK: (mask > 0).to("cpu", torch.uint8)}
    for number, each in enumerate(values):
        codes = Codes.of(each)
        tensors[f"{number}.values"], tensors[f"{number}.scales"] = codes.values.cpu(), codes.scales.cpu()
    return tensors


def write_codes(name: str, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Writes what `coded` gave, under whose name alone it is an entry."""
    save_file(tensors, path, {NAME_KEY: name})


class CodesFile:
    """What `write_codes` wrote, mapped: it may be removed meanwhile, but not changed.

    Attributes:
        mask: [h, w] uint8: where it is of something else than the template.
    """

    def __init__(self, path: Path) -> None:
        """Opens it.

        Raises:
            ValueError: If it is none, or the one of another name.
            OSError: If it cannot be read.
        """
        try:
            self._file = safe_open(path, "pt")
        except SafetensorError as error:
            raise ValueError(f"{path.name} cannot be read: {error}") from None
        if (self._file.metadata() or {}).get(NAME_KEY) != path.stem:
            raise ValueError(f"{path.name} is something else")
        self.mask = self._read(MASK, torch.uint8, None).clone()  # which maps nothing

    def block(self, number: int, tokens: int, width: int) -> Codes:
        """Those of a block.

        Raises:
            ValueError: If it has others.
        """
        values = self._read(f"{number}.values", torch.int8, (tokens, width))
        return Codes(values, self._read(f"{number}.scales", torch.float32, (tokens, 1)))

    def _read(self, name: str, dtype: torch.dtype, shape: tuple[int, int] | None) -> torch.Tensor:
        try:
            tensor: torch.Tensor = self._file.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(f"{name} cannot be read: {error}") from None
        if tensor.dtype != dtype or tensor.ndim != 2 or (shape is not None and tuple(tensor.shape) != shape):
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}; allowed: {dtype} {shape}")
        return tensor
