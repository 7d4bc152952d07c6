"""Pieces of Triton model configurations (`ModelConfig` of Triton's model_config.proto)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tritonclient.grpc import model_config_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Tensor = tuple[str, str, tuple[int, ...]]
"""Name, type, shape without the batch dimension."""


@dataclass(frozen=True)
class Model:
    """A model of the repository.

    Attributes:
        config: Its config.pbtxt.
        backend: Module of `python_backends` with its class; None for an ensemble.
    """

    config: pb.ModelConfig
    backend: str | None


CLIENT_INPUTS: tuple[tuple[str, str, tuple[int, ...], bool], ...] = (
    ("PROMPT", "STRING", (1,), True),
    ("NEGATIVE_PROMPT", "STRING", (1,), True),
    ("PROMPT_SYNTAX", "STRING", (1,), True),
    ("SEED", "INT64", (1,), True),
    ("STEPS", "INT32", (1,), True),
    ("GUIDANCE_SCALE", "FP32", (1,), True),
    ("GUIDANCE_RESCALE", "FP32", (1,), True),
    ("HEIGHT", "INT32", (1,), True),
    ("WIDTH", "INT32", (1,), True),
    ("SCHEDULER", "STRING", (1,), True),
    ("CLIP_SKIP", "INT32", (1,), True),
    ("LORAS", "STRING", (1,), True),
    ("LORA_BOUND", "INT32", (1,), True),
    ("LORA_PATCH_STEP", "INT32", (1,), True),
    ("CONTROLNETS", "STRING", (1,), True),
    ("CONTROL_IMAGES", "UINT8", (-1, -1, -1, 3), True),
    ("INIT_IMAGE", "UINT8", (-1, -1, 3), True),
    ("ENCODED_INIT_IMAGE", "STRING", (1,), True),
    ("MASK_IMAGE", "UINT8", (-1, -1), True),
    ("ENCODED_MASK_IMAGE", "STRING", (1,), True),
    ("STRENGTH", "FP32", (1,), True),
    ("COMPOSITE", "BOOL", (1,), True),
    ("MASK_AWARE", "STRING", (1,), True),
    ("REQUEST_ID", "STRING", (1,), True),
    ("TIMEOUT_MS", "INT32", (1,), True),
    ("PRIORITY", "STRING", (1,), True),
    ("OUTPUT_FORMAT", "STRING", (1,), True),
    ("OUTPUT_QUALITY", "INT32", (1,), True),
    ("OUTPUT_METADATA", "BOOL", (1,), True),
    ("PREVIEWS", "INT32", (1,), True),
    ("PREVIEW_SIZE", "INT32", (1,), True),
    ("PREVIEW_DECODER", "STRING", (1,), True),
)
"""The wire contract's inputs: name, type, shape without the batch dimension, optional for Triton.

PROMPT is required all the same: of an ensemble whose required input is missing Triton says only "unexpected deadlock",
`preprocess` says what is missing."""


def python_model(
    name: str,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    parameters: Mapping[str, str],
    *,
    max_batch_size: int,
    gpus: Sequence[int] = (),
    processes: int = 1,
) -> pb.ModelConfig:
    """A Python model: an instance on each GPU, or so many processes on the CPU."""
    config = pb.ModelConfig(name=name, backend="python", max_batch_size=max_batch_size)
    config.input.extend(model_input(*tensor) for tensor in inputs)
    config.output.extend(model_output(*tensor) for tensor in outputs)
    kind = pb.ModelInstanceGroup.KIND_GPU if gpus else pb.ModelInstanceGroup.KIND_CPU
    config.instance_group.append(pb.ModelInstanceGroup(count=processes, kind=kind, gpus=gpus))
    for key, value in sorted(parameters.items()):
        config.parameters[key].string_value = value
    return config


def batched(config: pb.ModelConfig) -> pb.ModelConfig:
    """Lets Triton batch requests that wait."""
    config.dynamic_batching.SetInParent()
    return config


def iterative_sequence(config: pb.ModelConfig, decoupled: bool) -> pb.ModelConfig:
    """A model that is handed its requests over and over until it releases them."""
    batching = config.sequence_batching
    batching.iterative_sequence = True
    batching.max_sequence_idle_microseconds = 600_000_000  # a step of a large picture on a CPU takes its time
    batching.oldest.max_candidate_sequences = config.max_batch_size  # the shards themselves keep to their places
    batching.oldest.max_queue_delay_microseconds = 100  # requests come back one by one: wait for the last
    config.model_transaction_policy.decoupled = decoupled
    return config


def ensemble(
    name: str, steps: Sequence[tuple[str, Mapping[str, str], Mapping[str, str]]], outputs: Sequence[Tensor]
) -> pb.ModelConfig:
    """Models one after another.

    Args:
        name: Of the ensemble.
        steps: Of each model its name, and the ensemble's tensors by the names of its inputs and of its outputs.
        outputs: Of the last.
    """
    config = pb.ModelConfig(name=name, platform="ensemble", max_batch_size=1)
    config.input.extend(model_input(*tensor) for tensor in CLIENT_INPUTS)
    config.output.extend(model_output(*tensor) for tensor in outputs)
    for model, inputs, results in steps:
        step = config.ensemble_scheduling.step.add(model_name=model, model_version=-1)
        step.input_map.update(inputs)
        step.output_map.update(results)
    return config


def model_input(name: str, dtype: str, dims: tuple[int, ...], optional: bool = False) -> pb.ModelInput:
    """An input of a model."""
    return pb.ModelInput(name=name, data_type=getattr(pb, f"TYPE_{dtype}"), dims=dims, optional=optional)


def model_output(name: str, dtype: str, dims: tuple[int, ...]) -> pb.ModelOutput:
    """An output of a model."""
    return pb.ModelOutput(name=name, data_type=getattr(pb, f"TYPE_{dtype}"), dims=dims)
