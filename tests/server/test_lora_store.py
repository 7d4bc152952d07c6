"""The model `lora_store` by itself, in a real server: tickets, errors, metrics, and what remains in shared memory."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

import checkpoints
import lora_files
from engine_descriptions import described
from file_server import FileServer, file_server, wait_for
from swiftdiffusion.python_backends.common.errors import InvalidRequestError, LoraUnavailableError, UnknownLoraError
from swiftdiffusion.python_backends.common.runtime_directory import VARIABLE
from swiftdiffusion.python_backends.launcher import TritonServer
from swiftdiffusion.python_backends.lora.files.canonical import CanonicalLora
from swiftdiffusion.python_backends.lora.files.modules import BaseModules
from swiftdiffusion.python_backends.lora.loading.outcomes import WRITER_SUFFIX, Outcomes
from swiftdiffusion.python_backends.lora.loading.tickets import Ticket, tickets_from_json
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.request.completed import CompletedRequest, LoraUse
from swiftdiffusion.python_backends.shared_memory.host_cache import Lease, host_cache_directory
from wire import metrics

CONFIG = """
backend: "python"
max_batch_size: 1
input {{ name: "REQUEST" data_type: TYPE_STRING dims: 1 }}
output {{ name: "TICKETS" data_type: TYPE_STRING dims: 1 }}
instance_group {{ count: 1 kind: KIND_CPU }}
parameters {{ key: "checkpoint" value {{ string_value: "../checkpoint" }} }}
parameters {{ key: "loras" value {{ string_value: "../loras" }} }}
parameters {{ key: "lora_disk_directory" value {{ string_value: "{disk}" }} }}
parameters {{ key: "lora_host_bytes" value {{ string_value: "33554432" }} }}
"""
ON_ENGINES = """
parameters { key: "engines" value { string_value: "../engines" } }
parameters { key: "engine_components" value { string_value: "unet,text_encoder" } }
"""
REQUEST = CompletedRequest("0" * 32, "a cat", None, 1, 4, 5.0, 64, 64, None)


class StoreServer:
    """A server with `lora_store`, another whose pipeline runs on engines, and their LoRA directory."""

    def __init__(self, running: TritonServer, directory: Path, files: FileServer) -> None:
        self.running, self.loras, self.files = running, directory / "loras", files
        self.client = http.InferenceServerClient(running.http_url.removeprefix("http://"))
        self.index: dict[str, object] = {}
        environment = Path(f"/proc/{running.pid}/environ").read_bytes().split(b"\0")
        [value] = [each for each in environment if each.startswith(VARIABLE.encode())]
        shared = Path(value.partition(b"=")[2].decode())
        self.outcomes = Outcomes(host_cache_directory(shared), shared / "lora-loads")

    def add_remote(self, name: str, location: str) -> None:
        self.index[name] = {"location": location}
        (self.loras / "catalogue.json").write_text(json.dumps({"loras": self.index}))

    def ask(self, *names: str, model: str = "lora_store") -> list[Ticket]:
        return tickets_from_json(self.infer(_request(*names), model), self.outcomes)

    def infer(self, text: str, model: str = "lora_store") -> str:
        tensor = http.InferInput("REQUEST", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=object))
        tickets = self.client.infer(model, [tensor]).as_numpy("TICKETS")
        return str(tickets[0, 0].decode())

    def metrics(self) -> dict[str, float]:
        return metrics(self.running)


def _request(*names: str) -> str:
    return replace(REQUEST, loras=tuple(LoraUse(name, 1.0, 0) for name in names)).to_json()


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny checkpoint and a LoRA file for it."""
    directory = tmp_path_factory.mktemp("store")
    checkpoint = checkpoints.sdxl(directory / "checkpoint")
    shapes = BaseModules.of(Checkpoint(checkpoint)).shapes
    lora_files.peft(shapes).save(directory / "lora.safetensors")
    return directory, directory / "lora.safetensors"


@pytest.fixture(scope="module")
def store(lora: tuple[Path, Path]) -> Iterator[StoreServer]:
    directory, _file = lora
    (directory / "loras").mkdir()
    for name, more in (("lora_store", ""), ("engines_lora_store", ON_ENGINES)):
        model = directory / "repository" / name
        (model / "1").mkdir(parents=True)
        (model / "config.pbtxt").write_text(CONFIG.format(disk=directory / "disk") + more)
        (model / "1" / "model.py").write_text(
            "from swiftdiffusion.python_backends.lora_store import TritonPythonModel\n__all__ = ['TritonPythonModel']\n"
        )
    (directory / "engines").mkdir()
    for name, constants in {"unet_encoder": ("conv_in",), "unet_decoder": (), "text_encoder": ()}.items():
        held = tuple(f"{module}.weight" for module in constants)
        described(name, {"rows": ((1,), (1,), (8,))}, constants=held).save(directory / "engines")
    with file_server() as files, TritonServer(directory / "repository") as running:
        made = StoreServer(running, directory, files)
        yield made
        made.client.close()  # the server would wait for it
    assert not made.outcomes.host_directory.exists()


def wait(ticket: Ticket) -> Any:
    wait_for(lambda: ticket.done, 30.0)
    return ticket.poll()


HELD = {
    "weight": ("unet", "conv_in", "lora"),
    "norm": ("unet", "conv_norm_out", "norm"),
    "text encoder": ("text_encoder", "final_layer_norm", "norm"),
    "weight that is an input": ("unet", "conv_out", "lora"),
    "no engine's": ("text_encoder_2", "text_model.final_layer_norm", "norm"),
}
TAKEN = ("weight that is an input", "no engine's")


