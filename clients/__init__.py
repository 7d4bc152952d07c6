"""Clients of the wire contract: Python, command line, perf_analyzer."""

from .client.async_client import DEFAULT_URL, AsyncClient
from .client.client import Client
from .client.errors import (
    AdminKeyWanted,
    InvalidRequest,
    LoraUnavailable,
    ModelNotFound,
    RequestCancelled,
    RequestTimeout,
    ServerFailure,
    ServerRestarting,
    ServerUnavailable,
    ServerUnreachable,
    StreamingUnsupported,
    SwiftDiffusionError,
)
from .client.health import Health, ModelState
from .client.pipelines import LoraDescription, NamedControlNet, NamedScheduler, PipelineDescription
from .client.request import ControlNet, GenerationRequest, Lora
from .client.result import ControlNetReport, GenerationInfo, GenerationResult, LoraReport, Progress

__all__ = [
    "DEFAULT_URL",
    "AdminKeyWanted",
    "AsyncClient",
    "Client",
    "ControlNet",
    "ControlNetReport",
    "GenerationInfo",
    "GenerationRequest",
    "GenerationResult",
    "Health",
    "InvalidRequest",
    "Lora",
    "LoraDescription",
    "LoraReport",
    "LoraUnavailable",
    "ModelNotFound",
    "ModelState",
    "NamedControlNet",
    "NamedScheduler",
    "PipelineDescription",
    "Progress",
    "RequestCancelled",
    "RequestTimeout",
    "ServerFailure",
    "ServerRestarting",
    "ServerUnavailable",
    "ServerUnreachable",
    "StreamingUnsupported",
    "SwiftDiffusionError",
]
