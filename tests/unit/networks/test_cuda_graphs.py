"""Captured calls: what is replayed, what is copied, and where a call leaves its graph. On a tape in place of a GPU."""

from __future__ import annotations

import pytest
import torch

from swiftdiffusion.python_backends.networks import cuda_graphs
from swiftdiffusion.python_backends.networks.cuda_graphs import WARM_UP_CALLS, CaptureSite, CudaGraphs
from tape import Tape


class Module:
    """Twice its input, plus what a function outside of the graph gives for that, plus one.

    Attributes:
        calls: Of Python.
        outside: What the function adds to its input now; None to fail.
    """

    def __init__(self, site: CaptureSite) -> None:
        self._site, self.calls, self.outside = site, 0, torch.ones(1)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self._site.outside(self._more, 2 * x) + 1

    def _more(self, x: torch.Tensor) -> torch.Tensor:
        if self.outside is None:
            raise RuntimeError("outside")
        return x + self.outside


def test_a_call_leaves_its_graph_and_comes_back_in_every_replay() -> None:
    tape = Tape()
    site = CaptureSite(tape)
    module = Module(site)
    graphs = CudaGraphs(module, site)
    first = graphs(torch.full((2,), 3.0))
    assert torch.equal(first, torch.full((2,), 8.0))
    assert (tape.recorded, tape.replayed, module.calls) == (2, 2, WARM_UP_CALLS + 1)
    module.outside = torch.full((1,), 10.0)
    again = graphs(torch.full((2,), 4.0))
    assert again is first and torch.equal(again, torch.full((2,), 19.0))
    assert (tape.recorded, tape.replayed, module.calls) == (2, 4, WARM_UP_CALLS + 1)


def test_each_shape_and_variant_is_captured_once_and_those_used_longest_ago_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "GRAPHS", 2)
    tape, factor = Tape(), 2
    graphs = CudaGraphs(lambda x: factor * x, CaptureSite(tape), variant=lambda: factor)
    one, two = torch.ones(1), torch.ones(2)
    for given, recorded in ((one, 1), (two, 2), (one, 2), (two, 2), (torch.ones(3), 3), (two, 3), (one, 4)):
        assert torch.equal(graphs(given), 2 * given)
        assert tape.recorded == recorded
    factor = 3
    assert torch.equal(graphs(one), 3 * one) and tape.recorded == 5
    graphs.forget()
    assert torch.equal(graphs(one), 3 * one) and tape.recorded == 6


def test_what_graphs_hold_is_bounded() -> None:
    """By bytes, too; one that takes all the room goes when the next one comes."""
    tape = Tape()
    graphs = CudaGraphs(lambda x: 2 * x, CaptureSite(tape), most_bytes=4 * 8.0)  # four values in, and as many out
    for size, recorded in ((1, 1), (3, 2), (1, 2), (3, 2), (2, 3), (2, 3), (3, 4), (9, 5), (9, 5), (1, 6)):
        assert torch.equal(graphs(torch.ones(size)), torch.full((size,), 2.0))
        assert tape.recorded == recorded, size


def test_inputs_are_copied_but_those_that_it_adopts_and_that_lie_where_they_lay() -> None:
    memory = torch.zeros(4)
    graphs = CudaGraphs(lambda x, y: x + y, CaptureSite(Tape()), slice(1, 2))
    x, y = torch.ones(2), memory[:2]
    assert torch.equal(graphs(x, y), torch.ones(2))
    x.fill_(5)
    memory.fill_(1)
    assert torch.equal(graphs(torch.ones(2), memory[:2]), torch.full((2,), 2.0))
    assert torch.equal(graphs(torch.ones(2), torch.full((2,), 7.0)), torch.full((2,), 8.0))
    assert torch.equal(memory, torch.tensor([7.0, 7, 1, 1])), "another place is copied into its own"
    assert torch.equal(x, torch.full((2,), 5.0)), "what is not adopted is nobody's else"


def test_what_fails_outside_or_in_a_graph_leaves_the_site_as_it_was() -> None:
    tape = Tape()
    site = CaptureSite(tape)
    module = Module(site)
    graphs, number = CudaGraphs(module, site), torch.ones(1)

    def fails_when_captured(x: torch.Tensor) -> torch.Tensor:
        fails_when_captured.calls += 1  # type: ignore[attr-defined]
        if fails_when_captured.calls > WARM_UP_CALLS:  # type: ignore[attr-defined]
            raise RuntimeError("inside")
        return x

    fails_when_captured.calls = 0  # type: ignore[attr-defined]
    module.outside = None
    with pytest.raises(RuntimeError, match="outside"):
        graphs(number)
    module.outside, calls = number, module._more
    module._more = lambda x: calls(x) if module.calls <= WARM_UP_CALLS + 1 else 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        graphs(number)
    with pytest.raises(RuntimeError, match="inside"):
        CudaGraphs(fails_when_captured, site)(number)
    module._more = calls  # type: ignore[method-assign]
    assert torch.equal(graphs(number), torch.full((1,), 4.0))
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


def test_what_comes_once_is_not_captured_where_that_is_wanted() -> None:
    tape = Tape()
    graphs = CudaGraphs(lambda x: 2 * x, CaptureSite(tape), slice(None), at_second_sight=True)
    x = torch.zeros(2)
    for value, recorded, replayed in ((1.0, 0, 0), (2.0, 1, 1), (3.0, 1, 2)):
        x.fill_(value)
        assert torch.equal(graphs(x), 2 * x)
        assert (tape.recorded, tape.replayed) == (recorded, replayed)


@pytest.mark.parametrize("is_shared", [False, True])
def test_graphs_called_between_the_pieces_of_another_need_memory_of_their_own(is_shared: bool) -> None:
    site = CaptureSite(Tape())
    inner = CudaGraphs(lambda x: 3 * x, site if is_shared else CaptureSite(Tape()))

    def module(x: torch.Tensor) -> torch.Tensor:
        kept = x + 1  # nobody holds it once that is captured
        return kept * site.outside(inner, x.clone())

    outer, given = CudaGraphs(module, site), torch.full((2,), 2.0)
    assert torch.equal(outer(given), torch.full((2,), 18.0))
    assert torch.equal(outer(given), torch.full((2,), 18.0)) == (not is_shared)


def test_outside_of_a_capture_a_function_is_called_too_and_what_it_gives_copied() -> None:
    given, known = torch.ones(1), torch.full((1,), 3.0)
    own = CaptureSite(Tape()).outside(lambda _x, more: more, given, known)
    assert own is given and torch.equal(own, known)
