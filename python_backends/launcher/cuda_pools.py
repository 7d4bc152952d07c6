"""CUDA memory that the server sets aside on each GPU for tensors between models: residuals of the ControlNets there."""

from collections import defaultdict
from pathlib import Path

from .repository_weights import readable_config

LEAST_MIB, MOST_MIB = 64, 4096
"""tritonserver's own default, and what leaves room beside it."""


def cuda_pools(repository: Path) -> dict[int, int]:
    """MiB by the number of each GPU that has a ControlNet.

    Shards hold a step's answers until it ends, the server frees them a little later, and stale residuals live for a
    step more: so twice the rows of the largest call, which are those of all shards. `answer_mib` is what two rows take
    at the default size: of larger pictures fewer fit. What does not fit is handed over more slowly, as CUDA IPC, and so
    is what would need more than MOST_MIB, for all places of many shards.
    """
    answers: dict[int, int] = defaultdict(int)
    for config_file in sorted(repository.glob("*/config.pbtxt")):
        config = readable_config(config_file)
        if config is not None and "answer_mib" in config.parameters:
            mib = int(config.parameters["answer_mib"].string_value) * max(1, config.max_batch_size)
            for gpu in {gpu for group in config.instance_group for gpu in group.gpus}:
                answers[gpu] += mib
    return {gpu: min(max(LEAST_MIB, mib), MOST_MIB) for gpu, mib in answers.items()}
