"""What every test runs in: no network, a cache of its own, the same random numbers, no GPU tests without a GPU."""

import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # tests that import it before patchloom.data must not ask the network


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


def is_local(host: object) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(str(host)).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Only this machine answers: a test that would download fails, and says where it wanted to go."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not is_local(address[0]):
            raise PermissionError(f"a test may not open a connection to {address}")
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty PATCHLOOM_HOME: what the user has downloaded changes no result, and nothing is written beside it."""
    home = tmp_path_factory.mktemp("patchloom_home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATCHLOOM_HOME", str(home))
        yield home


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    torch.manual_seed(0)
