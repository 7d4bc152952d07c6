"""Tensors of PyTorch over Triton's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from collections.abc import Sequence


def input_tensor(request: Any, name: str) -> torch.Tensor:
    """A required input tensor where it lies, without a copy, valid during `execute`."""
    return torch.from_dlpack(pb_utils.get_input_tensor_by_name(request, name).to_dlpack())


def joined_inputs(requests: list[Any], names: Sequence[str]) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Input tensors of requests that Triton batched, as one batch, and each request's number of rows."""
    batch = [{name: input_tensor(request, name) for name in names} for request in requests]
    rows = [len(tensors[names[0]]) for tensors in batch]
    if len(batch) == 1:
        return batch[0], rows
    return {name: torch.cat([tensors[name] for tensors in batch]) for name in names}, rows


def response_view(response: Any, name: str) -> torch.Tensor:
    """An output tensor where it lies, valid as long as the response is kept."""
    return torch.from_dlpack(pb_utils.get_output_tensor_by_name(response, name).to_dlpack())


def response_tensor(response: Any, name: str) -> torch.Tensor:
    """A copy of an output tensor: the response's memory goes with the response."""
    return response_view(response, name).clone()


def output_tensor(name: str, tensor: torch.Tensor) -> Any:
    """A Triton tensor over the same memory."""
    return pb_utils.Tensor.from_dlpack(name, tensor.contiguous())
