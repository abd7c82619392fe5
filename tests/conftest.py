"""`make check T=PATTERN`: the same pattern, a regular expression, picks unit tests by meson and all others here. And what a
test that passed wrote is removed at once: together it would be tens of GB."""

import os
import re
import signal
import subprocess

import pytest

# Ignored in the background of a shell, and then by all that is started here.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config, items):
    pattern = os.environ.get("REPLANT_MATCH")
    if not pattern:
        return
    chosen = [item for item in items if re.search(pattern, item.nodeid)]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    outcome = yield
    item.went_wrong = getattr(item, "went_wrong", False) or outcome.get_result().failed


@pytest.fixture(autouse=True)
def tidy(request):
    yield
    path = request.node.funcargs.get("tmp_path")
    if path and not getattr(request.node, "went_wrong", False):
        # Never through a mount that a test left behind.
        subprocess.run(["rm", "-rf", "--one-file-system", path], check=False)
