"""The wire contract from outside: raw tritonclient, nothing of ours."""

from __future__ import annotations

import importlib
import json
import queue
import re
import subprocess
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import tritonclient.grpc as grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from swiftdiffusion.python_backends.launcher import TritonServer

TYPES = {
    "PROMPT": "BYTES",
    "NEGATIVE_PROMPT": "BYTES",
    "PROMPT_SYNTAX": "BYTES",
    "SEED": "INT64",
    "STEPS": "INT32",
    "GUIDANCE_SCALE": "FP32",
    "GUIDANCE_RESCALE": "FP32",
    "HEIGHT": "INT32",
    "WIDTH": "INT32",
    "SCHEDULER": "BYTES",
    "CLIP_SKIP": "INT32",
    "LORAS": "BYTES",
    "LORA_BOUND": "INT32",
    "LORA_PATCH_STEP": "INT32",
    "CONTROLNETS": "BYTES",
    "ENCODED_INIT_IMAGE": "BYTES",
    "ENCODED_MASK_IMAGE": "BYTES",
    "STRENGTH": "FP32",
    "COMPOSITE": "BOOL",
    "MASK_AWARE": "BYTES",
    "REQUEST_ID": "BYTES",
    "TIMEOUT_MS": "INT32",
    "PRIORITY": "BYTES",
    "OUTPUT_FORMAT": "BYTES",
    "OUTPUT_QUALITY": "INT32",
    "OUTPUT_METADATA": "BOOL",
    "PREVIEWS": "INT32",
    "PREVIEW_SIZE": "INT32",
    "PREVIEW_DECODER": "BYTES",
}
PROMPT = "a red circle above a blue square"
Loras = list[tuple[str, float]]
Asked = TypeVar("Asked")
NUMPY = {"INT64": np.int64, "INT32": np.int32, "FP32": np.float32, "BOOL": np.bool_}


@dataclass(frozen=True)
class Picture:
    """What a request came back with."""

    image: np.ndarray
    info: dict[str, Any]

    def distance(self, other: np.ndarray | Picture) -> float:
        """Mean absolute difference in units of 1/255."""
        pixels = other.image if isinstance(other, Picture) else other
        assert self.image.shape == pixels.shape
        return float(np.abs(self.image.astype(np.float64) - pixels).mean())


def array(field: str, value: Any) -> np.ndarray:
    """A value as the contract's [1, 1] tensor."""
    if TYPES[field] == "BYTES":
        return np.array([[value if isinstance(value, bytes) else value.encode()]], dtype=object)
    return np.array([[value]], NUMPY[TYPES[field]])


def inputs(protocol: Any, fields: dict[str, Any]) -> list[Any]:
    """Inputs for `tritonclient.grpc` or `tritonclient.http`; values that are arrays are sent as they are."""
    tensors = []
    for field, value in fields.items():
        data = value if isinstance(value, np.ndarray) else array(field, value)
        dtype = "UINT8" if field in ("CONTROL_IMAGES", "INIT_IMAGE", "MASK_IMAGE") else TYPES[field]
        tensor = protocol.InferInput(field, data.shape, dtype)
        tensor.set_data_from_numpy(data)
        tensors.append(tensor)
    return tensors


def generate(server: Any, model: str, protocol: str = "grpc", **fields: Any) -> Picture:
    """One picture over gRPC or HTTP."""
    module = importlib.import_module(f"tritonclient.{protocol}")  # what gRPC does without may lack HTTP's packages
    address = {"grpc": server.grpc_url, "http": server.http_url}[protocol].split("://")[-1]
    with module.InferenceServerClient(address) as client:
        result = client.infer(model, inputs(module, fields))
    info = result.as_numpy("INFO")[0, 0]
    return Picture(result.as_numpy("IMAGE")[0], json.loads(info))


