"""What a shard says of its UNet in every run's INFO."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import checkpoints
from swiftdiffusion.python_backends.engine.info import final_info
from swiftdiffusion.python_backends.engine.messages import Submit
from swiftdiffusion.python_backends.engine.new_runs import NewRuns
from swiftdiffusion.python_backends.engine.request_loras import RequestLoras
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.request.completed import CompletedRequest
from swiftdiffusion.python_backends.request.encoding import Encoding


@pytest.mark.parametrize("fp8", [False, True])
def test_the_precision_is_said_where_it_is_not_the_usual_one(tmp_path: Path, fp8: bool) -> None:
    checkpoint, others = Checkpoint(checkpoints.sd15(tmp_path / "sd15", depth=2)), dict[str, Any]()
    embeddings = SimpleNamespace(pair=lambda *_: (torch.zeros(2, *checkpoint.text_embedding_shape), None))
    adapters = SimpleNamespace(take_up=lambda *_: RequestLoras((), (), None))
    others = {"moments": None, "pictures": None, "adapters": adapters, "token_runs": None, "fp8": fp8}
    runs = NewRuns(checkpoint, checkpoint.scheduler_config, torch.device("cpu"), embeddings, **others)
    request = CompletedRequest("a", "", None, 0, 2, 2.0, 32, 32, "euler")
    run = runs.make(Submit(request, Encoding(None, "0" * 64, 1.0, False), "", 1))
    info = json.loads(json.dumps(final_info(run)))
    assert info.get("precision") == ("fp8" if fp8 else None)
