"""Throwaway repositories of small Python models, and what their servers leave in the system."""

from __future__ import annotations

from pathlib import Path

from swiftdiffusion.python_backends.launcher.processes import group_members
from swiftdiffusion.python_backends.launcher.shared_memory import SHARED_MEMORY, region_prefix

CONFIG = """\
backend: "python"
max_batch_size: 1
input [ { name: "IN" data_type: TYPE_FP32 dims: [1] } ]
output [ { name: "OUT" data_type: TYPE_FP32 dims: [1] } ]
instance_group [ { kind: KIND_CPU } ]
"""
ENSEMBLE = """\
platform: "ensemble"
max_batch_size: 1
input [ { name: "IN" data_type: TYPE_FP32 dims: [1] } ]
output [ { name: "OUT" data_type: TYPE_FP32 dims: [1] } ]
ensemble_scheduling { step [ {
  model_name: "boom" model_version: -1 input_map { key: "IN" value: "IN" } output_map { key: "OUT" value: "OUT" } } ] }
"""
MODEL = """\
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        {initialize}

    def execute(self, requests):
        given = [pb_utils.get_input_tensor_by_name(request, "IN").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", each)]) for each in given]
"""


def add_model(repository: Path, name: str, initialize: str = "pass", config: str = CONFIG) -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(config)
    (repository / name / "1" / "model.py").write_text(MODEL.format(initialize=initialize))


def fine_repository(directory: Path) -> Path:
    """One model."""
    add_model(directory, "calm")
    return directory


def broken_repository(directory: Path) -> Path:
    """One model that fails to load, one composed of it, and one that is fine."""
    add_model(directory, "boom", 'raise FileNotFoundError("no weights in /nowhere: run make demo")')
    add_model(directory, "calm")
    add_model(directory, "composed", config=ENSEMBLE)
    return directory


def regions(pid: int) -> list[Path]:
    return list(SHARED_MEMORY.glob(f"{region_prefix(pid)}*"))


def assert_nothing_left(pid: int) -> None:
    assert group_members(pid) == []
    assert regions(pid) == []


def stub_of(pid: int) -> int:
    (stub,) = [member for member in group_members(pid) if member != pid]
    return stub