class Stream:
    """Responses of a streaming request, one by one."""

    def __init__(self, server: Any, **fields: Any) -> None:
        self._answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self._client = grpc.InferenceServerClient(server.grpc_url.split("://")[-1])
        self._client.start_stream(lambda result, error: self._answers.put((result, error)))
        given = {field: value for field, value in fields.items() if value is not None}
        self._client.async_stream_infer(f"{server.model}_stream", inputs(grpc, given), enable_empty_final_response=True)

    def next(self) -> tuple[dict[str, Any] | None, Any]:
        """INFO and IMAGE of the next response; both None after the last."""
        result, error = self._answers.get(timeout=60)
        if error is not None:
            raise error
        info = result.as_numpy("INFO")
        return (None if info is None else json.loads(info[0, 0])), result.as_numpy("IMAGE")

    def __iter__(self) -> Iterator[tuple[dict[str, Any], Any]]:
        while (response := self.next())[0] is not None:
            yield response  # type: ignore[misc]
            if response[1] is not None:
                return

    def close(self) -> None:
        """Ends the stream."""
        self._client.stop_stream()
        self._client.close()


def cancel(server: Any, request_id: str) -> bool:
    """Asks the model `cancel`, which says whether there is such a request."""
    with grpc.InferenceServerClient(server.grpc_url.split("://")[-1]) as client:
        answer = client.infer("cancel", inputs(grpc, {"REQUEST_ID": request_id}))
    return bool(answer.as_numpy("CANCELLED")[0, 0])


def post(server: Any, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Status and answer of JSON sent over HTTP."""
    request = urllib.request.Request(f"{server.http_url}/{path}", json.dumps(body).encode(), method="POST")
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def generate_with(server: Any, loras: Loras, **fields: Any) -> Picture:
    """One small picture with LoRAs, each a name and a scale."""
    entries = [{"name": name, "scale": scale} for name, scale in loras]
    given = {"PROMPT": PROMPT, "SEED": 7, "GUIDANCE_SCALE": 5.0, "STEPS": 4, **fields}
    return generate(server, server.model, LORAS=json.dumps(entries), **given)


def drawn_together(draw: Callable[[Asked], Picture], requests: Sequence[Asked], least: int = 2) -> list[Picture]:
    """Pictures of requests that come at once: again, while the machine is so slow that fewer than `least` share."""
    deadline = time.monotonic() + 60
    while True:
        with ThreadPoolExecutor(len(requests)) as threads:
            pictures = list(threads.map(draw, requests))
        largest = max(picture.info["largest_batch"] for picture in pictures)
        if largest >= least:
            return pictures
        assert time.monotonic() < deadline, f"at most {largest} share a batch"


METRICS_WITHIN_S = 0.5
"""Models tell the server of what happened within so long."""


def metrics(server: Any) -> dict[str, float]:
    """The models' own metrics of a server, by name and labels, with all that has happened by now."""
    time.sleep(METRICS_WITHIN_S)
    return latest_metrics(server)


def latest_metrics(server: Any) -> dict[str, float]:
    """What it knows at this moment, up to `METRICS_WITHIN_S` old."""
    with urllib.request.urlopen(server.metrics_url) as answer:
        lines = answer.read().decode().splitlines()
    pairs = [line.rpartition(" ") for line in lines if line.startswith("swiftdiffusion_")]
    return {name: float(value) for name, _, value in pairs}


def in_line(server: Any) -> tuple[float, float]:
    """Requests of a pipeline that wait, and that denoise, as far as the server knows."""
    told = latest_metrics(server)

    def of(state: str) -> float:
        own = (f"swiftdiffusion_requests_{state}{{", f'pipeline="{server.model}"')
        return sum(value for name, value in told.items() if all(part in name for part in own))

    return of("waiting"), of("running")


def stubs_of(server: TritonServer) -> dict[str, int]:
    """Python models of a server that have a process, and its id."""
    listing = subprocess.check_output(["ps", "-e", "-ww", "-o", "pid=,ppid=,args="], text=True)
    processes = [line.split(maxsplit=2) for line in listing.splitlines()]
    found = [
        (re.search(r"/([^/\s]+)/1/model\.py", args), int(pid))
        for pid, ppid, args in processes
        if int(ppid) == server.pid
    ]
    return {model[1]: pid for model, pid in found if model}


def stub_of(server: TritonServer, model: str) -> int:
    """Process id of a Python model of a server, which has to have one."""
    found = stubs_of(server)
    assert model in found, f"no process of {model}"
    return found[model]
