"""Recipes: every one composes at both sizes, says what it is, and trains on the embedded model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmreason.cli import main
from mmreason.config.compose import compose
from mmreason.config.curriculum import goal, phase_configs
from mmreason.config.schema import RunConfig
from mmreason.errors import ConfigError
from mmreason.recipes import TABLE, Recipe, as_table, recipe, recipes
from mmreason.stages import plan_chain
from mmreason.train.opening import check_rows
from mmreason.train.rows import RowFiles

ALL = [one.name for one in recipes()]
#: Recipes of `mmreason train` with a paper; the others are the project's own.
PAPERS = [one.name for one in recipes() if one.made_of]
#: Recipes of several commands -> what makes each of them short, besides the steps of its stages.
CHAINS = {
    "r1_onevision": ("sft.batch_size=4",),
    "sophia": ("collect.rows=8", "collect.correct_only=false", "sft.batch_size=4", "collect.min_pass_rate=0"),
    "visrl": ("collect.rows=8", "collect.chosen_min=0.25", "dpo.batch_size=2"),
    "vilasr": ("collect.rows=4", "collect.correct_only=false", "collect.revised_only=false", "sft.batch_size=4"),
}
SHORT = (
    "trainer.steps=3",
    "trainer.eval_rows=2",
    "trainer.num_threads=1",
    "rollout.prompts_per_step=2",
    "rollout.group_size=2",
)
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


#: What the papers and their released code say, written down apart from the recipes: option -> value.
_RL = {"rollout.group_size": 8, "trainer.learning_rate": 1e-6}
_FALLING = {"trainer.lr_schedule": "linear", "trainer.warmup_steps": 0}
_PAPO = {
    "objective.loss_type": "dapo", "objective.epsilon": 0.2, "objective.delta": 3.0, "objective.mask.probability": 0.6,
    "objective.mask.patch_px": 14, "objective.mask.gradient": False, "rollout.group_size": 5, "rollout.temperature": 1.0,
    "rollout.top_p": 0.99, "rollout.max_new_tokens": 2048, "trainer.learning_rate": 1e-6, "trainer.weight_decay": 0.01,
    "trainer.lr_schedule": "constant", "trainer.warmup_steps": 0, "reward.exact.weight": 0.9, "reward.format.weight": 0.1,
    "reward.format.tags": ["think", "boxed"], "model.min_pixels": 200704, "model.max_pixels": 1003520,
    "rollout.prompts_per_step": 128, "trainer.steps": round(2 * 38800 / 128), "trainer.max_grad_norm": 1.0,
    "model.freeze_vision": False,
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "papo": {
        **_PAPO, "objective.terms.perception_kl.coefficient": 0.02, "objective.beta": 0.01, "objective.epsilon_high": 0.3,
    },
    "papo_dapo": {
        **_PAPO, "objective.terms.perception_kl.coefficient": 0.01, "objective.terms.double_entropy.coefficient": 0.03,
        "objective.beta": 0.0, "objective.epsilon_high": 0.28, "rollout.refill_rounds": 20, "rollout.refill_by": "correct",
    },
    "vlm_r1_rec": {
        **_RL, **_FALLING, "objective.beta": 0.04, "rollout.temperature": 0.9, "reward.iou.weight": 1.0, "reward.format.weight": 1.0,
    },
    "vlm_r1_ovd": {**_RL, **_FALLING, "objective.beta": 0.0, "rollout.temperature": 0.9, "rollout.max_new_tokens": 2048},
    "vicrit": {
        "reward.format.tags": ["think", "boxed"],
        "reward.caption_critic.weight": 0.9, "reward.format.weight": 0.1, "objective.scale_rewards": "none", "objective.beta": 0.0,
    },
    "visionary_r1": {
        **_FALLING, "objective.beta": 0.04, "objective.beta_schedule": "cosine", "rollout.group_size": 8, "rollout.temperature": 0.9,
        "rollout.top_p": 0.9, "rollout.top_k": 50, "trainer.learning_rate": 5e-7, "reward.caption_sufficiency.weight": 0.1,
        "reward.exact.weight": 1.0, "reward.format.weight": 1.0, "reward.format.tags": ["info", "think", "answer"],
        "model.max_pixels": 2359296,
    },
    "univg_r1": {
        **_RL, **_FALLING, "objective.beta": 0.04, "rollout.temperature": 0.9, "rollout.max_new_tokens": 256,
        "model.freeze_vision": True, "objective.advantages.difficulty_weight.kind": "exp", "reward.iou.weight": 1.0,
        "reward.format.weight": 1.0, "model.max_pixels": 640000, "rollout.prompts_per_step": 16,
    },
    "rex_thinker": {
        **_RL, "objective.beta": 0.04, "rollout.temperature": 1.0, "rollout.max_new_tokens": 2048, "model.freeze_vision": True,
        "reward.box_set_f1.weight": 0.9, "reward.format.weight": 0.1,
    },
    "visualquality_r1": {
        **_FALLING, "objective.beta": 0.04, "rollout.group_size": 6, "rollout.prompts_per_step": 8, "rollout.temperature": 0.9,
        "rollout.max_new_tokens": 256, "trainer.learning_rate": 1e-6, "reward.thurstone_fidelity.weight": 1.0,
        "reward.format.weight": 1.0, "model.freeze_vision": False,
    },
    "deepperception": {
        **_FALLING, "objective.beta": 0.04, "rollout.group_size": 4, "rollout.max_new_tokens": 512, "trainer.learning_rate": 1e-6,
        "rollout.prompts_per_step": 4, "rollout.temperature": 0.9,
        "reward.iou_above.threshold": 0.8, "reward.format.weight": 0.5, "reward.json_schema.weight": 0.5,
    },
    "karl": {
        "objective.beta": 0.02, "rollout.group_size": 4, "rollout.prompts_per_step": 8, "rollout.max_new_tokens": 1500,
        "trainer.learning_rate": 5e-7, "reward.knowledge_iou.threshold": 0.65, "trainer.steps": 2 * 2000 // 8,
    },
    "timemaster": {
        "objective.loss_type": "dapo", "objective.beta": 0.01, "rollout.group_size": 5, "rollout.max_new_tokens": 1024,
        "trainer.learning_rate": 1e-6, "reward.exact.weight": 0.9, "reward.format.weight": 0.1,
        "reward.extension_bonus.weight": 0.5, "reward.format.tags": ["think", "class", "extension"],
    },
    "infi_mmr": {"reward.exact.weight": 0.9, "reward.format.weight": 0.1},
    "r1_onevision": {
        **_RL, "objective.beta": 0.04, "reward.exact.weight": 1.0, "reward.format.weight": 1.0,
        "trainer.steps": 10000 // 16,
    },
    "sophia": {
        "rollout.prompts_per_step": 64, "rollout.group_size": 8, "trainer.learning_rate": 5e-7, "model.freeze_vision": True,
    },
    "visrl": {
        "dpo.beta": 0.1, "dpo.batch_size": 24, "trainer.learning_rate": 5e-6, "trainer.lr_schedule": "cosine",
        "rollout.temperature": 2.0, "collect.samples_per_row": 6, "collect.chosen_min": 0.8, "collect.rejected_max": 0.2,
    },
    "laser_d": {
        **_RL, "objective.beta": 0.001, "objective.epsilon_high": 0.28, "rollout.temperature": 0.6, "rollout.max_new_tokens": 16384,
        "reward.laser_d_adaptive.target_tokens": 4096, "reward.laser_d_adaptive.every_steps": 20,
    },
    "autothink": {**_RL, "objective.beta": 0.0, "rollout.temperature": 0.6, "rollout.max_new_tokens": 8192},
    "noisy_reward": {
        "reward.shapers.flip.share": 0.4, "rollout.group_size": 4, "rollout.max_new_tokens": 4096, "trainer.learning_rate": 1e-6,
        "objective.beta": 0.0,
    },
    "trpa": {
        "objective.loss_type": "trpa", "objective.trpa.beta": 0.1, "objective.trpa.winner_factor": 2.5,
        "objective.trpa.kl_coefficient": 0.001, "rollout.group_size": 16, "rollout.prompts_per_step": 4, "rollout.temperature": 1.0,
        "rollout.max_new_tokens": 4096, "trainer.learning_rate": 4e-7,
    },
    "deepeyes": {
        "rollout.group_size": 16, "rollout.max_new_tokens": 20480, "trainer.learning_rate": 1e-6, "objective.beta": 0.0,
        "agent.max_turns": 5, "agent.max_turn_tokens": 10240, "agent.max_observation_tokens": 20480,
        "reward.conditional_bonus.weight": 1.0, "reward.conditional_bonus.bonus": 1.2,
    },
    "mini_o3": {
        "rollout.group_size": 16, "objective.beta": 0.0, "objective.epsilon": 0.2, "objective.epsilon_high": 0.3,
        "agent.max_turns": 6, "agent.max_pictures": 12, "agent.over_budget": "leave_out", "agent.force_answer": False,
        "agent.picture_max_pixels": 2_000_000, "reward.exact.weight": 1.0,
    },
    "pixel_reasoner": {
        "rollout.group_size": 8, "objective.beta": 0.0, "rollout.temperature": 1.0, "agent.max_pictures": 16,
        "reward.curiosity.wanted_rate": 0.3, "reward.curiosity.bonus": 0.25, "reward.curiosity.call_cost": 0.05,
    },
    "visrl_tools": {"agent.max_calls": 1},
    "v_toolrl": {
        "rollout.group_size": 8, "rollout.max_new_tokens": 2048, "agent.max_turns": 6, "agent.max_pictures": 6,
        "reward.numeric.weight": 1.0, "reward.turn_format.weight": 0.0,
    },
    "vrag": {
        "rollout.group_size": 5, "rollout.prompts_per_step": 32, "trainer.learning_rate": 1e-6, "objective.beta": 0.01,
        "agent.max_turns": 5,
    },
    # Its paper gives no numbers.
    "artist": {},
    "mem1": {"agent.keep_turns": 1},
    "vilasr": {
        **_RL, "rollout.prompts_per_step": 32, "rollout.max_new_tokens": 13312, "rollout.temperature": 1.0, "objective.beta": 0.0,
        "agent.max_turns": 20, "agent.max_pictures": 26, "agent.max_turn_tokens": 1024, "agent.picture_max_pixels": 200704,
        "reward.gated_format.accuracy_weight": 0.5, "reward.gated_format.form_weight": 0.5,
    },
}  # fmt: skip
#: The same for what single stages set.
PUBLISHED_STAGES: dict[str, dict[str, dict[str, Any]]] = {
    "sophia": {
        "answers": {"collect.samples_per_row": 8, "collect.prefer": "shortest"},
        "learn": {
            "trainer.learning_rate": 2e-5, "trainer.lr_schedule": "cosine", "trainer.weight_decay": 0.05, "sft.batch_size": 512,
        },
        "medium": {"collect.min_pass_rate": 0.4, "collect.max_pass_rate": 0.6},
    },
    "r1_onevision": {"cold": {"trainer.learning_rate": 1e-5, "sft.batch_size": 128}},
    "vilasr": {
        "cold": {"trainer.learning_rate": 1e-5, "model.freeze_vision": True},
        "reflect": {"collect.revised_only": True, "collect.correct_only": True},
        "learn": {"trainer.learning_rate": 1e-5, "model.freeze_vision": True},
        "rl": {"trainer.learning_rate": 1e-6, "model.freeze_vision": False},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PAPERS)
def test_values_for_real_models_are_the_published_ones(name: str) -> None:
    chain = compose("train", [f"recipe={name}", "model=qwen2_5_vl_3b"])
    runs = [(chain.plain, PUBLISHED[name])]
    stages = {one.stage.name: one.composed.plain for one in plan_chain(chain)} if name in PUBLISHED_STAGES else {}
    runs += [(stages[stage], options) for stage, options in PUBLISHED_STAGES.get(name, {}).items()]
    for plain, options in runs:
        for option, published in options.items():
            value: Any = plain
            for part in option.split("."):
                value = value[part]
            assert value == published, option


def test_phases_are_the_published_ones() -> None:
    phases = compose("train", ["recipe=autothink", "model=qwen2_5_vl_3b"]).config.curriculum.phases
    assert [phase.set.get("reward.autothink.stage", 1) for phase in phases] == [1, 2, 3]
    assert [phase.set.get("rollout.max_new_tokens", 8192) for phase in phases] == [8192, 16384, 24576]
    phases = compose("train", ["recipe=infi_mmr"]).config.curriculum.phases
    assert [phase.name for phase in phases] == ["text", "captioned", "free"]
    assert phases[1].set == {"task.caption": True}


@pytest.fixture(scope="module")
def own_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of four questions about a picture, with text answers, boxes and captions."""
    folder = tmp_path_factory.mktemp("own")
    Image.new("RGB", (64, 64), "navy").save(folder / "a.png")
    row = {
        "question": "<image>What is it?",
        "image": "a.png",
        "caption": "All blue.",
        "completion": "<answer>blue</answer>",
    }
    rows = [row | {"id": str(n), "target": {"answer": "blue", "boxes": [[1, 2, 30, 40]]}} for n in range(4)]
    (folder / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "mine.jsonl"


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("tiny_vlm", "tiny_tools")])
@pytest.mark.parametrize("model", ["tiny", "qwen2_5_vl_3b"])
def test_takes_rows_of_your_own(name: str, model: str, own_rows: Path) -> None:
    composed = compose("train", [f"recipe={name}", f"model={model}", f"data={own_rows}"], check_files=True)
    if not composed.config.stages:
        last = goal(composed.config)
        assert last.data.path == str(own_rows)
        check_rows(composed.config, RowFiles())
        return
    stages = {one.stage.name: one.composed.config for one in plan_chain(composed)}
    assert str(own_rows) in {config.data.path for config in stages.values()}
    for config in stages.values():
        assert config.data.path is None or not config.sft.phases
        assert config.collect.first_row == 0, "a file may have no rows beyond those of the first round"


