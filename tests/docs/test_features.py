"""docs/features.md: what works is shown by tests that there are."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROWS = re.findall(r"^\| (\d+) \| ([^|]+) \| ([a-z ]+) \| ([^|]*) \|$", (ROOT / "docs" / "features.md").read_text(), re.M)


def test_each_row_is_there_once():
    assert [int(number) for number, *_ in ROWS] == list(range(1, len(ROWS) + 1)) and len(ROWS) == 120
    assert {state for _, _, state, _ in ROWS} <= {"works", "in part", "not yet", "not needed", "no counterpart"}


def test_the_named_tests_exist():
    there = set()
    for path in (ROOT / "tests").rglob("test_*"):
        if path.suffix in (".py", ".c"):
            there |= set(re.findall(r"\b(test_\w+)\(", path.read_text()))
    missing = {(number, name) for number, _, _, text in ROWS for name in re.findall(r"\btest_\w+", text) if name not in there}
    assert not missing
    shown = [number for number, _, state, text in ROWS if state == "works" and not re.search(r"\btest_\w+|`|on by default", text)]
    assert not shown, "these work, and nothing says how one knows"
