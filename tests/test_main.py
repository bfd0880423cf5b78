"""The command line, and the README's example and commands."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fubini
from fubini.__main__ import describe, main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)\n```$", README, flags=re.MULTILINE | re.DOTALL)


def test_description_of_the_build(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    info = fubini.build_info()
    for value in (info["version"], info["isa"], info["compiler"], str(info["threads"])):
        assert value in printed
    assert describe() in printed


def test_module_runs_as_a_program():
    result = subprocess.run(
        [sys.executable, "-m", "fubini"], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith(f"fubini {fubini.__version__}")
    assert result.stderr == ""


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["--version"]])
def test_help_and_version(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    assert "fubini" in capsys.readouterr().out


def test_demo_command(tmp_path, capsys):
    path = tmp_path / "curves.png"
    assert main(["demo", "--quick", "--only", "circuit", "--output", str(path)]) == 0
    assert path.exists()
    assert "QNG block-diag" in capsys.readouterr().out


def test_demo_command_says_what_is_wrong(tmp_path, capsys):
    assert main(["demo", "--quick", "--output", str(tmp_path / "no" / "x.png")]) == 2
    assert "output: expected a file in an existing folder" in capsys.readouterr().err


def test_version_is_the_one_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert fubini.__version__ == project["version"]


def test_readme_examples_print_what_they_say(capsys):
    example, energy = blocks("python")
    assert len([line for line in example.splitlines() if line.strip()]) <= 25
    before_and_after, hydrogen = blocks("text")[:2]
    expected = [line.split() for line in before_and_after.splitlines()[1:]]

    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert isinstance(names["opt"], fubini.QNGOptimizer)
    # Last digits can turn a rounding.
    assert said(capsys) == pytest.approx([float(row[-1]) for row in expected], abs=1.1e-3)
    exec(compile(energy, "README.md", "exec"), names)
    assert capsys.readouterr().out.strip() == hydrogen

    # The lines with a minus, which the lines with a plus replace.
    before, *lines = example, *blocks("diff")[0].splitlines()
    for old, new in zip(lines[::2], lines[1::2], strict=True):
        new = new[1:].split("  #")[0]
        assert before.count(new) == 1
        before = before.replace(new, old[1:])
    exec(compile(before, "README.md", "exec"), {})
    assert said(capsys) == pytest.approx([float(row[-2]) for row in expected], abs=1.1e-3)


def said(capsys):
    return [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]


def test_readme_shows_a_picture_that_is_there():
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).read_bytes()[:4] == b"\x89PNG"
    for link in re.findall(r"\]\(([^):#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_readme_commands_are_one_line_each():
    demo, test = blocks("sh")[:2]
    for command in (demo, test):
        assert "\n" not in command
        assert "-c constraints.txt" in command
    assert "'.[demo]'" in demo
    assert "-m fubini demo" in demo
    assert "'.[test]'" in test
    assert "-m pytest" in test


def test_constraints_pin_every_direct_dependency():
    pins = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.match(r"[\w.-]+", text).group().lower() for part in lists for text in part}
    assert names - {"fubini"} <= pins
