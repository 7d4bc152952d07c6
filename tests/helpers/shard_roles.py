"""Which shard runs a request, and which lends itself: told by the server's statistics while it runs."""

from __future__ import annotations

import time
from typing import Any

import tritonclient.grpc as grpc

from swiftdiffusion.clients.perf.statistics import read_statistics

LOOK_S = 0.2
MESSAGES = 3
"""Of a step or two; a shard without a run is asked at most for a quote, whether it lends itself, and its claim."""


def shards_of(server: Any) -> list[str]:
    """Of a pipeline."""
    with grpc.InferenceServerClient(server.grpc_url.split("://")[-1]) as client:
        config = client.get_model_config(server.inner("denoiser")).config
    return config.parameters["unet_shards"].string_value.split(",")


def roles(server: Any, helpers: int = 0) -> tuple[str, list[str]]:
    """Of the one request that runs on a pipeline: its home, and the shards that evaluate rows for it, once so many do.

    The home is asked how far it is, which is answered at once; the others are asked for evaluations.
    """
    shards, deadline = shards_of(server), time.monotonic() + 30
    while True:
        before = read_statistics(server.grpc_url)
        time.sleep(LOOK_S)
        work = read_statistics(server.grpc_url).work_since(before)
        busy = sorted((each.compute_ms, each.model) for each in work if each.model in shards and each.calls > MESSAGES)
        if len(busy) > helpers:
            (_, home), *lent = busy
            return home, [shard for _, shard in lent]
        assert time.monotonic() < deadline, work