def test_what_recipes_make_of_rows_of_your_own(own_rows: Path) -> None:
    phases = phase_configs(compose("train", ["recipe=infi_mmr", f"data={own_rows}"]).config)
    assert [(one.data.path is None, one.data.caption_column) for one in phases] == [
        (True, None), (False, "caption"), (False, None),
    ]  # fmt: skip
    assert phases[0].task.name == "random_calculation"
    chain = compose("train", ["recipe=r1_onevision", f"data={own_rows}"])
    cold, rl = (one.composed.config for one in plan_chain(chain))
    assert (cold.data.path, rl.data.path) == (None, str(own_rows))
    assert len(cold.sft.phases) == 1
    chain = compose("train", ["recipe=r1_onevision", f"data={own_rows}", "sft.phases=[]"])
    assert {one.composed.config.data.path for one in plan_chain(chain)} == {str(own_rows)}


def test_a_file_that_no_stage_would_read_is_refused(own_rows: Path) -> None:
    chain = compose("train", ["recipe=tiny_tools", f"data={own_rows}"])
    with pytest.raises(ConfigError, match="every stage of this recipe learns from generated traces"):
        plan_chain(chain)


#: The perception recipes, whose lengths and batches are the recipe's own or said to differ.
PERCEPTION = (
    "vlm_r1_rec", "vlm_r1_ovd", "papo", "papo_dapo", "vicrit", "visionary_r1", "univg_r1", "rex_thinker", "visualquality_r1",
    "deepperception", "karl", "timemaster", "infi_mmr", "r1_onevision", "sophia", "visrl", "laser_d", "autothink", "noisy_reward", "trpa",
)  # fmt: skip


