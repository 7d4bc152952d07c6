"""What a shard does, as metrics: its line, its steps, how long it has something to do. Needs no torch."""

from __future__ import annotations

from ..backend.metrics import BusyTime, Gauge, Histogram

BATCH_BUCKETS = (1, 2, 4, 8, 16, 32)
"""Requests, or rows of the UNet's batch, in a step."""


class LineGauges:
    """Requests that wait, and that denoise, in each model that has any.

    A shard shows its line; whoever finds it dead shows for it that nobody is there.
    """

    def __init__(self, pipeline: str) -> None:
        """Opens the families.

        Args:
            pipeline: The public model.
        """
        self._pipeline = pipeline
        self._waiting = Gauge("swiftdiffusion_requests_waiting", "Accepted requests that have not begun to denoise")
        self._running = Gauge("swiftdiffusion_requests_running", "Requests that denoise")

    def show(self, model: str, waiting: int, running: int = 0) -> None:
        """What a model has."""
        self._waiting.set(waiting, pipeline=self._pipeline, model=model)
        self._running.set(running, pipeline=self._pipeline, model=model)


class ShardMetrics:
    """Those of one shard."""

    def __init__(self, pipeline: str, shard: str, instance: str) -> None:
        """Nobody is in line.

        Args:
            pipeline: The public model.
            shard: Its name.
            instance: Its instance's name.
        """
        self._pipeline, self._shard = pipeline, shard
        self._gauges = LineGauges(pipeline)
        self._sizes = Histogram("swiftdiffusion_denoiser_batch_size", "Requests in a denoising step", BATCH_BUCKETS)
        self._seconds = Histogram("swiftdiffusion_step_seconds", "Time of denoising steps, by rows of the UNet's batch")
        self._waits = Histogram("swiftdiffusion_controlnet_wait_seconds", "Time that steps waited for ControlNets")
        self._busy = BusyTime(shard, instance)
        self.line(0, 0)

    def line(self, waiting: int, running: int) -> None:
        """Who waits, and who denoises."""
        self._gauges.show(self._shard, waiting, running)

    def stepped(self, requests: int, rows: int, seconds: float) -> None:
        """A step of the shard's own runs."""
        bucket = next((size for size in BATCH_BUCKETS if rows <= size), BATCH_BUCKETS[-1])
        self._sizes.observe(requests, pipeline=self._pipeline)
        self._seconds.observe(seconds, pipeline=self._pipeline, rows=str(bucket))
        self.worked(seconds)

    def worked(self, seconds: float) -> None:
        """A step, or an evaluation for another shard."""
        self._busy.add(seconds)

    def waited(self, seconds: float) -> None:
        """A step had its encoder half, and waited for ControlNets."""
        self._waits.observe(seconds, pipeline=self._pipeline)
