"""Hydra composition and the strict schema: what is accepted, what is refused, and how a refusal reads."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mmreason
import mmreason.conf
import mmreason.data
import mmreason.rewards
import mmreason.tools
from mmreason.config import explain
from mmreason.config.command_line import config_groups
from mmreason.config.compose import (
    MAX_NAME_CHARS,
    compose,
    compose_sweep,
    defaults_list,
    distinct_names,
    load,
    to_yaml,
)
from mmreason.config.overrides import expand_sweep, model_words, parse, quote
from mmreason.config.schema import RunConfig
from mmreason.errors import ConfigError

CONF = Path(str(mmreason.conf.__file__)).parent
CHOICES = [(group, choice) for group, choices in config_groups().items() for choice in choices]


def refused(*words: str, command: str = "train", **settings: object) -> str:
    """The message with which these words are refused."""
    with pytest.raises(ConfigError) as caught:
        compose(command, list(words), **settings)  # type: ignore[arg-type]
    return str(caught.value)


# --- what composes


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=[f"{group}={choice}" for group, choice in CHOICES])
def test_every_choice_of_every_group_composes(group: str, choice: str) -> None:
    command = "sft" if group == "recipe" and choice.startswith("tiny_vlm") else "train"
    words = [f"{group}={choice}"] + (["model.name=a/b"] if choice == "custom" else [])
    words += ["reward=null", "reward.iou.weight=1"] if group == "reward" and choice == "null" else []
    needed = {"local": ["judge.model=a/b"], "endpoint": ["judge.model=m", "judge.url=https://host/v1"]}
    words += needed.get(choice, []) if group == "judge" else []
    words += ["reward.correct='iou > 0.5'"] if (group, choice) == ("objective", "trpa") else []
    composed = compose(command, words)
    assert composed.choices[group] == choice
    assert composed.config.command == command


@pytest.mark.parametrize("command", ["train", "eval"])
def test_commands_compose_without_words(command: str) -> None:
    composed = compose(command)
    assert composed.config.model.name == "tiny"
    assert composed.choices["trainer"] == "cpu_tiny"
    assert composed.config.command == command


def test_task_on_the_command_line_picks_the_rewards_that_fit() -> None:
    assert "iou" in compose("train").config.reward.active()
    qa = compose("train", ["task=scene_qa"]).config.reward.active()
    assert "exact" in qa
    assert "iou" not in qa
    assert set(compose("train", ["recipe=scene_qa"]).config.reward.active()) == set(qa)
    mixed = compose("train", ["task=scene_qa", "reward=grounding"]).config.reward.active()
    assert "iou" in mixed


def test_model_picks_trainer_and_rollout_and_the_command_line_wins() -> None:
    real = compose("train", ["model=qwen2_5_vl_3b"])
    assert (real.choices["trainer"], real.choices["rollout"]) == ("gpu", "default")
    assert real.config.model.instruction.count("{box_hint}") == 1
    chosen = compose("train", ["model=qwen2_5_vl_3b", "trainer=cpu_tiny", "trainer.steps=7"])
    assert chosen.choices["trainer"] == "cpu_tiny"
    assert chosen.config.trainer.steps == 7


def test_command_line_wins_over_recipe_and_smoke_over_both_groups() -> None:
    composed = compose("train", ["recipe=scene_qa", "task=grounding", "debug=smoke", "trainer=gpu"])
    assert composed.config.task.name == "grounding"
    assert composed.config.trainer.steps == 2
    assert composed.config.trainer.warmup_steps == 0
    assert compose("train", ["debug=smoke", "trainer.steps=3"]).config.trainer.steps == 3


def test_smoke_shrinks_supervised_training_too() -> None:
    phased = compose("sft", ["recipe=tiny_vlm", "debug=smoke"]).config
    assert (phased.total_steps, phased.sft.batch_size, len(phased.sft.phases)) == (2, 2, 1)
    assert compose("sft", ["debug=smoke"]).config.total_steps == 2
    rows = compose("sft", ["data=rows.jsonl", "debug=smoke"]).config
    assert (rows.total_steps, rows.sft.phases) == (2, ())
    # Phases count for `sft` only.
    assert compose("train", ["debug=smoke", "trainer.steps=50"]).config.total_steps == 50


def test_sft_refuses_what_it_would_ignore_and_wrong_mixtures() -> None:
    assert "both given" in refused("recipe=tiny_vlm", "data=rows.jsonl", command="sft")
    assert (
        compose(
            "sft", ["recipe=tiny_vlm", "data=rows.jsonl", "sft.phases=[]", "trainer.warmup_steps=0"]
        ).config.sft.phases
        == ()
    )
    assert "trainer.steps: the steps of sft.phases count" in refused(
        "recipe=tiny_vlm", "trainer.steps=9", command="sft"
    )
    wrong = "sft.phases=[{steps: 2, mixture: {grounding/direkt: 1}}]"
    assert "direkt" in refused(wrong, command="sft")


def test_wrong_mixtures_are_refused_without_torch() -> None:
    code = (
        "import sys\nfrom mmreason.cli import main\n"
        "code = main(['sft', 'sft.phases=[{steps: 2, mixture: {grounding/direkt: 1}}]'])\n"
        "print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "2 False"


def test_rewards_are_added_weighted_and_dropped_without_a_plus() -> None:
    composed = compose("train", ["reward.exact.weight=0.5", "reward.format=null", "reward.iou.weight=2"])
    assert composed.config.reward.weights() == {"iou": 2.0, "exact": 0.5}


def test_run_folder_comes_from_the_name_only() -> None:
    first, second = compose("train", ["seed=3", "out=/x"]), compose("train", ["out=/x", "seed=3"])
    assert first.run_dir == second.run_dir == Path("/x/quickstart-tiny-grounding-seed3")
    assert compose("train", ["name=mine"]).run_dir == Path("runs/mine")
    assert compose("train", ["task=scene_qa"]).config.name != compose("train").config.name
    assert compose("train", ["debug=smoke"]).config.name != compose("train").config.name
    assert compose("train", ["model=Qwen/Qwen3-VL-8B-Instruct"]).config.name.startswith(
        "quickstart-Qwen3-VL-8B-Instruct"
    )


def test_defaults_list_names_the_files_in_merge_order() -> None:
    files = [file for file, _ in defaults_list("train", ["task=scene_qa"])]
    assert files[0] == "schema"
    assert "reward/scene_qa" in files
    assert files.index("recipe/quickstart") > files.index("trainer/cpu_tiny")


def test_nothing_is_written_and_the_folder_does_not_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    compose("train")
    assert Path.cwd() == tmp_path
    assert list(tmp_path.iterdir()) == []


# --- short forms


def test_data_file_in_short_form(tmp_path: Path) -> None:
    awkward = str(tmp_path / "it's my, file (1)=x.jsonl")
    assert compose("train", [f"data={awkward}"]).config.data.path == awkward
    assert compose("train", ["data='my file.jsonl'"]).config.data.path == "my file.jsonl"
    assert compose("train", ["data=null"]).config.data.path is None
    assert compose("train", ["data=refs.jsonl"]).config.name == "quickstart-tiny-refs-seed0"


@pytest.mark.parametrize(
    ("hub_id", "group"),
    [
        ("Qwen/Qwen2-VL-7B-Instruct", "qwen2_vl_2b"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2_5_vl_7b"),
        ("me/qwen2_5_vl_3b_tuned", "qwen2_5_vl_3b"),
        ("Qwen/Qwen3-VL-30B-A3B-Instruct", "qwen3_vl_4b"),
        ("org/other-model", "custom"),
    ],
)
def test_hub_id_in_short_form_picks_the_family(hub_id: str, group: str) -> None:
    composed = compose("train", [f"model={hub_id}"])
    assert composed.choices["model"] == group
    assert composed.config.model.name == hub_id


def write_folder(folder: Path, model_type: str, hidden_size: int) -> Path:
    folder.mkdir(parents=True)
    facts = {"model_type": model_type, "text_config": {"hidden_size": hidden_size}}
    (folder / "config.json").write_text(json.dumps(facts))
    return folder


def test_model_folder_picks_the_family_from_its_config(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", "qwen3_vl", 2048)
    composed = compose("train", [f"model={folder}"])
    assert composed.choices["model"] == "qwen3_vl_4b"
    assert composed.config.model.name == str(folder)
    assert model_words(str(write_folder(tmp_path / "t", "qwen2_5_vl", 128)))[0] == "model=tiny"
    assert model_words(str(write_folder(tmp_path / "o", "llava", 128)))[0] == "model=custom"


@pytest.mark.parametrize("place", ["final", "checkpoint-5", ""])
def test_checkpoint_of_a_run_keeps_its_pixel_budget_and_instruction(tmp_path: Path, place: str) -> None:
    run = tmp_path / "quick"
    for name in ("final", "checkpoint-5"):
        write_folder(run / name, "qwen2_5_vl", 128)
    saved = compose("train", ["model.max_pixels=100352", "model.instruction=' Say it.'"])
    (run / "config.yaml").write_text(saved.yaml())
    again = compose("eval", ["model.min_pixels=784", f"model={run / place}"]).config
    assert again.model.name == str(run / (place or "final"))
    assert again.model.max_pixels == 100352
    assert again.model.instruction == " Say it."
    compared = compose("eval", ["model=tiny", f"eval.compare={run / place}"]).config.eval.compare
    assert compared == str(run / (place or "final"))
    # What the user sets by its full name wins, also when it stands before the short form.
    assert again.model.min_pixels == 784
    assert again.name == f"eval-quick{'-checkpoint-5' if place == 'checkpoint-5' else ''}-grounding-seed0"


QUOTABLE = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=30).filter(
    lambda text: "${" not in text and text != "null"
)


@given(QUOTABLE)
@settings(max_examples=150, deadline=None)
def test_quoted_words_come_back_as_typed(text: str) -> None:
    assert parse(f"data.path={quote(text)}").value() == text


# --- refusals


@pytest.mark.parametrize(
    ("word", "fragments"),
    [
        ("trainer.lr=1e-3", ["trainer.lr", "unknown option", "Did you mean 'trainer.learning_rate'?"]),
        ("+trainer.lrr=1", ["trainer.lrr", "unknown option", "Did you mean 'trainer.learning_rate'?"]),
        ("++num_generations=4", ["Did you mean 'rollout.group_size'?"]),
        ("trianer.steps=3", ["trianer", "Did you mean 'trainer'?"]),
        ("rollout.group_size=-3", ["rollout.group_size=-3", "a whole number ≥ 2", "completions per prompt"]),
        ("rollout.group_size=8.5", ["rollout.group_size=8.5", "a whole number"]),
        ("rollout.temperature=0", ["rollout.temperature=0", "a number > 0"]),
        ("rollout.top_p=1.5", ["a number > 0 and ≤ 1"]),
        ("trainer.learning_rate=nan", ["trainer.learning_rate=nan"]),
        ("objective.loss_type=gpro", ["one of: grpo, dr_grpo", "Did you mean 'grpo'?"]),
        ("model.freeze_vision=perhaps", ["model.freeze_vision=perhaps", "true or false"]),
        ("model.lora=8", ["model.lora=8", "this is a section", "model.lora.rank"]),
        ("trainer.report_to=wandb", ["trainer.report_to=wandb", "a list"]),
        ("trainer.micro_batch_size=7", ["trainer.micro_batch_size=7 does not divide"]),
        ("trainer.warmup_steps=1000000", ["trainer.warmup_steps=1000000 exceeds the run's 40 steps"]),
        ("objective.epsilon_high=0.01", ["objective.epsilon_high is below objective.epsilon"]),
        ("model.min_pixels=99999999", ["model.min_pixels=99999999 is above model.max_pixels"]),
        ("name=../../etc", ["name=../../etc"]),
        ("objective=grp", ["objective=grp: no such choice", "Did you mean 'grpo'?", "dr_grpo"]),
        ("model=qwen2_5_vl_3", ["model=qwen2_5_vl_3", "Did you mean 'qwen2_5_vl_3b'?", "hub id"]),
        ("trainer/optim=adam", ["trainer/optim"]),
        ("trainer.steps", ["trainer.steps: expected key=value"]),
        ("trainer.steps=1,2", ["trainer.steps=1,2", "add -m"]),
        ("model.instruction=say {", ["model.instruction=say {", "quote it"]),
        ("name=${nothing}", ["nothing"]),
        ("hydra.run.dir=x", ["hydra.run.dir=x", "hydra.searchpath"]),
        ("command=eval", ["command", "mmreason train"]),
        ("~trainer.stepz", ["trainer.stepz"]),
        ("task.objectz=3", ["task.objectz", "Did you mean 'objects'?"]),
        ("task=groundin", ["Did you mean 'grounding'?", "task.name=PACKAGE/NAME"]),
        ("task.name=groundin", ["groundin", "grounding"]),
        ("reward.iuo.weight=1", ["reward.iuo", "iou"]),
        ("reward.iou=1", ["reward.iou=1", "reward.iou.weight=1"]),
        ("reward.iou.treshold=1", ["reward.iou.treshold"]),
        ("model=custom", ["model.name"]),
    ],
)
def test_refusals_name_the_key_the_value_and_the_way_out(word: str, fragments: list[str]) -> None:
    message = refused(word)
    for fragment in fragments:
        assert fragment in message
    assert "--options" in message


def test_all_problems_are_listed_at_once() -> None:
    message = refused("trainer.lr=1", "rollout.group_size=1", "objective=nope", "a b", "task.foo=1", "seed=x")
    for fragment in ("trainer.lr", "rollout.group_size=1", "objective=nope", "a b", "task.foo", "seed=x"):
        assert fragment in message
    assert message.count("\n  - ") == 6


def test_training_needs_a_reward_and_supervision_needs_rows() -> None:
    assert "nothing to learn" in refused("reward.iou=null", "reward.format=null")
    assert "nothing to train on" in refused(command="sft")
    assert compose("sft", ["data=x.jsonl"]).config.data.path == "x.jsonl"
    assert compose("eval", ["reward.iou.weight=0", "reward.format=null"]).config.reward.weights() == {"iou": 0.0}


def test_files_that_are_not_there_are_named_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    message = refused(
        f"data={tmp_path}/row.jsonl",
        "resume=/no/checkpoint",
        "data.image_root=/no/images",
        "model=./no_model",
        check_files=True,
    )
    for fragment in ("Did you mean 'rows.jsonl'?", "/no/checkpoint", "/no/images", "./no_model"):
        assert fragment in message
    compose("train", [f"data={tmp_path}/rows.jsonl", "resume=auto", "model=org/name"], check_files=True)


def test_a_refusal_imports_no_torch() -> None:
    code = (
        "import sys; from mmreason.cli import main; code = main(sys.argv[1:]); "
        "print(code, sorted({'torch', 'transformers', 'trl'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, "train", "+trainer.lrr=1", "rollout.group_size=-3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 []"
    assert "Traceback" not in done.stderr
    assert "trainer.learning_rate" in done.stderr
    assert "rollout.group_size=-3" in done.stderr


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("trainer.lr", "trainer.learning_rate"),
        ("learning_rate", "trainer.learning_rate"),
        ("trainer.learnin_rate", "trainer.learning_rate"),
        ("rollout.max_tokens", "rollout.max_new_tokens"),
        ("model.lora.r", "model.lora.rank"),
        ("objective.eps", "objective.epsilon"),
        ("lora_r", "model.lora.rank"),
        ("sede", "seed"),
        ("data.imageroot", "data.image_root"),
    ],
)
def test_suggestions(typed: str, meant: str) -> None:
    assert explain.suggest(typed) == f" Did you mean '{meant}'?"


def test_no_suggestion_for_something_else_entirely() -> None:
    assert explain.suggest("zzqqxx") == ""


def test_familiar_names_lead_to_options_that_exist() -> None:
    assert set(explain.FAMILIAR_NAMES.values()) <= set(explain.known_keys())


# --- round trip


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("saved")


CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**31),
        "trainer.learning_rate": st.floats(1e-12, 1.0),
        "trainer.steps": st.integers(20, 10**6),
        "rollout.group_size": st.integers(1, 64).map(lambda half: 2 * half),
        "rollout.temperature": st.floats(0.01, 10.0),
        "model.freeze_vision": st.booleans(),
        "objective.epsilon_high": st.one_of(st.none(), st.floats(0.2, 10.0)),
        "model.instruction": QUOTABLE,
        "out": QUOTABLE,
        "reward.exact.weight": st.floats(0.0, 5.0),
        "trainer.report_to": st.lists(st.sampled_from(["wandb", "tensorboard"]), max_size=2),
        "task": st.sampled_from(["grounding", "scene_qa", "scene_caption"]),
        "objective": st.sampled_from(["grpo", "dr_grpo", "dapo"]),
    },
)


def as_word(key: str, value: object) -> str:
    if isinstance(value, str):
        return f"{key}={value if key in ('task', 'objective') else quote(value)}"
    return f"{key}={json.dumps(value)}"


@given(CHANGES)
@settings(max_examples=10, deadline=None)
def test_compose_dump_compose_is_the_identity(shared_folder: Path, changes: dict[str, object]) -> None:
    first = compose("train", [as_word(key, value) for key, value in changes.items()])
    saved = shared_folder / "config.yaml"
    saved.write_text(first.yaml(), encoding="utf-8")
    again = compose("train", config_dirs=[shared_folder], config_name="config")
    assert again.plain == first.plain
    assert again.config == first.config
    assert load(saved) == first.config
    assert to_yaml(again.plain) == first.yaml()


def test_saved_configuration_can_be_changed_and_is_checked(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(compose("train", ["seed=5", "reward.exact.weight=1"]).yaml())
    again = compose("eval", ["trainer.steps=9"], config_dirs=[tmp_path], config_name="config").config
    assert (again.seed, again.trainer.steps, again.command) == (5, 9, "eval")
    (tmp_path / "bad.yaml").write_text("trainer: {stepps: 3}\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml.*\n.*trainer\.stepps.*trainer\.steps"):
        load(tmp_path / "bad.yaml")
    for content in ("- a list\n", "a: [", "\x00"):
        (tmp_path / "bad.yaml").write_text(content)
        with pytest.raises(ConfigError, match=r"bad\.yaml"):
            load(tmp_path / "bad.yaml")


# --- configs of the user's own


def test_config_folder_of_the_users_own_adds_recipes(tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    recipe = "# @package _global_\ndefaults:\n  - override /task: scene_qa\ntrainer:\n  steps: 12\n"
    (tmp_path / "recipe" / "mine.yaml").write_text(recipe)
    for where in ({"config_dirs": [tmp_path]}, {}):
        words = ["recipe=mine"] if where else ["recipe=mine", f"hydra.searchpath=[{tmp_path}]"]
        composed = compose("train", words, **where)
        assert composed.config.trainer.steps == 12
        assert "exact" in composed.config.reward.active()
    assert "no such folder" in refused(config_dirs=["/no/such/place"])
    assert "pkg://no.such.module" in refused("hydra.searchpath=[pkg://no.such.module]")
    assert compose("train", ["hydra.searchpath=[pkg://mmreason.conf]"]).config == compose("train").config
    (tmp_path / "recipe" / "typo.yaml").write_text("# @package _global_\ntrainer:\n  stepz: 12\n")
    assert "trainer.stepz: unknown option. Did you mean 'trainer.steps'?" in refused(
        "recipe=typo", config_dirs=[tmp_path]
    )


# --- sweeps


def test_sweep_is_the_grid_in_order() -> None:
    assert expand_sweep(["seed=0,1", "a=x", "trainer.steps=range(1,3)"]) == [
        ["seed=0", "a=x", "trainer.steps=1"],
        ["seed=0", "a=x", "trainer.steps=2"],
        ["seed=1", "a=x", "trainer.steps=1"],
        ["seed=1", "a=x", "trainer.steps=2"],
    ]
    assert expand_sweep(["model=a/b,c/d"]) == [["model=a/b"], ["model=c/d"]]
    assert expand_sweep(["model.instruction='a,b'"]) == [["model.instruction='a,b'"]]
    with pytest.raises(ValueError, match="grid"):
        expand_sweep(["seed=interval(0,1)"])


def test_jobs_of_a_sweep_have_folders_of_their_own() -> None:
    jobs = compose_sweep("train", ["seed=0,1", "trainer.learning_rate=1e-5,3e-5", "task=scene_qa"])
    names = [job.composed.config.name for job in jobs]
    assert len(set(names)) == len(names) == 4
    assert jobs[3].varied == ("seed=1", "trainer.learning_rate=3e-05")
    assert jobs[3].composed.config.trainer.learning_rate == 3e-5
    assert "trainer.learning_rate=3e-05" in names[3]
    # The words alone make the same job again: they are what the job's own process gets.
    assert compose("train", jobs[3].overrides).plain == jobs[3].composed.plain
    by_seed = compose_sweep("train", ["seed=0,1"])
    assert [job.composed.config.name for job in by_seed] == [
        compose("train", [f"seed={k}"]).config.name for k in (0, 1)
    ]
    named = compose_sweep("train", ["name=mine", "objective=grpo,dapo"])
    assert [job.composed.config.name for job in named] == ["mine-objective=grpo", "mine-objective=dapo"]


def test_one_wrong_job_stops_the_sweep_before_it_starts() -> None:
    with pytest.raises(ConfigError, match=r"rollout\.group_size=1"):
        compose_sweep("train", ["rollout.group_size=4,1"])
    with pytest.raises(ConfigError, match="grid"):
        compose_sweep("train", ["seed=interval(0,3)"])


@given(st.lists(st.tuples(QUOTABLE, QUOTABLE), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_names_of_a_sweep_are_distinct_short_and_valid(pairs: list[tuple[str, str]]) -> None:
    names = distinct_names(["run"] * len(pairs), [list(pair) for pair in pairs])
    assert len(set(names)) == len(names)
    for name in names:
        assert len(name) <= MAX_NAME_CHARS + 3
        assert RunConfig(name=name).name == name


# --- the schema and the files themselves

#: Options whose name and range say it all.
SELF_EXPLAINING = {
    "command", "trainer.learning_rate", "trainer.lr_schedule", "trainer.warmup_steps", "trainer.weight_decay",
    "trainer.max_grad_norm",
}  # fmt: skip


def test_every_option_says_what_it_is_for() -> None:
    silent = {option.key for option in explain.options() if not option.meaning}
    assert silent == SELF_EXPLAINING


def sources() -> Iterator[str]:
    for package in (mmreason, mmreason.rewards, mmreason.tools, mmreason.data):
        for file in Path(str(package.__file__)).parent.rglob("*.py"):
            if file.parent.name != "config":
                yield file.read_text(encoding="utf-8")


#: Options that the command line itself reads.
READ_BY_THE_COMMAND_LINE = {"trainer.num_threads", "command"}


def test_no_option_exists_that_nothing_reads() -> None:
    text = "\n".join(sources())
    unread = [
        option.key
        for option in explain.options()
        if option.key not in READ_BY_THE_COMMAND_LINE and not re.search(rf"\.{option.key.rpartition('.')[2]}\b", text)
    ]
    assert unread == []


@pytest.mark.parametrize("file", sorted(CONF.rglob("*.yaml")), ids=lambda file: str(file.relative_to(CONF)))
def test_every_key_in_conf_has_a_comment_above_it(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("#")
    for above, line in zip(["", *lines], lines, strict=False):
        if re.match(r" *\w+:", line) and line.strip() != "defaults:" and not above.lstrip().startswith("- "):
            assert above.lstrip().startswith("#"), f"{file.name}: no comment above {line.strip()!r}"
