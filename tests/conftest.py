"""What holds for every test."""

import pytest
import torch

torch.set_num_threads(1)  # servers and tests share few cores; OpenMP's spinning barriers would starve both


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Says what one process runs where several share the tests: a module, and all modules that use one server.

    A group that a test names itself stands.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is not None:
            continue
        servers = [name for name in ("pipelines", "server") if name in getattr(item, "fixturenames", ())]
        shared = servers[0] if servers and "tests/server" in item.nodeid else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(shared))
