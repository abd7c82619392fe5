import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from harness import Center  # noqa: E402
from tests.postgres import Server, programs  # noqa: E402


# What rests most on the store is tested with both.
BOTH_STORES = {"test_every_write", "test_groups", "test_incremental", "test_instances", "test_jobs", "test_requests", "test_sweep"}
# Long, and about the provider.
ONE_STORE = {"test_trimming", "test_trimming_that_fails", "test_killed_in_the_hypervisor", "test_bad_settings", "test_bad_forwards"}


def pytest_generate_tests(metafunc):
    if "store" in metafunc.fixturenames and metafunc.module.__name__ in BOTH_STORES and \
            metafunc.function.__name__ not in ONE_STORE:
        metafunc.parametrize("store", ["sqlite", "postgres"], indirect=True, scope="module")


@pytest.fixture(scope="session")
def postgres():
    if not programs():
        pytest.skip("PostgreSQL is not installed")
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def store(request):
    """None, or what makes databases."""
    return request.getfixturevalue("postgres") if getattr(request, "param", "sqlite") == "postgres" else None


def new_center(folder, store, **env):
    return Center(folder, **env, **({"DATABASE": store.new_database()} if store else {}))


@pytest.fixture
def fresh(tmp_path, store):
    """A center of this test alone."""
    centers = []

    def make(**env):
        centers.append(new_center(tmp_path / f"center{len(centers)}", store, **env))
        return centers[-1]
    yield make
    for center in centers:
        if center.process.poll() is None:
            assert center.stop() == 0, center.tail()


@pytest.fixture(scope="module")
def center(tmp_path_factory, store):
    """One for all tests of a file that don't disturb each other."""
    c = new_center(tmp_path_factory.mktemp("center"), store)
    yield c
    assert c.stop() == 0, c.tail()
