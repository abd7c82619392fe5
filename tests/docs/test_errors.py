"""docs/errors.md has every code that the sources can answer, and no other."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "errors.md").read_text()


def sources(*folders):
    return "\n".join(p.read_text() for folder in folders for p in sorted((ROOT / "src" / folder).glob("*.c")))


def in_sources(pattern, *folders):
    found = set(re.findall(pattern, sources(*folders), re.S))
    assert len(found) > 4, "the pattern finds nothing any more"
    return found


def section(title):
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_refusals():
    used = in_sources(r'\b(?:api_refuse|api_fault_set|fault_set)\(\s*[^,]+,\s*\d+,\s*"([a-z_]+)"', "api", "center")
    rows = re.findall(r"^\| ([a-z_]+) \| \d{3} \|", section("A request was refused"), re.M)
    assert len(rows) == len(set(rows)) and set(rows) == used


def test_failures_of_jobs():
    used = in_sources(r'\b(?:runner_fail|fail_err)\(\s*(?:f|&l->[a-z_]+),\s*(?:code \? code : )?"([a-z_]+)"', "center")
    agent = sources("agent").partition("json_t *task_error(")[2].partition("\n}\n")[0]
    used |= set(re.findall(r'\{-E[A-Z]+, "([a-z_]+)"', agent)) | set(re.findall(r'"code", "([a-z_]+)"', agent)) | {"send_failed"}
    wire = sources("wire").partition("frame_codes[")[2].partition("};")[0]
    used |= set(re.findall(r'= \{"([a-z_]+)"', wire))
    used |= set(re.findall(r'"code", "([a-z_]+)"', sources("center").partition("close_old_run(")[2].partition("\n}\n")[0]))
    titles = re.findall(r"^### ([a-z_]+)$", section("A job failed"), re.M)
    assert len(titles) == len(set(titles)) and set(titles) == used
    for title in titles:
        text = section("A job failed").partition(f"### {title}\n")[2].partition("\n### ")[0]
        assert text.startswith("* **Means**: "), title


def test_what_the_doctor_finds():
    doctor = (ROOT / "src/cli/cmd_doctor.c").read_text()
    for code in re.findall(r'\bfind\(&?d, "([a-z_]+)"', doctor):
        assert f"**{code}**" in section("What the doctor finds") or f"### {code}\n" in PAGE, code
