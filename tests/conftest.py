"""What holds for every test."""

import gc
import os

import pytest
import torch
from hypothesis import HealthCheck, settings

# gRPC's threads go on in a forked child until that becomes another program, whose start has closed their files by then:
# it aborts. Nobody here uses gRPC in a child that stays this program.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")
gc.set_threshold(100_000, 20, 20)  # looking at what imports and exports make and keep takes a sixth of all time
torch.set_num_threads(1)  # servers and tests share few cores; OpenMP's spinning barriers would starve both


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Says what one process runs where several share the tests: a module, and all modules that use one server.

    A group that a test names itself stands.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(_group(item)))


def _group(item: pytest.Item) -> str:
    if "tests/server" not in item.nodeid:
        return item.nodeid.partition("::")[0]
    servers = [name for name in ("pipelines", "server") if name in getattr(item, "fixturenames", ())]
    if len(servers) > 1:
        raise pytest.UsageError(f"{item.nodeid} wants {' and '.join(servers)}; wanted: one, whose process it runs in")
    return servers[0] if servers else item.nodeid.partition("::")[0]