@pytest.mark.parametrize("what", HELD)
def test_what_engines_hold_is_not_changed(store: StoreServer, lora: tuple[Path, Path], what: str) -> None:
    """Who asks is told of which LoRA, before anything is computed; a pipeline without engines takes it."""
    component, module, kind = HELD[what]
    base = BaseModules.of(Checkpoint(lora[0] / "checkpoint"))
    if kind == "lora":
        made = lora_files.kohya({component: {module: base.shapes[component][module]}})
    else:
        weight = torch.ones(base.vectors[component][module])
        made = lora_files.MadeLora({f"{lora_files.kohya_name(component, module)}.w_norm": weight})
    made.save(store.loras / f"{what}.safetensors")
    assert wait(store.ask(what)[0]).path
    ticket = store.ask(what, model="engines_lora_store")[0]
    if what in TAKEN:
        assert wait(ticket).path
    else:
        said = f'LORAS names "{what}": {component}.{module}: it is constant in an engine; allowed: weights of'
        with pytest.raises(InvalidRequestError, match=re.escape(said)):
            wait(ticket)


def test_tickets_of_local_and_remote_loras(store: StoreServer, lora: tuple[Path, Path]) -> None:
    content, gate = lora[1].read_bytes(), threading.Event()
    (store.loras / "near.safetensors").write_bytes(content)
    store.add_remote("far", store.files.add("/far", content, gate=gate))
    near, far = store.ask("near", "far")
    assert far.poll() is None
    gate.set()
    assert wait(near).source == "disk"
    assert wait(far).path == near.poll().path  # type: ignore[union-attr]
    with Lease(wait(near).path) as lease:
        assert CanonicalLora.open(lease.path).modules
    again = store.ask("far", "near")
    assert [ticket.poll().source for ticket in again] == ["host", "host"]  # type: ignore[union-attr]
    assert store.ask() == []


def test_an_unknown_name_is_the_clients_mistake(store: StoreServer) -> None:
    (store.loras / "papercut.safetensors").write_bytes(b"")
    [unknown] = store.ask("papercutt")
    with pytest.raises(UnknownLoraError, match=r'LORAS names "papercutt"; .* the nearest: papercut'):
        unknown.poll()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"loras": "x"}'])
def test_what_is_no_request_is_refused(store: StoreServer, text: str) -> None:
    with pytest.raises(InferenceServerException, match="REQUEST is not what `preprocess` writes"):
        store.infer(text)


def test_a_refused_file_and_a_dead_store(store: StoreServer) -> None:
    (store.loras / "broken.safetensors").write_bytes(b"nothing of use")
    store.add_remote("gone", store.files.url("/gone"))
    broken, gone = store.ask("broken", "gone")
    with pytest.raises(InvalidRequestError, match='LORAS names "broken": '):
        wait(broken)
    with pytest.raises(LoraUnavailableError, match='LORAS names "gone": its store does not have the file'):
        wait(gone)
    gone, broken = store.ask("gone", "broken")  # remembered
    with pytest.raises(LoraUnavailableError, match="its store does not have the file"):
        gone.poll()
    with pytest.raises(InvalidRequestError, match='LORAS names "broken": '):
        broken.poll()


def test_what_happened_is_in_the_metrics(store: StoreServer, lora: tuple[Path, Path]) -> None:
    (store.loras / "counted.safetensors").write_bytes(lora[1].read_bytes())
    before = store.metrics()
    wait(store.ask("counted")[0])
    store.ask("counted", "counted")

    def grew(name: str) -> float:
        return store.metrics().get(name, 0.0) - before.get(name, 0.0)

    wait_for(lambda: grew('swiftdiffusion_lora_loads_total{source="host"}') >= 2)
    assert grew('swiftdiffusion_lora_load_seconds_count{source="host"}') >= 2
    assert store.metrics()['swiftdiffusion_lora_cache_max_bytes{cache="host"}'] == 2**25
    assert store.metrics()['swiftdiffusion_lora_cache_bytes{cache="host"}'] > 0
    assert load_buckets(store)[-1] == store.metrics()['swiftdiffusion_lora_load_seconds_count{source="host"}']
    assert load_buckets(store) == sorted(load_buckets(store))


def load_buckets(store: StoreServer) -> list[float]:
    """How many LoRAs of the host cache took up to each bound, the lowest first."""
    pattern = re.compile(r'swiftdiffusion_lora_load_seconds_bucket\{source="host",le="(\S+)"\}')
    found = ((pattern.fullmatch(name), value) for name, value in store.metrics().items())
    counts = {float(match[1]): value for match, value in found if match}
    assert len(counts) == 12
    return [counts[bound] for bound in sorted(counts)]


def test_many_loads_at_a_time(store: StoreServer, lora: tuple[Path, Path]) -> None:
    """Metrics are counted from all worker threads while requests come in."""
    content = lora[1].read_bytes()
    for index in range(40):
        store.files.add(f"/many{index}", content)
        store.add_remote(f"many{index}", store.files.url(f"/many{index}"))
    tickets = [store.ask(f"many{index}", f"many{39 - index}") for index in range(40)]
    assert len({wait(ticket).path for pair in tickets for ticket in pair}) == 1
    assert all(store.files.gets[f"/many{index}"] == 1 for index in range(40))
    assert {file.suffix for file in store.outcomes.directory.iterdir()} == {WRITER_SUFFIX}
