"""How fast this machine's CPU computes what UNets and VAEs consist of; as a command it prints that as JSON."""

from __future__ import annotations

import json
import sys
import time
from functools import cache

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

CHANNELS, SIDE, HEADS = 640, 32, 8
"""Of a middle level of SDXL's and SD 1.5's UNets, at 1024² and 512²."""

TURNS = 2


class UNetLevel(torch.nn.Module):
    """A ResNet block and a transformer block, in a UNet's proportions of convolutions, products and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.GroupNorm(32, CHANNELS)
        self.convolution = torch.nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.layer_norm = torch.nn.LayerNorm(CHANNELS)
        self.to_qkv, self.to_out = torch.nn.Linear(CHANNELS, 3 * CHANNELS), torch.nn.Linear(CHANNELS, CHANNELS)
        self.up, self.down = torch.nn.Linear(CHANNELS, 8 * CHANNELS), torch.nn.Linear(4 * CHANNELS, CHANNELS)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        """[B, CHANNELS, SIDE, SIDE] to the same."""
        for _ in range(2):
            sample = self.convolution(functional.silu(self.norm(sample)))
        tokens = self.layer_norm(sample.flatten(2).transpose(1, 2))
        query, key, value = (
            part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in self.to_qkv(tokens).chunk(3, dim=2)
        )
        attended = functional.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.to_out(attended.transpose(1, 2).flatten(2))
        hidden, gate = self.up(self.layer_norm(tokens)).chunk(2, dim=2)
        tokens = tokens + self.down(hidden * functional.gelu(gate))
        return tokens.transpose(1, 2).unflatten(2, (SIDE, SIDE))


@cache
def gflops_per_second() -> tuple[float, float]:
    """10⁹ floating-point operations per second of one thread in float32: of a UNet's level, of a VAE's convolution.

    Takes about a second of one core. Time that others take from the core does not count.
    """
    sample, threads = torch.zeros(1, CHANNELS, SIDE, SIDE), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _speed(UNetLevel(), sample), _speed(torch.nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), sample)
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def _speed(network: torch.nn.Module, sample: torch.Tensor) -> float:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # which counts no other on a CPU
        network(sample)
    network(sample)  # prepares what others find
    seconds = []
    for _ in range(TURNS):
        start = time.thread_time()
        network(sample)
        seconds.append(time.thread_time() - start)
    return counter.get_total_flops() / 1e9 / min(seconds)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(gflops_per_second()))
