import sys
import pathlib

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "flow"))
import streamrig  # noqa: E402


@pytest.fixture
def rig(tmp_path):
    r = streamrig.Rig(tmp_path)
    yield r
    r.close()