@pytest.mark.parametrize("name", PERCEPTION)
def test_says_how_long_it_trains(name: str) -> None:
    """Not left to `conf/trainer`, and told beside what was published."""
    one = recipe(name)
    assert "trainer.steps" in [option for option, _, _ in one.values]
    assert any(
        word in text for text in one.deviations for word in ("steps", "lengths of the phases", "phases end by step")
    )


def test_a_typed_option_wins_over_both_sizes() -> None:
    assert compose("train", ["recipe=papo", "rollout.group_size=3"]).config.rollout.group_size == 3


def test_the_page_of_all_recipes_is_that_of_the_files() -> None:
    """`mmreason recipe table` writes it."""
    assert (ROOT / TABLE).read_text(encoding="utf-8") == as_table(recipes())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PAPERS if name not in CHAINS])
def test_trains(name: str, tmp_path: Path) -> None:
    from mmreason.train.run import run_train

    # A call and what it shows take more room than an answer at once.
    room = 400 if compose("train", [f"recipe={name}"]).config.agent.enabled else 24
    words = [f"recipe={name}", f"out={tmp_path}", "name=run", *SHORT[1:], f"rollout.max_new_tokens={room}"]
    plain = compose("train", words).plain
    plain["trainer"]["steps"] = 3
    for number, phase in enumerate(plain["curriculum"]["phases"][:-1], start=1):
        phase["until_step"] = number
    summary = run_train(RunConfig.model_validate(plain), plain)
    assert summary["steps"] == 3
    assert not summary["rewards_failed"]
    lines = assert_three_steps(tmp_path / "run")
    if room > 24:
        assert max(line["tools/call_rate"] for line in lines) > 0, "no tool was called"


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAINS)
def test_chain_trains(name: str, tmp_path: Path) -> None:
    words = [
        "train",
        f"recipe={name}",
        f"out={tmp_path}",
        "name=run",
        *SHORT[1:],
        *CHAINS[name],
        three_steps_each(name),
    ]
    assert main(words) == 0
    stages = compose("train", words[1:]).config.stages
    folders = sorted(path for path in (tmp_path / "run").iterdir() if path.name[0].isdigit())
    assert [folder.name.partition("-")[2] for folder in folders] == [stage.name for stage in stages]
    for folder, stage in zip(folders, stages, strict=True):
        if stage.command not in ("collect", "eval"):
            assert_three_steps(folder)
    assert (tmp_path / "run" / "final" / "config.json").is_file()


