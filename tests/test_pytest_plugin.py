"""`pytest --mmreason-plugin NAME`: tests of a plug-in package's rewards, run by a pytest of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGE = '''
from mmreason.reward_kit.examples import Example, add_examples
from mmreason.scoring import reward


@reward(range=(0.0, 1.0))
def named(answer, target):
    """The answer is the colour."""
    return float(answer == target["colour"]) if "colour" in target else None


@reward(range=(0.0, 1.0))
def mentioned(answer, target):
    """The colour occurs in the answer."""
    return float(target["colour"] in (answer or "")) if "colour" in target else None


for function in (named, mentioned):
    add_examples(
        function,
        Example("a colour", {"colour": "red"}, right=("red",), wrong=("blue", "car"), candidates=("red", "blue")),
    )
'''


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with an installed plug-in package, as pip lays it out."""
    (tmp_path / "paint_rewards.py").write_text(PACKAGE)
    info = tmp_path / "paint_rewards-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: paint_rewards\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[mmreason.rewards]\npaint_rewards = paint_rewards\n")
    return tmp_path


def run_pytest(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    empty = folder / "empty"
    empty.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pytest", "-p", "mmreason.pytest_plugin", "-p", "no:cacheprovider", *words]
    environment = os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200"}
    return subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, timeout=200)


def test_every_check_of_every_reward_of_the_package_is_a_test(package: Path) -> None:
    done = run_pytest(package, "--mmreason-plugin", "paint_rewards", "-rfs")
    assert done.returncode == 1, done.stderr
    assert "passed" in done.stdout.splitlines()[-1]
    failures = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert any("paint_rewards/mentioned::all_choices" in line for line in failures)
    assert not any("paint_rewards/named" in line for line in failures)
    assert "Listing every candidate is paid like knowing the answer." in done.stdout
    assert "it judges no boxes" in done.stdout
    assert "Traceback" not in done.stdout
    assert "pytest_plugin.py:" not in "".join(failures)


def test_one_reward_or_a_file_may_be_named(package: Path) -> None:
    file = package / "brief.py"
    file.write_text(
        "from mmreason.scoring import reward\n\n\n@reward()\ndef brief(completion):\n"
        "    return 1.0 - min(1.0, len(completion) / 999)\n"
    )
    asked = ("--mmreason-plugin", "paint_rewards/named", "--mmreason-plugin", str(file))
    done = run_pytest(package, *asked, "-v")
    assert done.returncode == 0, done.stdout
    assert "paint_rewards/named::all_choices PASSED" in done.stdout
    assert "brief::deterministic PASSED" in done.stdout
    assert "mentioned" not in done.stdout


def test_an_unknown_name_is_a_usage_error(package: Path) -> None:
    done = run_pytest(package, "--mmreason-plugin", "paint_reward")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--mmreason-plugin paint_reward: unknown reward 'paint_reward'" in done.stderr


def test_without_the_option_nothing_is_imported(package: Path) -> None:
    (package / "empty").mkdir()
    test = package / "empty" / "test_it.py"
    test.write_text("import sys\n\ndef test_it():\n    assert 'mmreason.scoring' not in sys.modules\n")
    done = run_pytest(package, str(test))
    assert done.returncode == 0, done.stdout


def test_pytest_finds_the_plugin_by_its_entry_point() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    # The name is the module's: so `-p mmreason.pytest_plugin` beside the entry point does not load it twice.
    assert project["entry-points"]["pytest11"] == {"mmreason.pytest_plugin": "mmreason.pytest_plugin"}
