"""Recipes: every one composes at both sizes, says what it is, and trains on the embedded model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmreason.cli import main
from mmreason.config.compose import compose
from mmreason.config.schema import RunConfig
from mmreason.errors import ConfigError
from mmreason.recipes import TABLE, Recipe, as_table, recipe, recipes

ALL = [one.name for one in recipes()]
#: Recipes of `mmreason train` with a paper; the others are the project's own.
PAPERS = [one.name for one in recipes() if one.made_of]
ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", PAPERS)
@pytest.mark.parametrize("model", ["tiny", "qwen2_5_vl_3b"])
def test_composes(name: str, model: str) -> None:
    config = compose("train", [f"recipe={name}", f"model={model}"]).config
    assert config.source
    assert config.about.made_of
    assert config.about.deviations


@pytest.mark.parametrize("name", PAPERS)
def test_published_values_and_tiny_ones_are_what_the_recipe_says(name: str) -> None:
    runs = [compose("train", [f"recipe={name}", f"model={model}"]).plain for model in ("qwen2_5_vl_3b", "tiny")]
    for option, published, tiny in recipe(name).values:
        for plain, expected in zip(runs, (published, tiny), strict=True):
            value = plain
            for part in option.split("."):
                value = value[part]
            assert value == expected, option


def test_a_typed_option_wins_over_both_sizes() -> None:
    assert compose("train", ["recipe=papo", "rollout.group_size=3"]).config.rollout.group_size == 3


def test_the_page_of_all_recipes_is_that_of_the_files() -> None:
    """`mmreason recipe table` writes it."""
    assert (ROOT / TABLE).read_text(encoding="utf-8") == as_table(recipes())


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPERS)
def test_trains(name: str, tmp_path: Path) -> None:
    from mmreason.train.run import run_train

    words = [
        f"recipe={name}",
        f"out={tmp_path}",
        "name=run",
        "trainer.steps=3",
        "trainer.eval_rows=2",
        "trainer.num_threads=1",
        "rollout.prompts_per_step=2",
        "rollout.group_size=2",
        "rollout.max_new_tokens=24",
    ]
    composed = compose("train", words)
    summary = run_train(composed.config, composed.plain)
    assert summary["steps"] == 3
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(isinstance(line["loss"], float) for line in lines)
    assert not summary["rewards_failed"]
    assert (tmp_path / "run" / "report.html").is_file()


def test_split_groups_are_refused_for_trpa() -> None:
    with pytest.raises(ConfigError, match="cuts groups"):
        compose("train", ["recipe=trpa", "trainer.micro_batch_size=4"])


def test_commands(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["recipe", "list"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in ALL)
    assert main(["recipe", "show", "papo"]) == 0
    told = capsys.readouterr().out
    assert "arXiv 2507.06448" in told
    assert "1e-06" in told
    assert main(["recipe", "show", "pappo"]) == 2
    assert "Did you mean 'papo'" in capsys.readouterr().err
    assert main(["recipe", "table", "--out", str(tmp_path / "new" / "page.md")]) == 0
    assert (tmp_path / "new" / "page.md").read_text() == as_table(recipes())


def test_reading_a_file() -> None:
    text = "# @package _global_\n# What it is.\nsource: S\nrollout:\n  top_k: ${by_size:[1,2],null}\n  top_p: 0.5\n"
    found = Recipe.read("x", text)
    assert (found.summary, found.source) == ("What it is.", "S")
    assert found.values == (("rollout.top_k", [1, 2], None),)


def test_run_config_knows_what_recipes_say() -> None:
    assert set(RunConfig().about.model_dump()) == {"made_of", "deviations"}
