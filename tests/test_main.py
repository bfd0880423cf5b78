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


def test_readme_example_runs():
    example = blocks("python")[0]
    assert len([line for line in example.splitlines() if line.strip()]) <= 15
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert isinstance(names["opt"], fubini.QNGOptimizer)


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
