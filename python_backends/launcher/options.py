"""Tuning of the server, and the command line it becomes."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from .binary import ServerBinary
from .cuda_pools import cuda_pools
from .errors import InvalidRepositoryError, UnsupportedOptionError
from .gpus import gpu_names

MIB = 1 << 20


@dataclass(frozen=True)
class ServerOptions:
    """What can be tuned.

    Attributes:
        cuda_memory_pool_mib: server-side CUDA pool per GPU; holds the tensors that travel between models on GPUs. None
            sizes it by the ControlNets on each (`cuda_pools`).
        pinned_memory_pool_mib: pinned host memory for copies to and from GPUs.
        shm_default_mib: shared memory that each Python backend instance starts with.
        shm_growth_mib: step by which it grows when tensors do not fit.
        http_max_input_mib: largest HTTP request body; None leaves the server's own limit. Needs Triton 25.02 or newer.
        grpc_infer_allocation_pool: gRPC request/response objects kept for reuse; None leaves the server's default.
        grpc_max_response_pool: cap of queued streaming responses per request; None leaves the default. Newer Tritons.
        auto_complete_config: let backends complete `config.pbtxt`. Off, because the repositories that `export` writes
            are complete and completion starts every stub twice, which doubles the time to start.
        startup_timeout_seconds: how long loading may take.
        stop_timeout_seconds: how long requests in flight may take to finish when the server is stopped. Short, because
            a stopping server refuses the calls between models at once: only what needs no more of them can finish.
        trace_endpoint: URL of an OpenTelemetry collector (OTLP over HTTP) that is sent spans; None sends none.
        trace_rate: one request in so many is traced, and every one whose client sent a W3C trace context.
        extra_arguments: passed to tritonserver as they are.
    """

    cuda_memory_pool_mib: int | None = None
    pinned_memory_pool_mib: int = 256
    shm_default_mib: int = 1
    shm_growth_mib: int = 1
    http_max_input_mib: int | None = None
    grpc_infer_allocation_pool: int | None = None
    grpc_max_response_pool: int | None = None
    auto_complete_config: bool = False
    startup_timeout_seconds: float = 600.0
    stop_timeout_seconds: float = 10.0
    trace_endpoint: str | None = None
    trace_rate: int = 1
    extra_arguments: tuple[str, ...] = field(default=())

    def arguments(self, binary: ServerBinary, repository: Path) -> list[str]:
        """Command line arguments for tritonserver, on a repository.

        Raises:
            UnsupportedOptionError: an option was set that this version does not have.
        """
        arguments = [
            "--model-control-mode=explicit",
            "--load-model=*",  # also models that only other models call: they are never loaded on demand
            "--exit-on-error=false",  # stay up, so that every model that failed can be asked for its reason
            "--strict-readiness=true",
            f"--exit-timeout-secs={max(1, round(self.stop_timeout_seconds))}",
            f"--pinned-memory-pool-byte-size={self.pinned_memory_pool_mib * MIB}",
            "--grpc-http2-min-recv-ping-interval-without-data=10000",  # ms; who pings more often is cut off
            f"--backend-config=python,shm-default-byte-size={self.shm_default_mib * MIB}",
            f"--backend-config=python,shm-growth-byte-size={self.shm_growth_mib * MIB}",
            f"--backend-config=python,stub-timeout-seconds={round(self.startup_timeout_seconds)}",
        ]
        devices = gpu_names()
        if self.cuda_memory_pool_mib is not None:
            pools = dict.fromkeys(devices, self.cuda_memory_pool_mib)
        else:
            pools = {gpu: mib for gpu, mib in cuda_pools(repository).items() if gpu in devices}
        arguments += [f"--cuda-memory-pool-byte-size={gpu}:{mib * MIB}" for gpu, mib in sorted(pools.items())]
        if not self.auto_complete_config:
            arguments.append("--disable-auto-complete-config")
        if not devices:
            arguments.append("--allow-gpu-metrics=false")
        if self.trace_endpoint is not None:
            settings = [
                "mode=opentelemetry",
                "level=TIMESTAMPS",
                f"rate={self.trace_rate}",
                f"opentelemetry,url={self.trace_endpoint}",
                "opentelemetry,resource=service.name=swiftdiffusion",
            ]
            arguments += [f"--trace-config={setting}" for setting in settings]
        return arguments + self._version_dependent(binary) + list(self.extra_arguments)

    def _version_dependent(self, binary: ServerBinary) -> list[str]:
        wanted = {
            "--http-max-input-size": self.http_max_input_mib and self.http_max_input_mib * MIB,
            "--grpc-infer-allocation-pool-size": self.grpc_infer_allocation_pool,
            "--grpc-max-response-pool-size": self.grpc_max_response_pool,
        }
        wanted = {option: value for option, value in wanted.items() if value is not None}
        if not wanted:
            return []
        known = set(re.findall(r"^\s*(--[\w-]+)", binary.help(), re.MULTILINE))
        unknown = [option for option in wanted if option not in known]
        if unknown:
            raise UnsupportedOptionError(f"{binary.path} is too old for {', '.join(unknown)}: leave it out")
        return [f"{option}={value}" for option, value in wanted.items()]


def check_repository(repository: Path) -> None:
    """Refuses what holds nothing to serve, with InvalidRepositoryError."""
    if not repository.is_dir():
        raise InvalidRepositoryError(f"the model repository {repository} is not a directory")
    if not models_of(repository):
        raise InvalidRepositoryError(f"the model repository {repository} holds no model")


def models_of(repository: Path) -> list[str]:
    """Names of the models of a repository: directories with a configuration or a version."""
    return sorted(
        path.name
        for path in repository.iterdir()
        if path.is_dir() and ((path / "config.pbtxt").exists() or any(path.glob("[0-9]*/")))
    )
