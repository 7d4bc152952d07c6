"""CUDA memory that the server sets aside on each GPU for tensors between models: residuals of the ControlNets there."""

from collections import defaultdict
from pathlib import Path

from .repository_weights import readable_config

LEAST_MIB = 64
"""tritonserver's own default."""


def cuda_pools(repository: Path) -> dict[int, int]:
    """MiB by the number of each GPU that has a ControlNet.

    Shards hold a step's answers until it ends, the server frees them a little later, and stale residuals live for a
    step more: so twice the rows of the largest call, which are those of all shards. `answer_mib` is what two rows take
    at the default size: of larger pictures fewer fit, and what does not is handed over more slowly, as CUDA IPC.
    """
    answers: dict[int, int] = defaultdict(int)
    for config_file in sorted(repository.glob("*/config.pbtxt")):
        config = readable_config(config_file)
        if config is not None and "answer_mib" in config.parameters:
            mib = int(config.parameters["answer_mib"].string_value) * max(1, config.max_batch_size)
            for gpu in {gpu for group in config.instance_group for gpu in group.gpus}:
                answers[gpu] += mib
    return {gpu: max(LEAST_MIB, mib) for gpu, mib in answers.items()}
