"""The benchmark of engines goes on where there are none."""

from __future__ import annotations

import torch
from rich.console import Console

from gpu_engines import measure, table


def test_without_a_gpu_it_says_so() -> None:
    results = measure(False, torch.device("cpu"), torch.float32, 2)
    assert results == {"left_out": ["engines need a GPU, and PyTorch sees none"]}
    console = Console(width=120)
    with console.capture() as shown:
        console.print(table(results))
    assert shown.get() == "engines: engines need a GPU, and PyTorch sees none\n"
