"""Requests for the demo server, and waiting for them."""

import time

from swiftdiffusion.clients import GenerationRequest
from swiftdiffusion.clients.perf.statistics import read_statistics

PROMPT = "a red circle above a blue square on a white background"
REQUEST = GenerationRequest(PROMPT, seed=7, steps=3, height=128, width=128)
LONG = 200  # steps: more than any of these tests waits for
ONE_STEP = 0.3  # seconds in which a cancelled request meets its next step and ends, and a running one goes on


def wait_until_running(url: str, model: str = "denoiser") -> None:
    """Until a request has made a step after this moment."""
    before = read_statistics(url)
    deadline = time.monotonic() + 60
    while model not in {work.model for work in read_statistics(url).work_since(before)}:
        assert time.monotonic() < deadline
        time.sleep(0.05)
