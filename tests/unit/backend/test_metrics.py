"""What models tell the server of what happened: sums, and nothing twice."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from model_process import own_metrics, told

from file_server import wait_for
from swiftdiffusion.python_backends.backend import metrics


@pytest.fixture
def teller() -> Iterator[None]:
    """One of this test alone."""
    with own_metrics():
        yield


@pytest.mark.usefixtures("teller")
def test_counts_of_many_threads_come_to_their_sum() -> None:
    counter = metrics.Counter("swiftdiffusion_made_total", "Made")

    def count() -> None:
        for _ in range(1000):
            counter.add(2.0, of="a")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    metrics.close()
    assert sum(told["swiftdiffusion_made_total"]["a"]) == 8000
    assert len(told["swiftdiffusion_made_total"]["a"]) < 100


@pytest.mark.usefixtures("teller")
def test_the_server_is_told_without_being_asked() -> None:
    gauge = metrics.Gauge("swiftdiffusion_cache_bytes", "Bytes")
    for value in (3.0, 0.0):
        gauge.set(value)
        wait_for(lambda: told["swiftdiffusion_cache_bytes"][""][-1:] == [value])  # noqa: B023


@pytest.mark.usefixtures("teller")
def test_a_histogram_has_every_value() -> None:
    histogram = metrics.Histogram("swiftdiffusion_batch_size", "Requests", (1, 2, 4))
    for value in (1, 2, 2, 3, 9):
        histogram.observe(value)
    metrics.close()
    assert told["swiftdiffusion_batch_size"] == {"": [1, 2, 2, 3, 9]}


@pytest.mark.usefixtures("teller")
def test_what_exists_is_known_before_it_grows() -> None:
    metrics.Counter("swiftdiffusion_made_total", "Made").add(0.0)
    metrics.close()
    assert told["swiftdiffusion_made_total"] == {"": [0.0]}


@pytest.mark.usefixtures("teller")
def test_what_the_server_would_refuse_is_refused_here() -> None:
    counter = metrics.Counter("swiftdiffusion_made_total", "Made")
    with pytest.raises(ValueError, match="labels of swiftdiffusion_made_total"):
        counter.add(**{"not-a-label": "a"})
    with pytest.raises(ValueError, match="grow by finite amounts, not by -1"):
        counter.add(-1)
    with pytest.raises(ValueError, match="ending"):
        metrics.Gauge("swiftdiffusion_made_total", "Made")
    with pytest.raises(ValueError, match="do not ascend"):
        metrics.Histogram("swiftdiffusion_made_size", "Made", (2, 1))


@pytest.mark.usefixtures("teller")
def test_after_a_failure_the_model_goes_on_without_metrics(caplog: pytest.LogCaptureFixture) -> None:
    counter = metrics.Counter("swiftdiffusion_made_total", "Made")
    told["swiftdiffusion_made_total"].clear()
    del counter._family._family
    counter.add()
    metrics.close()
    counter.add()
    assert "no metrics from now on" in caplog.text
    assert told["swiftdiffusion_made_total"] == {}
