"""GPUs as the driver's `nvidia-smi` tells of them, without importing torch; none where it is not there."""

import re
import shutil
import subprocess


def gpu_names() -> dict[int, str]:
    """By the GPU's number."""
    return {int(number): name for number, name in re.findall(r"^GPU (\d+): (.+?) \(UUID", _told("-L"), re.MULTILINE)}


def free_gpu_mib() -> dict[int, int]:
    """Free memory by the GPU's number."""
    answer = _told("--query-gpu=index,memory.free", "--format=csv,noheader,nounits")
    rows = [line.split(",") for line in answer.splitlines()]
    return {int(row[0]): int(row[1]) for row in rows if len(row) == 2 and row[1].strip().isdigit()}


def _told(*options: str) -> str:
    command = shutil.which("nvidia-smi")
    if command is None:
        return ""
    return subprocess.run([command, *options], capture_output=True, text=True, check=False, timeout=60).stdout
