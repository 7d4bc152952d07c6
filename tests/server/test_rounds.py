"""What an iterative sequence is handed at every round: small texts alone, whatever the request holds."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc

from wire import inputs

MOST_BYTES = 4096


@pytest.mark.parametrize("suffix", ["", "_stream"])
def test_a_denoiser_is_handed_few_bytes(tiny: Any, suffix: str) -> None:
    """Of an edit with two ControlNets, two LoRAs and prompts of several chunks, whose tensors are of megabytes."""
    names = [{"name": tiny.controlnet(name)} for name in ("edges", "depth")]
    fields = {
        "PROMPT": "a red cat " * 60,
        "NEGATIVE_PROMPT": "blurry " * 90,
        "PROMPT_SYNTAX": "weighted",
        "LORAS": '[{"name": "attention"}, {"name": "everything", "scale": 0.5}]',
        "CONTROLNETS": json.dumps(names),
        "CONTROL_IMAGES": np.zeros((1, 2, 128, 128, 3), np.uint8),
        "INIT_IMAGE": np.zeros((1, 128, 128, 3), np.uint8),
        "MASK_IMAGE": np.full((1, 128, 128), 255, np.uint8),
    }
    with grpc.InferenceServerClient(tiny.grpc_url.split("://")[-1]) as client:
        wanted = [tensor.name for tensor in client.get_model_config(tiny.inner(f"denoiser{suffix}")).config.input]
        completed = client.infer(tiny.inner("preprocess"), inputs(grpc, fields))
        texts = {name: completed.as_numpy(name)[0, 0] for name in ("REQUEST", "TICKETS")}
        given = [grpc.InferInput(name, [1, 1], "BYTES") for name in texts]
        for tensor in given:
            tensor.set_data_from_numpy(np.array([[texts[tensor.name()]]], dtype=object))
        encoded = client.infer(tiny.inner("vae_encoder"), given[:1])
        texts["LATENT_KEYS"] = encoded.as_numpy("LATENT_KEYS")[0, 0]
        texts["ENCODING"] = client.infer(tiny.inner("text_encoder"), given).as_numpy("ENCODING")[0, 0]
    assert sum(len(texts[name]) for name in wanted) < MOST_BYTES
    assert json.loads(texts["ENCODING"])["prompt"]
