"""What a server says that there is to ask for."""

from __future__ import annotations

import asyncio
import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

import wire
from swiftdiffusion.clients import (
    AsyncClient,
    Client,
    GenerationRequest,
    Lora,
    NamedControlNet,
    NamedScheduler,
    PipelineDescription,
)
from swiftdiffusion.python_backends.request.schedulers import SCHEDULERS

if TYPE_CHECKING:
    from conftest import TinyServer

UNIONS = {"union": 4}


def asked(server: Any, name: str | bytes) -> dict[str, Any]:
    """The answer to raw tritonclient."""
    tensor = grpc.InferInput("PIPELINE", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[name if isinstance(name, bytes) else name.encode()]], dtype=object))
    with grpc.InferenceServerClient(server.grpc_url.split("://")[-1]) as client:
        return json.loads(client.infer("pipelines", [tensor]).as_numpy("PIPELINES")[0, 0])


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_both_clients_are_told_what_was_exported(pipelines: dict[str, TinyServer], protocol: str) -> None:
    url = getattr(pipelines["sdxl"], f"{protocol}_url")

    async def asynchronous() -> dict[str, PipelineDescription]:
        async with AsyncClient(url) as client:
            return await client.pipelines()

    with Client(url) as client:
        told = client.pipelines()
    assert asyncio.run(asynchronous()) == told
    assert set(told) == {"sdxl", "sd15", "other"}
    sdxl, sd15, other = told["sdxl"], told["sd15"], told["other"]
    assert (sdxl.height, sdxl.width, sdxl.size_multiple, sdxl.max_size) == (64, 64, 8, 256)
    assert (sdxl.steps, sdxl.guidance_scale, other.steps) == (4, 5.0, 50)
    assert (sdxl.scheduler, sd15.scheduler) == ("EulerDiscreteScheduler", "PNDMScheduler")
    assert [each.name for each in sdxl.schedulers] == list(SCHEDULERS)
    assert NamedScheduler(name="dpmpp_2m_karras", sampler="DPM++ 2M", schedule="Karras") in sd15.schedulers
    assert {each.name for each in sdxl.loras} == {path.stem for path in pipelines["sdxl"].loras.glob("*.safetensors")}
    of_sdxl = {
        NamedControlNet(name=name, control_modes=UNIONS.get(name, 0))
        for name in ("edges", "depth", "pose", "union", "canny")
    }
    assert set(sdxl.controlnets) == set(other.controlnets) == of_sdxl
    assert {each.name for each in sd15.controlnets} == {"sd15-edges", "sd15-depth", "sd15-pose", "sd15-shuffle"}
    assert not any(each.model_extra for each in told.values())


def test_one_pipeline_or_all(pipelines: dict[str, TinyServer]) -> None:
    server = pipelines["sdxl"]
    everything = asked(server, "*")
    for name in pipelines:
        assert asked(server, name) == {name: everything[name]}
    status, answer = wire.post(server, "v2/models/pipelines/generate", {"PIPELINE": "sd15"})
    assert status == 200
    assert json.loads(answer["PIPELINES"]) == {"sd15": everything["sd15"]}


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("sdxl_stream", r'PIPELINE is "sdxl_stream"; allowed: \*, other, sd15, sdxl'),
        ("", r'PIPELINE is ""; allowed: \*, '),
        (b"\xff", "PIPELINE is not UTF-8"),
        ("x" * 1000, "PIPELINE has 1000 bytes; allowed: at most 128 characters"),
    ],
)
def test_a_name_that_there_is_not_is_refused(
    pipelines: dict[str, TinyServer], name: str | bytes, sentence: str
) -> None:
    with pytest.raises(InferenceServerException, match=sentence) as caught:
        asked(pipelines["sdxl"], name)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_a_lora_that_is_added_while_the_server_runs_shows(pipelines: dict[str, TinyServer]) -> None:
    server = pipelines["sd15"]
    index, added = server.loras / "catalogue.json", server.loras / "shown-later.safetensors"
    before = asked(server, "sd15")["sd15"]["loras"]
    assert not index.exists()
    try:
        shutil.copy(next(path for path in sorted(server.loras.iterdir()) if path.stem != "toy"), added)
        index.write_text(
            json.dumps({"loras": {"shown-later": {"steps": 3, "scheduler": "ddim", "scale": 0.5}}}), "utf-8"
        )
        now = asked(server, "sd15")["sd15"]["loras"]
        assert {"name": "shown-later", "steps": 3, "scheduler": "ddim", "scale": 0.5} in now
        assert [each for each in now if each["name"] != "shown-later"] == before
        with Client(server.grpc_url, model="sd15") as client:
            described = {each.name: each for each in client.pipelines()["sd15"].loras}
            picture = client.generate(GenerationRequest("a cat", loras=[Lora("shown-later")]))
        assert (described["shown-later"].steps, described["shown-later"].guidance_scale) == (3, None)
        assert (picture.info.steps, picture.info.scheduler) == (3, "ddim")
    finally:
        index.unlink(missing_ok=True)
        added.unlink(missing_ok=True)
    assert asked(server, "sd15")["sd15"]["loras"] == before
