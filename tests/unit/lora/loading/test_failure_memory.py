"""Which entries failed lately, and for how long that counts."""

from __future__ import annotations

from swiftdiffusion.python_backends.lora.loading.failure_memory import FailureMemory


def test_a_failure_counts_for_a_growing_time() -> None:
    now = 100.0
    memory, error = FailureMemory(2.0, 10.0, clock=lambda: now), ValueError("no")
    assert memory.current("a") is None
    for lasts in (2, 4, 8, 10, 10):
        memory.failed("a", error)
        now += lasts - 0.1
        assert memory.current("a") is error
        assert memory.current("b") is None
        now += 0.2
        assert memory.current("a") is None
    memory.succeeded("a")
    memory.failed("a", error)
    now += 2.1
    assert memory.current("a") is None


def test_the_memory_of_failures_is_bounded() -> None:
    memory = FailureMemory()
    for index in range(5000):
        memory.failed(str(index), ValueError())
    assert memory.current("0") is None
    assert memory.current("4999") is not None
