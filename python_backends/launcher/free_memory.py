"""Memory that this machine, or this container, has left."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

MIB = 1 << 20


@dataclass(frozen=True)
class CgroupFiles:
    """Of a version of cgroups: where groups are, and the files of one.

    Attributes:
        root: Directory of the outermost group.
        limit: Name of the file with its limit, in bytes.
        usage: Name of the file with what it uses.
    """

    root: Path
    limit: str
    usage: str


VERSION_1 = CgroupFiles(Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes")
VERSION_2 = CgroupFiles(Path("/sys/fs/cgroup"), "memory.max", "memory.current")
OWN = Path("/proc/self/cgroup")


def available_mib() -> int:
    """Of main memory: what the kernel says is available, or less where a cgroup of this process has a limit."""
    return min([psutil.virtual_memory().available, *_left_in_cgroups()]) // MIB


def _left_in_cgroups() -> Iterator[int]:
    for line in OWN.read_text("utf-8").splitlines() if OWN.exists() else ():
        _, controllers, path = line.split(":", 2)  # cgroups(7)
        if controllers and "memory" not in controllers.split(","):
            continue
        files = VERSION_1 if controllers else VERSION_2
        group = files.root / path.lstrip("/")
        for directory in {files.root, group, *(each for each in group.parents if each.is_relative_to(files.root))}:
            yield from _left_in(directory, files)


def _left_in(group: Path, files: CgroupFiles) -> Iterator[int]:
    """Bytes below its limit, if it has one; files that the kernel can drop do not count as used."""
    try:
        limit, used = (group / files.limit).read_text("ascii").strip(), int((group / files.usage).read_text("ascii"))
        lines = [line.split() for line in (group / "memory.stat").read_text("ascii").splitlines()]
    except (OSError, ValueError):
        return
    if limit.isdigit():
        yield max(0, int(limit) - used + sum(int(line[1]) for line in lines if line[0] == "inactive_file"))
