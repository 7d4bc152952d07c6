"""The transformers of a UNet over the tokens of a mask alone, with the others' keys and values of self-attention kept.

What is measured beside `TokenStacks`, which keeps what blocks give instead. Masked tokens go through the blocks, and
attend to their own keys and values and to those that another call gave for the others; of the others, what a stack adds
to the picture is kept too, since convolutions see all of it. With what the same input would give, nothing changes but
roundings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel

from swiftdiffusion.python_backends.networks.token_masks import TokenMask

Kept = Mapping[torch.nn.Module, Sequence[torch.Tensor]]
"""What each projection gave, [B, tokens, width], call by call."""


class KvStacks:
    """The stacks of one UNet, whose forward passes are others only within `recorded` and `masked`."""

    def __init__(self, network: torch.nn.Module) -> None:
        """Changes nothing yet.

        Args:
            network: Has the stacks, with linear projections as in SDXL.
        """
        self._enter: list[torch.nn.Module] = []
        self._kept: list[torch.nn.Module] = []
        for stack in network.modules():
            if isinstance(stack, Transformer2DModel):
                self._enter.append(stack.proj_in)
                for block in stack.transformer_blocks:
                    self._kept += [block.attn1.to_k, block.attn1.to_v]
                self._kept.append(stack.proj_out)

    @contextmanager
    def recorded(self) -> Iterator[Kept]:
        """What there is to keep of the calls meanwhile, which are what they are without."""
        kept: dict[torch.nn.Module, list[torch.Tensor]] = {module: [] for module in self._kept}

        def keep(module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
            kept[module].append(output)

        hooks = [module.register_forward_hook(keep) for module in self._kept]
        try:
            yield kept
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def masked(self, mask: TokenMask, kept: Kept) -> Iterator[None]:
        """Calls meanwhile compute masked tokens only.

        Args:
            mask: Of all rows.
            kept: Of as many calls, of pictures of the mask's size.
        """
        places = {height * width: each for (height, width), each in mask.places.items()}
        calls = {module: iter(each) for module, each in kept.items()}

        def enter(_module: object, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            return (inputs[0].index_select(1, places[inputs[0].shape[1]]),)

        def complete(module: torch.nn.Module, _inputs: object, own: torch.Tensor) -> torch.Tensor:
            known = next(calls[module])
            return known.index_copy(1, places[known.shape[1]], own)

        hooks = [module.register_forward_pre_hook(enter) for module in self._enter]
        hooks += [module.register_forward_hook(complete) for module in self._kept]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
