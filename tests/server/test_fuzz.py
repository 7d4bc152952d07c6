"""Requests that nobody should send harm nobody, and each gets a documented answer."""

from __future__ import annotations

from typing import Any

import pytest

from fuzz_requests import Fuzzer
from fuzzing import Tally, fuzz, processes
from swiftdiffusion.clients import Client, GenerationRequest

pytestmark = pytest.mark.parametrize("tiny", ["sdxl"], indirect=True)
GOOD = GenerationRequest("a red circle", seed=1, steps=3, guidance_scale=1.0)
INNER = ("preprocess", "text_encoder", "denoiser", "denoiser_stream", "vae_decoder", "lora_store", "unet_shard0")
REQUESTS = 600


def test_every_bad_request_is_answered_and_harms_nobody(tiny: Any) -> None:
    models = (tiny.model, f"{tiny.model}_stream", "cancel", "pipelines", "control_images", *map(tiny.inner, INNER))
    with Client(tiny.grpc_url, model=tiny.model, retries=3) as client:  # its models may have loaded just now
        expected = client.generate(GOOD).image
    before = processes(tiny.running.pid)
    tally = Tally()
    for outcome in fuzz(tiny.http_url, tiny.grpc_url, Fuzzer(models, seed=13), REQUESTS):
        tally.add(outcome)
    assert tally.undocumented == []
    assert processes(tiny.running.pid) == before
    with Client(tiny.grpc_url, model=tiny.model) as client:
        assert client.generate(GOOD).image.tobytes() == expected.tobytes()
    assert {status for status in tally.counts if status.endswith((" 200", " OK"))} == {"HTTP 200", "gRPC OK"}
