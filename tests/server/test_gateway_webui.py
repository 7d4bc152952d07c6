"""The client `webuiapi` of A1111's API against the gateway, in front of the demo server."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from webuiapi import ControlNetUnit, WebUIApi

from file_server import wait_for
from gateways import GatewayThread, gateway_thread
from swiftdiffusion.clients.gateway.settings import GatewaySettings
from swiftdiffusion.python_backends.launcher import TritonServer
from wire import PROMPT, generate

EDGES = Path(__file__).resolve().parents[2] / "docs/edges.png"
SIZE: dict[str, Any] = {"width": 128, "height": 128, "seed": 7, "steps": 4, "cfg_scale": 1}
KEY = "sk-alice-0123456789abcdef"


@pytest.fixture
def api(gateway: GatewayThread) -> WebUIApi:
    return client(gateway)


def client(gateway: GatewayThread, **access: str) -> WebUIApi:
    return WebUIApi(baseurl=f"{gateway.url}/sdapi/v1", sampler="Euler", **access)


def test_a_picture_is_the_one_of_the_wire(api: WebUIApi, server: TritonServer) -> None:
    result = api.txt2img(prompt=PROMPT, **SIZE)
    wanted = generate(
        server, "sdxl", PROMPT=PROMPT, PROMPT_SYNTAX="weighted", SEED=7, STEPS=4, GUIDANCE_SCALE=1.0, SCHEDULER="euler"
    )
    assert (np.asarray(result.image) == wanted.image).all()
    assert result.info["all_seeds"] == [7]
    told = api.png_info(result.image).info
    assert told == result.info["infotexts"][0]
    assert told.splitlines()[0] == PROMPT
    assert "Steps: 4, Sampler: Euler, Schedule type: Automatic, CFG scale: 1, Seed: 7, Size: 128x128" in told


def test_loras_samplers_and_controlnets_reach_the_server(api: WebUIApi, server: TritonServer) -> None:
    unit = ControlNetUnit(image=Image.open(EDGES), model="edges", weight=0.7, guidance_end=0.9)
    result = api.txt2img(
        prompt=f"{PROMPT} <lora:outline:0.8>",
        sampler_name="DPM++ 2M",
        scheduler="Karras",
        controlnet_units=[unit],
        batch_size=2,
        **SIZE,
    )
    pixels = np.asarray(Image.open(EDGES).convert("RGB"))
    for seed, image in zip((7, 8), result.images, strict=True):
        wanted = generate(
            server,
            "sdxl",
            PROMPT=PROMPT,
            PROMPT_SYNTAX="weighted",
            SEED=seed,
            STEPS=4,
            GUIDANCE_SCALE=1.0,
            SCHEDULER="dpmpp_2m_karras",
            LORAS='[{"name": "outline", "scale": 0.8}]',
            LORA_BOUND=0,
            CONTROLNETS='[{"name": "edges", "scale": 0.7, "end": 0.9}]',
            CONTROL_IMAGES=pixels[None, None],
        )
        difference = np.abs(np.asarray(image).astype(int) - wanted.image)
        assert difference.max() <= 1  # the two are evaluated together, which moves last bits
    assert "<lora:outline:0.8>" in result.info["infotexts"][1]
    assert 'ControlNet 0: "Module: none, Model: edges, Weight: 0.7' in result.info["infotexts"][1]


def test_progress_is_seen_and_an_interrupted_picture_is_its_preview(api: WebUIApi, gateway: GatewayThread) -> None:
    results: list[Any] = []
    long = {**SIZE, "steps": 200, "width": 256, "height": 256}
    drawing = threading.Thread(target=lambda: results.append(api.txt2img(prompt=PROMPT, **long)))
    drawing.start()
    wait_for(lambda: api.get_progress()["current_image"], 60)
    progress = api.get_progress()
    assert 0 < progress["progress"] < 1
    assert progress["eta_relative"] > 0
    assert progress["state"]["sampling_steps"] == 200
    assert progress["state"]["job_count"] == 1
    api.interrupt()
    drawing.join(30)
    (result,) = results
    assert result.info["interrupted"] is True
    assert [image.size for image in result.images] == [(256, 256)]
    assert api.get_progress()["state"]["job_count"] == 0
    wait_for(lambda: gateway.runs() == 0)


def test_progress_and_interrupt_are_of_a_caller_alone(server: TritonServer, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[alice]\nkey = "{KEY}"\n[bob]\nkey = "{KEY}-of-bob"\n')
    with gateway_thread(GatewaySettings(servers=(server.grpc_url,), keys_file=keys)) as running:
        alice, bob = (client(running, username="x", password=key) for key in (KEY, f"{KEY}-of-bob"))
        results: list[Any] = []
        long = {**SIZE, "steps": 100, "width": 256, "height": 256}
        drawing = threading.Thread(target=lambda: results.append(alice.txt2img(prompt=PROMPT, **long)))
        drawing.start()
        wait_for(lambda: alice.get_progress()["progress"], 60)
        assert bob.get_progress()["state"]["job_count"] == 0
        bob.interrupt()
        drawing.join(120)
        assert results[0].info["interrupted"] is False
        with pytest.raises(RuntimeError, match="401"):
            client(running, username="x", password="sk-of-nobody-at-all").txt2img(prompt=PROMPT, **SIZE)


def test_what_there_is_is_listed(api: WebUIApi) -> None:
    assert {"Euler", "Euler a", "DPM++ 2M"} <= {each["name"] for each in api.get_samplers()}
    assert {"automatic", "karras"} <= {each["name"] for each in api.get_schedulers()}
    assert api.util_get_model_names() == ["sdxl"]
    assert {"night", "outline"} <= {each["name"] for each in api.get_loras()}
    assert api.controlnet_model_list() == ["edges", "layout"]
    assert api.controlnet_module_list() == ["none"]
    assert api.util_get_current_model() == "sdxl"
    assert api.set_options({"sd_model_checkpoint": "sdxl"}) == {}
    assert "allowed: override_settings of a request" in api.set_options({"CLIP_stop_at_last_layers": 2})["detail"]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"enable_hr": True}, "enable_hr is true; allowed: false: it is not supported"),
        ({"sampler_name": "", "sampler_index": "", "scheduler": "Karras"}, "scheduler is 'Karras'; allowed for the"),
        (
            {"prompt": "x <lora:nigth:1>"},
            'LORAS names \\"nigth\\"; allowed: names of the catalogue, the nearest: night',
        ),
        ({"steps": 999}, "STEPS is 999; allowed: 1 to 200"),
        ({"override_settings": {"sd_model_checkpoint": "other"}}, "no pipeline is called 'other'"),
        ({"override_settings": {"img2img_fix_steps": True}}, "img2img_fix_steps"),
    ],
)
def test_what_is_refused_is_told_in_a_sentence(api: WebUIApi, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        api.txt2img(**{"prompt": PROMPT, **SIZE, **values})
    assert sentence in caught.value.args[1]
