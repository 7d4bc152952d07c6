"""Descriptions of engines that nobody built."""

from __future__ import annotations

from typing import Any

from swiftdiffusion.python_backends.tensorrt.metadata import Bounds, EngineMetadata


def described(name: str, *profiles: dict[str, Bounds], **changes: Any) -> EngineMetadata:
    """Of TensorRT on an H100, without plugins, all weights constant; but for what is given."""
    return EngineMetadata(
        **{
            "name": name,
            "runtime": "tensorrt",
            "release": "11.4.0.106",
            "gpu": "NVIDIA H100 80GB HBM3",
            "capabilities": ("9.0",),
            "precision": "float16",
            "profiles": profiles,
            "weights": (),
            "constants": (),
            "digest": "abc",
            "sources": {},
            "plan_sha256": "",
            "plugins": (),
            "norms": "reduce",
            "onnx": "onnx",
            "options": (),
        }
        | changes
    )
