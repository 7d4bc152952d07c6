"""Which shard runs a request, and which lends itself: told by the server's counters while it runs."""

from __future__ import annotations

import time
from typing import Any

import tritonclient.grpc as grpc

from swiftdiffusion.clients.perf.statistics import read_statistics
from wire import latest_metrics

LOOK_S = 0.3
MESSAGES = 3
"""Of a step or two; a shard without a run is asked at most for a quote, whether it lends itself, and its claim."""


def shards_of(server: Any) -> list[str]:
    """Of a pipeline."""
    with grpc.InferenceServerClient(server.grpc_url.split("://")[-1]) as client:
        config = client.get_model_config(server.inner("denoiser")).config
    return config.parameters["unet_shards"].string_value.split(",")


def sent_to(server: Any) -> dict[str, float]:
    """Shard → bytes of rows that others had it evaluate, as far as the server knows."""
    counted = latest_metrics(server)
    name = "swiftdiffusion_transferred_bytes_total"
    return {each: counted.get(f'{name}{{direction="to",model="{each}"}}', 0.0) for each in shards_of(server)}


def roles(server: Any) -> tuple[str, list[str]]:
    """Of the one request that runs on a pipeline: its home, and the shards that evaluate rows for it."""
    deadline = time.monotonic() + 30
    while True:
        bytes_before, before = sent_to(server), read_statistics(server.grpc_url)
        time.sleep(LOOK_S)
        work = {each.model: each.calls for each in read_statistics(server.grpc_url).work_since(before)}
        lent = [shard for shard, nbytes in sent_to(server).items() if nbytes > bytes_before[shard]]
        homes = [shard for shard in bytes_before if work.get(shard, 0) > MESSAGES and shard not in lent]
        if len(homes) == 1:
            return homes[0], lent
        assert time.monotonic() < deadline, (work, lent)
