"""What the server's models did during a measurement, from Triton's own counters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tritonclient.utils import InferenceServerException

from ..client.access import GRPC_ADMIN_HEADER, HTTP_ADMIN_HEADER, admin_headers
from ..client.errors import error_from_status

_STAGES = ("queue", "compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True)
class ModelWork:
    """Work of one model in a period; milliseconds are means per call of the model.

    Attributes:
        model: its name.
        calls: requests it answered; one picture calls the denoiser and the shards once per step.
        executions: batches they were answered in.
        mean_batch: inferences per execution.
        queue_ms: waiting for a batch and a free instance.
        compute_ms: the model itself.
        transfer_ms: taking inputs in and handing outputs out.
    """

    model: str
    calls: int
    executions: int
    mean_batch: float
    queue_ms: float
    compute_ms: float
    transfer_ms: float


@dataclass(frozen=True)
class _Counters:
    calls: int
    inferences: int
    executions: int
    nanoseconds: Mapping[str, int]


class Statistics:
    """Counters of all models at one moment."""

    def __init__(self, counters: Mapping[str, _Counters]) -> None:
        self._counters = counters

    def work_since(self, earlier: "Statistics") -> list[ModelWork]:
        """Work between an earlier moment and this one, of the models that did any."""
        return [
            _difference(name, earlier._counters[name], now)
            for name, now in sorted(self._counters.items())
            if name in earlier._counters and now.executions > earlier._counters[name].executions
        ]


def read_statistics(url: str, admin_key: str | None = None) -> Statistics:
    """Counters of all models.

    Args:
        url: `grpc://HOST:PORT` or `http://HOST:PORT`.
        admin_key: of a restricted server.

    Raises:
        SwiftDiffusionError: the server does not tell.
    """
    address = urlsplit(url)
    try:
        if address.scheme == "grpc":
            import tritonclient.grpc as grpc_client

            with grpc_client.InferenceServerClient(address.netloc) as client:
                headers = admin_headers(GRPC_ADMIN_HEADER, admin_key)
                answer = client.get_inference_statistics("", headers=headers, as_json=True)
        else:
            import tritonclient.http as http_client

            with http_client.InferenceServerClient(address.netloc) as client:
                answer = client.get_inference_statistics("", headers=admin_headers(HTTP_ADMIN_HEADER, admin_key))
    except InferenceServerException as error:
        raise error_from_status(error.status(), error.message() or "", url) from error
    return parse_statistics(answer)


def parse_statistics(answer: Mapping[str, Any]) -> Statistics:
    """Counters from the answer of the statistics API; absent counters are 0."""
    return Statistics({model["name"]: _counters(model) for model in answer.get("model_stats", ())})


def _counters(model: Mapping[str, Any]) -> _Counters:
    stages = model.get("inference_stats", {})
    return _Counters(
        calls=int(stages.get("success", {}).get("count", 0)),
        inferences=int(model.get("inference_count", 0)),
        executions=int(model.get("execution_count", 0)),
        nanoseconds={stage: int(stages.get(stage, {}).get("ns", 0)) for stage in _STAGES},
    )


def _difference(model: str, earlier: _Counters, now: _Counters) -> ModelWork:
    calls, executions = now.calls - earlier.calls, now.executions - earlier.executions
    milliseconds = {
        stage: (now.nanoseconds[stage] - earlier.nanoseconds[stage]) / 1e6 / max(calls, 1) for stage in _STAGES
    }
    return ModelWork(
        model=model,
        calls=calls,
        executions=executions,
        mean_batch=(now.inferences - earlier.inferences) / executions,
        queue_ms=milliseconds["queue"],
        compute_ms=milliseconds["compute_infer"],
        transfer_ms=milliseconds["compute_input"] + milliseconds["compute_output"],
    )
