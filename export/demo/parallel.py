"""Data-parallel training in the threads of one process, for machines with a few CPU cores.

Each worker runs its share of the batch, forward and backward, on one core. On small networks this is faster than
splitting every operator over the cores, and it does not stall when another program takes one of them away.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn


class Replicas:
    """Copies of a module that share its weights but hold their own gradients.

    Args:
        module: the original; it is the one to optimise and to save.
        workers: number of copies, the original included; 1 leaves everything in the calling thread.
    """

    def __init__(self, module: nn.Module, workers: int) -> None:
        self.modules = [module] + [copy.deepcopy(module) for _ in range(workers - 1)]
        for replica in self.modules[1:]:
            for own, shared in zip(replica.parameters(), module.parameters(), strict=True):
                own.data = shared.data
        self._pool = ThreadPoolExecutor(workers)

    def backward(self, loss: Callable[..., Tensor], *batch: Tensor) -> float:
        """Leaves the gradient of the mean loss over a batch in the original module.

        Args:
            loss: called with a module and a share of each tensor of the batch; returns the mean loss of that share.
            batch: tensors with as many rows as the batch, a multiple of the number of workers.

        Returns:
            The mean loss.
        """

        def work(module: nn.Module, share: tuple[Tensor, ...]) -> float:
            if len(self.modules) > 1:
                torch.set_num_threads(1)
            module.zero_grad()
            value = loss(module, *share) / len(self.modules)
            value.backward()
            return value.item()

        shares = zip(*(tensor.chunk(len(self.modules)) for tensor in batch), strict=True)
        if len(self.modules) == 1:
            return work(self.modules[0], next(shares))
        total = sum(self._pool.map(work, self.modules, shares))
        for parameters in zip(*(module.parameters() for module in self.modules), strict=True):
            for other in parameters[1:]:
                if other.grad is not None:  # else frozen
                    parameters[0].grad += other.grad
        return total
