"""Rewards of plug-in packages, `package/name`: on the command line, in sweeps, under `reward check`, in the pytest plug-in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from mmreason.config.compose import compose, compose_sweep, defaults_list
from mmreason.config.overrides import expand_sweep, parse, prepare, quote, swept_keys
from mmreason.errors import ConfigError
from mmreason.scoring import REWARDS, SHAPERS

PLUGIN = Path(__file__).parent / "plugin_example"
NAMED, BONUS = "colour_rewards/colour_named", "colour_rewards/colour_bonus"


@pytest.fixture(autouse=True)
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package, imported as its entry point would, for the length of a test."""
    for registry in (REWARDS, SHAPERS):
        registry.names()
        monkeypatch.setattr(registry, "_items", dict(registry._items))  # type: ignore[attr-defined]
    monkeypatch.syspath_prepend(str(PLUGIN))
    import colour_rewards  # type: ignore[import-not-found]  # noqa: F401

    yield
    del sys.modules["colour_rewards"]


@pytest.fixture
def installed(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command where the package is installed."""
    info = tmp_path / "colour_rewards-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: colour_rewards\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[mmreason.rewards]\ncolour_rewards = colour_rewards\n")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(PLUGIN)]), "COLUMNS": "200"}
        command = [sys.executable, "-m", *words]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200)

    return run


def refused(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose("train", list(words))
    return str(caught.value)


# The command line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([f"reward.{NAMED}.weight=0.5"], {"weight": 0.5}),
        ([f"++reward.{NAMED}.weight=0.5"], {"weight": 0.5}),
        ([f"reward.{NAMED}={{}}"], {}),
        ([f"reward.{NAMED}={{weight: 2, near_miss: 0.25}}"], {"weight": 2, "near_miss": 0.25}),
        ([f"reward.{NAMED}.weight=0.5", f"reward.{NAMED}.near_miss=0"], {"weight": 0.5, "near_miss": 0}),
        ([f"reward.{NAMED}.weight=0.5", f"reward.{NAMED}.weight=0.75"], {"weight": 0.75}),
        ([f"reward.{NAMED}.gate='iou > 0.5'"], {"gate": "iou > 0.5"}),
        ([f"reward.{NAMED}.gate=null"], {"gate": None}),
        ([f"reward.{NAMED}.schedule=[[0,1],[1,0.5]]"], {"schedule": [[0, 1], [1, 0.5]]}),
        ([f"reward.{NAMED}.weight=${{trainer.learning_rate}}", "trainer.learning_rate=0.5"], {"weight": 0.5}),
        ([f"reward.{NAMED}.weight=1", f"reward.{NAMED}=null"], None),
        ([f"reward.{NAMED}.weight=1", f"~reward.{NAMED}"], None),
    ],
)
def test_options_of_a_plugins_reward(words: list[str], expected: dict[str, Any] | None) -> None:
    composed = compose("train", words)
    assert composed.plain["reward"][NAMED] == expected
    assert composed.plain["reward"]["iou"] == compose("train").plain["reward"]["iou"]  # merged, nothing replaced
    assert composed.overrides == tuple(words)
    defaults_list("train", words)


def test_options_of_a_plugins_shaper() -> None:
    words = [f"reward.shapers.{BONUS}.bonus=0.25", "reward.iou.weight=2"]
    assert compose("train", words).plain["reward"]["shapers"] == {BONUS: {"bonus": 0.25}}
    assert compose("train", [f"reward.shapers.{BONUS}={{}}"]).plain["reward"]["shapers"] == {BONUS: {}}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("reward.colour_rewards/colour_nam.weight=1", f"Did you mean '{NAMED}'?"),
        ("reward.colour_reward/colour_named.weight=1", f"Did you mean '{NAMED}'?"),
        (f"reward.{NAMED}.near_mis=1", "reward.colour_rewards/colour_named.near_mis: no such option. Did you mean 'near_miss'"),
        (f"reward.{NAMED}.near_miss=7", "reward.colour_rewards/colour_named.near_miss=7"),
        (f"reward.{NAMED}.near_miss=", "reward.colour_rewards/colour_named.near_miss=''"),
        (f"reward.{NAMED}=1", "a reward takes options"),
        ("reward.shapers.colour_rewards/colour_bons.bonus=1", f"Did you mean '{BONUS}'?"),
        (f"reward.{NAMED}.weight=1,2", "several values are a sweep: add -m"),
        (f"~reward.{NAMED}.weight", f"only a whole reward can be taken out: ~reward.{NAMED}"),
        (f"reward.{NAMED}.weight", "expected key=value"),
        ("reward.a/b/c.weight=1", "not in Hydra's override grammar"),
        ("task.a/b=1", "not in Hydra's override grammar"),
        (f"reward.{NAMED}.gate='iou", "not in Hydra's override grammar"),
        ("rewards/iou=1", "there is no such config group. Did you mean 'reward"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_the_key_as_typed(word: str, expected: str) -> None:
    assert expected in refused(word)


def test_sweeps() -> None:
    words = [f"reward.{NAMED}.near_miss=0.25,0.5", "seed=0,1"]
    assert swept_keys(words) == [f"reward.{NAMED}.near_miss", "seed"]
    assert expand_sweep(words)[1] == [f"reward.{NAMED}.near_miss=0.25", "seed=1"]
    jobs = compose_sweep("train", words)
    found = [(job.composed.plain["reward"][NAMED]["near_miss"], job.composed.config.seed) for job in jobs]
    assert found == [(0.25, 0), (0.25, 1), (0.5, 0), (0.5, 1)]
    assert len({job.composed.run_dir for job in jobs}) == 4
    assert jobs[0].varied == (f"reward.{NAMED}.near_miss=0.25", "seed=0")


@given(st.text(), st.sampled_from(["reward.", "reward.shapers."]))
def test_any_quoted_text_is_the_value_that_was_meant(text: str, section: str) -> None:
    word = f"{section}some_package/name.option={quote(text)}"
    try:
        wanted = parse(word).value()
    except ValueError:  # Hydra's grammar has no way of writing this text
        return
    prepared = prepare([word], lambda group: [])
    assert not prepared.problems
    value = OverridesParser.create().parse_override(prepared.words[0]).value()
    nested = value["shapers"] if section == "reward.shapers." else value
    assert nested == {"some_package/name": {"option": wanted}}


def test_printed_configuration_of_an_installed_plugin(
    installed: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = installed("mmreason", "train", f"reward.{NAMED}.near_miss=0.25", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert f"  {NAMED}:\n    near_miss: 0.25\n" in done.stdout


# Its examples


def test_the_example_package_passes_the_check(installed: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = installed("mmreason", "reward", "check", NAMED)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all checks passed" in done.stdout
    assert "judges 2 of" in done.stdout


def test_the_example_package_under_pytest(installed: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = installed("pytest", "--mmreason-plugin", "colour_rewards", "-q", "-p", "no:cacheprovider", "-rs")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
    assert "it does not look at what is right" in done.stdout  # of colour_variety
