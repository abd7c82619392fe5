"""Every command and option of a program is in its manual page, and the page has no other.

`--help` is printed from the same table that parses the command line, so it is taken for the truth.
"""

import os
import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("REPLANT_BUILD", ROOT / "build"))
PROGRAMS = {"replant": ("cli", 1), "replant-agent": ("agent", 8), "replantd": ("center", 8),
            "replant-transition": ("transition", 8)}
# Of the program as a whole; --help doesn't list --help.
GENERAL = {"help", "version", "completion"}


def run(program, *args):
    path = BUILD / "src" / PROGRAMS[program][0] / program
    done = subprocess.run([path, *args], text=True, capture_output=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{program} {args}: {done.stderr}"
    return done.stdout


def page(program):
    return ROOT / "docs" / "man" / f"{program}.{PROGRAMS[program][1]}.scd"


def commands(program):
    text = run(program, "--help").partition("\nCommands:\n")[2].partition("\n\n")[0]
    names = {re.match(r"  ([a-z]+(?: [a-z]+)*)", line)[1] for line in text.splitlines()}
    assert names, "no commands in the help"
    return names


def help_options(program, command):
    text = run(program, *command.split(), "--help").partition("\nOptions:\n")[2]
    return set(re.findall(r"^  (?:-\w, |    )--([a-z][a-z-]*)", text, re.M)) - GENERAL


def man_options(text):
    return set(re.findall(r"\*--([a-z][a-z-]*)\*", text)) - GENERAL


def man_commands(text, program):
    """Commands with a paragraph or a heading of their own, and their text up to the next."""
    found = list(re.finditer(rf"^(?:## |\*){program} ([a-z]+(?: [a-z]+)*)", text, re.M))
    ends = [m.start() for m in found] + [len(text)]
    blocks = {}
    for m, end in zip(found, ends[1:]):
        blocks[m[1]] = re.split(r"^# ", text[m.start():end], flags=re.M)[0]
    return blocks


@pytest.fixture(params=PROGRAMS)
def program(request):
    if not (BUILD / "src" / PROGRAMS[request.param][0] / request.param).exists():
        pytest.skip(f"{request.param} isn't built")
    if not page(request.param).exists():
        pytest.skip(f"{request.param} has no manual page")
    return request.param


def test_commands_are_documented(program):
    text = page(program).read_text()
    for command in commands(program):
        assert re.search(rf"\*({program} )?{command}\*|^## ({program} )?{command}$", text, re.M), \
            f"'{program} {command}' isn't in {page(program).name}"


def test_documented_commands_exist(program):
    unknown = set(man_commands(page(program).read_text(), program)) - commands(program)
    assert not unknown, f"{page(program).name} has commands that '{program} --help' hasn't"


def test_options_are_documented(program):
    documented = man_options(page(program).read_text())
    for command in commands(program):
        missing = help_options(program, command) - documented
        assert not missing, f"options of '{program} {command}' that {page(program).name} lacks"


def test_documented_options_exist(program):
    text = page(program).read_text()
    everywhere = set().union(*(help_options(program, c) for c in commands(program)))
    # Other programs' options are written in italics or in examples.
    assert not man_options(text) - everywhere, f"{page(program).name} has options that no command has"


def test_options_stand_with_their_commands():
    """replant(1) has a paragraph per command: its options are all of the command's, but for those of many commands."""
    if not (BUILD / "src/cli/replant").exists():
        pytest.skip("replant isn't built")
    text = page("replant").read_text()
    blocks = man_commands(text, "replant")
    shared = man_options(text.partition("# OPTIONS OF EVERY COMMAND")[2].partition("\n# SOURCES")[0])
    assert set(blocks) == commands("replant")
    # The synopsis of a paragraph names options by their letters or in full.
    letters = {"q": "quiet", "y": "yes", "w": "watch", "o": "output", "f": "format", "n": "name", "r": "role", "t": "tag", "e": "event"}
    for command, block in blocks.items():
        own = man_options(block) | {letters[x] for x in re.findall(r"\*-([a-z])\*", block)}
        assert own - shared == help_options("replant", command) - shared, f"options of 'replant {command}'"


def test_every_command_has_an_example():
    if not (BUILD / "src/cli/replant").exists():
        pytest.skip("replant isn't built")
    for command in commands("replant"):
        text = run("replant", *command.split(), "--help")
        assert re.search(rf"^Examples?:\n  .*replant {command}", text, re.M), f"'{command} --help' has no example"


def test_synopsis_names_every_command_of_small_programs(program):
    if program == "replant":
        return
    synopsis = page(program).read_text().partition("# SYNOPSIS")[2].partition("\n# ")[0]
    for command in commands(program):
        assert re.search(rf"\*{command}\*|\*{program} {command}\*", synopsis), f"{command} isn't in the synopsis"


@pytest.mark.parametrize("source", sorted((ROOT / "docs/man").glob("*.scd")), ids=lambda p: p.name)
def test_pages_are_well_formed(source):
    if not shutil.which("scdoc"):
        pytest.skip("needs scdoc")
    done = subprocess.run(["scdoc"], stdin=source.open(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.search(rf'^\.TH "{source.name.split(".")[0]}" "{source.name.split(".")[1]}"', done.stdout, re.M)
    sections = re.findall(r"^\.SH (.*)$", done.stdout, re.M)
    assert sections[:2] == ["NAME", "SYNOPSIS"] and "EXIT STATUS" in sections
    assert {"EXAMPLE", "EXAMPLES"} & set(sections)
