"""Requests for the demo server, and waiting for them."""

import time

from swiftdiffusion.clients import GenerationRequest
from swiftdiffusion.clients.perf.statistics import ModelWork, read_statistics

PROMPT = "a red circle above a blue square on a white background"
REQUEST = GenerationRequest(PROMPT, seed=7, steps=3, height=128, width=128)
LONG = 200  # steps: more than any of these tests waits for


def wait_until_running(url: str, model: str = "denoiser") -> None:
    """Until a request has made a step after this moment."""
    before = read_statistics(url)
    deadline = time.monotonic() + 60
    while model not in {work.model for work in read_statistics(url).work_since(before)}:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_until_stopped(url: str) -> None:
    """Until nothing is denoised any more; a long request that was cancelled just now must not go on to its end."""
    before = latest = read_statistics(url)
    while True:
        time.sleep(0.5)
        earlier, latest = latest, read_statistics(url)
        if not _denoiser_executions(latest.work_since(earlier)):
            return
        assert _denoiser_executions(latest.work_since(before)) < LONG / 2


def _denoiser_executions(work: list[ModelWork]) -> int:
    return sum(each.executions for each in work if each.model.startswith("denoiser"))
