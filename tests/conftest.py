"""`make check T=PATTERN`: the same pattern, a regular expression, picks unit tests by meson and all others here."""

import os
import re


def pytest_collection_modifyitems(config, items):
    pattern = os.environ.get("REPLANT_MATCH")
    if not pattern:
        return
    chosen = [item for item in items if re.search(pattern, item.nodeid)]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen
