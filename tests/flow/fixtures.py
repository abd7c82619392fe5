"""What tests of the data plane are given, here and in tests/fault."""

import pytest

import agentrig
import streamrig


@pytest.fixture
def rig(tmp_path):
    r = streamrig.Rig(tmp_path)
    yield r
    r.close()


@pytest.fixture
def loops(tmp_path):
    found = agentrig.Loops(tmp_path)
    yield found
    found.close()