def three_steps_each(name: str) -> str:
    """The stages of a chain as a typed option, three optimizer steps in each that trains."""
    stages = compose("train", [f"recipe={name}"]).plain["stages"]
    for stage in stages:
        if "sft.phases" in stage["set"]:
            stage["set"]["sft.phases"][0]["steps"] = 3
        elif stage["command"] in ("train", "sft", "dpo"):
            stage["set"]["trainer.steps"] = 3
    return f"stages={as_typed(stages)}"


def as_typed(value: Any) -> str:
    """A value as the command line takes it: like JSON, but with bare keys."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {as_typed(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(as_typed, value))}]"
    return json.dumps(value)


def assert_three_steps(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(isinstance(line["loss"], float) for line in lines)
    return lines


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


@pytest.mark.parametrize("name", CHAINS)
def test_later_stages_keep_the_size_of_the_first(name: str) -> None:
    """A stage starts from a folder, whose name says nothing about its size."""
    chain = compose("train", [f"recipe={name}"])
    for one in plan_chain(chain):
        assert one.composed.config.rollout.max_new_tokens == chain.config.rollout.max_new_tokens <= 800
        assert one.composed.config.trainer.learning_rate >= 1e-5
    real = compose("train", [f"recipe={name}", "model=qwen2_5_vl_3b"])
    for one in plan_chain(real):
        assert one.composed.config.rollout.max_new_tokens >= 512


def test_a_folder_takes_the_size_that_is_asked_for() -> None:
    for size, expected in (("auto", 2048), ("tiny", 96), ("published", 2048)):
        words = ["recipe=papo", "model.name=some/hub_id", f"size={size}"]
        assert compose("train", words).config.rollout.max_new_tokens == expected
