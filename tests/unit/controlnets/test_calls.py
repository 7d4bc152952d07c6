"""Calls of a step: one per ControlNet and occurrence, summed per row; of stale ones the sums are the step before's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future

import model_process  # noqa: F401  before what imports the server's module
import torch

from swiftdiffusion.python_backends.common.errors import ControlNetUnavailableError
from swiftdiffusion.python_backends.controlnets.answers import Answer
from swiftdiffusion.python_backends.controlnets.calls import ControlNetCalls
from swiftdiffusion.python_backends.request.completed import ControlNetUse, StepHistory

SIZE = 3


class Recorder:
    """An endpoint whose residuals are the latents that it was sent, times its use's scale."""

    def __init__(self, calls: list[int], failure: Exception | None = None, size: int = SIZE) -> None:
        self._calls, self._failure, self._size = calls, failure, size

    def submit(self, tensors: Mapping[str, torch.Tensor], uses: Sequence[ControlNetUse]) -> Future[Answer]:
        self._calls.append(len(uses))
        answer: Future[Answer] = Future()
        scales = torch.tensor([[use.scale] for use in uses])
        if self._failure is not None:
            answer.set_exception(self._failure)
        else:
            answer.set_result(Answer(tensors["LATENTS"].reshape(len(uses), 1) * scales.expand(-1, self._size), {}))
        return answer


def use(name: str, scale: float = 1.0, history: StepHistory | None = None) -> ControlNetUse:
    return ControlNetUse(name, ("a" * 64,), scale, 0.0, 1.0, False, stale=history is not None, history=history)


def rows(*latents: float) -> dict[str, torch.Tensor]:
    return {"LATENTS": torch.tensor(latents).reshape(-1, 1, 1, 1), "TIMESTEPS": torch.zeros(len(latents), 1)}


def test_each_is_called_once_for_all_its_rows() -> None:
    made: dict[str, list[int]] = {}
    calls = ControlNetCalls(lambda name: Recorder(made.setdefault(name, [])), 5.0)
    controls = [[use("a"), use("b", 10.0)], [], [use("a", 2.0), use("a", 3.0)]]
    with calls.start(rows(1.0, 5.0, 7.0), controls) as pending:
        residuals = pending.wait(SIZE)
    assert made == {"a": [2, 1], "b": [1]}
    assert residuals.total is not None
    assert residuals.total[:, 0].tolist() == [11.0, 0.0, 35.0]
    assert not residuals.failures
    assert residuals.nbytes == {"a": 3 * 4 * SIZE, "b": 4 * SIZE}
    assert pending.sent == {"a": 3 * 8, "b": 8}


def test_stale_sums_are_the_previous_steps_row_by_row() -> None:
    made: dict[str, list[int]] = {}
    calls = ControlNetCalls(lambda name: Recorder(made.setdefault(name, [])), 5.0)
    found, counted, steps = [], 0, 4
    for step in range(steps):
        histories = [StepHistory(run, 1, 0, step, step == steps - 1) for run in ("first", "second")]
        with calls.start(rows(step + 1.0, 100.0 * step), [[use("a", history=each)] for each in histories]) as pending:
            residuals = pending.wait(SIZE)
        assert residuals.total is not None
        found.append(residuals.total[:, 0].tolist())
        counted += residuals.nbytes.get("a", 0)
        assert pending.stale == ([[], []] if step == 0 else [[0], [0]])
    assert found == [[1.0, 0.0], [1.0, 0.0], [2.0, 100.0], [3.0, 200.0]]
    assert made == {"a": [2, 2, 2]}
    assert counted == 3 * 2 * 4 * SIZE


def test_failures_are_those_of_the_rows_that_use_it() -> None:
    endpoints = {
        "good": Recorder([]),
        "down": Recorder([], ControlNetUnavailableError('CONTROLNETS names "down"')),
        "broken": Recorder([], ZeroDivisionError()),
        "foreign": Recorder([], size=SIZE + 1),
    }
    calls = ControlNetCalls(endpoints.__getitem__, 5.0)
    names = ["good", "down", "broken", "foreign"]
    with calls.start(rows(1.0, 2.0, 3.0, 4.0), [[use("good"), use(name)] for name in names]) as pending:
        residuals = pending.wait(SIZE)
    said = {row: str(error) for row, error in residuals.failures.items()}
    assert set(said) == {1, 2, 3}
    assert "ZeroDivisionError" in said[2]
    assert "4 values a row; this UNet wants 3" in said[3]
    assert residuals.total is not None
    assert residuals.total[0].tolist() == [2.0] * SIZE
