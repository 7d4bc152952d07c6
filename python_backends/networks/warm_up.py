"""What a network does before its first request, so that no request waits for it: traces, captured graphs, compilers."""

from __future__ import annotations

import time
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    Tensors = Mapping[str, torch.Tensor]
    Call = Callable[..., Any]

WARM_UP_ROWS = (1, 2)
"""Rows of the calls that a single request makes: one half of its guidance, or both."""

AHEAD_ROWS, LEFT = 16, 0.25
"""Most rows of a call that are captured before it is made, and the share of a GPU's memory that must be free for it:
other models are loaded there, and LoRAs and requests come."""

SLOW_S = 1.0
"""An evaluation that takes longer is not traced, nor repeated before it is wanted."""


def warm_up(
    examples: Iterable[Tensors],
    evaluate: Callable[[Tensors], object],
    trace: Callable[[Sequence[Tensors]], None] | None,
    is_eager: bool,
) -> None:
    """Evaluates, traced where that helps.

    Where one eager evaluation takes long, a trace saves nothing that counts, and it is the only one: a process of which
    a step takes ten seconds need not take a minute more to be ready.

    Args:
        examples: What it is given, the fewest rows first.
        evaluate: By the trace of its shapes, if there is one.
        trace: Makes those of several examples; None for what is not traced.
        is_eager: Whether the first call of a shape costs no more than others: nothing is compiled.
    """
    taken: list[Tensors] = []
    for given in examples:
        if is_eager:
            start = time.thread_time()  # not of the clock: others may have the core
            evaluate(given)
            if time.thread_time() - start > SLOW_S:
                break
        taken.append(given)
    if trace is not None and taken:
        trace(taken)
    for tensors in taken:
        for _ in range(3):  # the first calls of a graph optimise it
            evaluate(tensors)


def capture_ahead(most: int, evaluate: Callable[[int], object], device: torch.device, *, tunes: bool) -> None:
    """Evaluates as many rows as calls of whole requests have, so that graphs are captured and kernels compiled.

    The fewest come first. Each graph keeps what it gives: as soon as less than LEFT of a GPU's memory is free, larger
    batches wait until they are wanted, but for the rows of a single request.

    Args:
        most: Rows that a call may have.
        evaluate: So many.
        device: Where.
        tunes: Whether cuDNN times its algorithms, of a single request and of the largest batch: it takes seconds each.
    """
    rows = rows_of_requests(most)
    for count in rows:
        if count not in WARM_UP_ROWS and free_share(device) < LEFT:
            break
        with tuned_convolutions(device, tunes and count in {*WARM_UP_ROWS, max(rows)}):
            evaluate(count)
    for count in WARM_UP_ROWS:
        if count in rows:
            evaluate(count)  # the last that goes, where there is no room for all
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what eager calls before captures, and trials of algorithms, took


def free_share(device: torch.device) -> float:
    """Of a GPU's memory, what nobody has; all of another device's."""
    if device.type != "cuda":
        return 1.0
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return free / total


@contextmanager
def tuned_convolutions(device: torch.device, tunes: bool = True) -> Iterator[None]:
    """Meanwhile cuDNN times its algorithms for shapes that it has not seen; it takes the fastest from then on."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or (tunes and device.type == "cuda")
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def rows_of_requests(most: int) -> list[int]:
    """Rows of calls for whole requests, two each, and for half of one; AHEAD_ROWS at most.

    Args:
        most: That a call may have.
    """
    return [1, *range(2, min(most, AHEAD_ROWS) + 1, 2)]


def trace(network: torch.nn.Module, calls: Sequence[tuple[torch.nn.Module, tuple[torch.Tensor, ...]]]) -> list[Call]:
    """Graphs of modules that share a network's; parameters that change in place take effect.

    All at once: torch converts the modules, which takes longer than the graphs, each time that it is asked.

    Args:
        network: What they share.
        calls: The modules, and arguments of the shapes that their graphs are for.
    """
    holder = torch.nn.Module()
    holder.network = network
    arguments: dict[str, tuple[torch.Tensor, ...]] = {}
    for number, (module, given) in enumerate(calls):
        setattr(holder, f"call{number}", module.forward)
        arguments[f"call{number}"] = given
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # values taken for constants: they depend on the shape alone, which is fixed
        graphs = torch.jit.trace_module(holder, arguments, check_trace=False)
    return [getattr(graphs, name) for name in arguments]
