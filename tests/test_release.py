"""What a release rests on: the compiler check, the versions that are promised, the lists of files."""

import itertools
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CMAKE = shutil.which("cmake", path=f"{Path(sys.executable).parent}") or shutil.which("cmake")


@pytest.mark.skipif(CMAKE is None, reason="no cmake")
@pytest.mark.parametrize(
    ("compiler", "version", "message"),
    [
        ("GNU", "12.1.0", None),
        ("GNU", "11.4.0", "expected GNU >= 12, got 11.4.0"),
        ("Clang", "16.0.0", None),
        ("Clang", "15.0.7", "expected Clang >= 16, got 15.0.7"),
        ("AppleClang", "15.0.0", None),
        ("AppleClang", "14.0.3", "expected AppleClang >= 15, got 14.0.3"),
        ("MSVC", "19.44", "expected GCC >= 12 or Clang >= 16, got MSVC 19.44"),
        ("NVHPC", "24.1", "expected GCC >= 12 or Clang >= 16, got NVHPC 24.1"),
    ],
)
def test_the_compiler_is_checked_first(compiler, version, message):
    assert CMAKE is not None
    result = subprocess.run(
        [
            CMAKE,
            f"-DCMAKE_CXX_COMPILER_ID={compiler}",
            f"-DCMAKE_CXX_COMPILER_VERSION={version}",
            "-P",
            ROOT / "cmake/Compiler.cmake",
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    said = " ".join(result.stderr.split())
    assert (result.returncode == 0) == (message is None)
    if message is not None:
        assert message in said
    cmake_lists = (ROOT / "CMakeLists.txt").read_text()
    assert cmake_lists.index("include(cmake/Compiler.cmake)") < cmake_lists.index("add_library")


def test_the_versions_of_python_are_the_same_everywhere():
    lowest = re.search(r"\d\.(\d+)", PYPROJECT["project"]["requires-python"])
    named = re.findall(r":: 3\.(\d+)", "\n".join(PYPROJECT["project"]["classifiers"]))
    named = [int(minor) for minor in named]
    wheels = [int(re.match(r"cp3(\d+)-", w)[1]) for w in PYPROJECT["tool"]["cibuildwheel"]["build"]]
    assert named == wheels == list(range(int(lowest[1]), wheels[-1] + 1))
    versions = (ROOT / ".github/workflows/versions.yml").read_text()
    assert f'"3.{lowest[1]}"' in versions
    assert f'"3.{wheels[-1]}"' in versions


def test_lower_bounds_are_stated_and_hold_for_what_is_pinned():
    packaging = pytest.importorskip("packaging.requirements")
    pinned = dict(
        line.lower().split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    extras = PYPROJECT["project"]["optional-dependencies"]
    for text in itertools.chain(PYPROJECT["project"]["dependencies"], *extras.values()):
        requirement = packaging.Requirement(text)
        if requirement.name == "fubini":
            continue
        assert any(s.operator == ">=" for s in requirement.specifier), text
        assert requirement.specifier.contains(pinned[requirement.name.lower()]), text


def test_files_that_the_wheels_are_tested_with_exist():
    for name in PYPROJECT["tool"]["cibuildwheel"]["test-sources"]:
        assert (ROOT / name).exists(), name
