"""Ways to send tensors that Triton's clients have beside plain ones: compressed, and in shared memory."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
import tritonclient.utils.shared_memory as shared_memory

from wire import generate, inputs

pytestmark = pytest.mark.parametrize("tiny", ["sdxl"], indirect=True)
FIELDS: dict[str, Any] = {"PROMPT": "a red circle", "SEED": 1, "STEPS": 3, "GUIDANCE_SCALE": 1.0}
"""Of one row: rounding depends on which rows a shard evaluates together."""


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_and_answers(tiny: Any, algorithm: str) -> None:
    expected = generate(tiny, tiny.model, **FIELDS)
    with http.InferenceServerClient(tiny.http_url.split("://")[-1]) as client:
        result = client.infer(
            tiny.model,
            inputs(http, FIELDS),
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )
    assert expected.distance(result.as_numpy("IMAGE")[0]) == 0


def test_pictures_in_a_clients_shared_memory(tiny: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 1, 64, 64, 3), np.uint8)
    fields = FIELDS | {"CONTROLNETS": json.dumps([{"name": "edges"}])}
    expected = generate(tiny, tiny.model, CONTROL_IMAGES=pixels, **fields)
    size = 64 * 64 * 3
    region = shared_memory.create_shared_memory_region("pictures", "/pictures", 2 * size)
    try:
        shared_memory.set_shared_memory_region(region, [pixels])
        with grpc.InferenceServerClient(tiny.grpc_url.split("://")[-1]) as client:
            client.register_system_shared_memory("pictures", "/pictures", 2 * size)
            control = grpc.InferInput("CONTROL_IMAGES", pixels.shape, "UINT8")
            control.set_shared_memory("pictures", size)
            image = grpc.InferRequestedOutput("IMAGE")
            image.set_shared_memory("pictures", size, offset=size)
            try:
                client.infer(tiny.model, [*inputs(grpc, fields), control], outputs=[image])
            finally:
                client.unregister_system_shared_memory("pictures")
        received = shared_memory.get_contents_as_numpy(region, np.uint8, (64, 64, 3), offset=size)
        assert expected.distance(received) == 0
    finally:
        shared_memory.destroy_shared_memory_region(region)
