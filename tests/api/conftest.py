import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from harness import Center  # noqa: E402


@pytest.fixture
def fresh(tmp_path):
    """A center of this test alone."""
    centers = []

    def make(**env):
        centers.append(Center(tmp_path / f"center{len(centers)}", **env))
        return centers[-1]
    yield make
    for center in centers:
        if center.process.poll() is None:
            assert center.stop() == 0, center.tail()


@pytest.fixture(scope="module")
def center(tmp_path_factory):
    """One for all tests of a file that don't disturb each other."""
    c = Center(tmp_path_factory.mktemp("center"))
    yield c
    assert c.stop() == 0, c.tail()
