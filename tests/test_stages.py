"""Chains of stages: planned and checked as a whole, run one process each, gone on with where they stopped."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mmreason import stages
from mmreason.cli import main
from mmreason.config import command_line
from mmreason.config.command_line import config_groups
from mmreason.config.compose import compose
from mmreason.config.overrides import parse
from mmreason.errors import ConfigError, MMReasonError, ResumeError
from mmreason.stages import PlannedStage, plan_chain, run_chain, written

CHAIN: list[dict[str, Any]] = [
    {
        "name": "cold",
        "command": "sft",
        "set": {"sft.phases": [{"steps": 1, "mixture": {"grounding/direct/0": 1}}], "trainer.learning_rate": 1e-6},
    },
    {
        "name": "sample",
        "command": "collect",
        "set": {"collect.rows": 6, "collect.samples_per_row": 6, "collect.pairs": True},
    },
    {"name": "again", "command": "sft", "rows_from": "sample", "set": {"trainer.steps": 1}},
    {"name": "prefer", "command": "dpo", "pairs_from": "previous", "set": {"trainer.steps": 1, "dpo.batch_size": 2}},
    {"name": "rl", "command": "train", "set": {"trainer.steps": 1, "objective": "dapo"}},
    {"name": "gain", "command": "eval", "compare": "start"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the recipe `chain`."""
    return with_recipe(tmp_path, CHAIN)


def with_recipe(place: Path, chain: Sequence[dict[str, Any]]) -> Path:
    common = {
        "trainer": {"num_threads": 1, "eval_rows": 2, "learning_rate": 1e-6},
        "rollout": {"prompts_per_step": 2, "group_size": 2, "max_new_tokens": 24},
        "sft": {"batch_size": 2},
    }
    (place / "recipe").mkdir(exist_ok=True)
    text = "# @package _global_\n" + yaml.safe_dump({**common, "stages": list(chain)}, sort_keys=False)
    (place / "recipe" / "chain.yaml").write_text(text)
    return place


def planned(folder: Path, *words: str, **where: Any) -> list[PlannedStage]:
    chain = compose("train", ["recipe=chain", f"out={folder}", "name=run", *words], config_dirs=[folder])
    return plan_chain(chain, config_dirs=[folder], **where)


def refused(place: Path, *chain: dict[str, Any], words: Sequence[str] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        planned(with_recipe(place, chain), *words)
    return str(caught.value)


# ---------------------------------------------------------------------- planning


def test_each_stage_starts_from_what_the_ones_before_left(folder: Path) -> None:
    run = folder / "run"
    cold, sample, again, prefer, rl, gain = (one.composed.config for one in planned(folder))
    assert [cold.name, rl.name, gain.out] == ["1-cold", "5-rl", str(run)]
    assert (cold.model.name, sample.model.name) == ("tiny", str(run / "1-cold" / "final"))
    assert again.model.name == sample.model.name, "a collection makes no model"
    assert again.data.path == str(run / "2-sample" / "rows.jsonl")
    assert prefer.data.path == str(run / "2-sample" / "pairs.jsonl")
    assert rl.model.name == str(run / "4-prefer" / "final")
    assert rl.data.path is None
    assert (gain.model.name, gain.eval.compare) == (str(run / "5-rl" / "final"), "tiny")
    assert (cold.trainer.learning_rate, rl.trainer.steps, rl.rollout.group_size) == (1e-6, 1, 2)
    assert [one.composed.config.command for one in planned(folder)] == [one["command"] for one in CHAIN]
    assert not any(one.composed.config.stages for one in planned(folder))


def test_words_of_the_command_line_go_to_every_stage_and_win(folder: Path) -> None:
    made = [one.composed.config for one in planned(folder, "seed=7", "trainer.learning_rate=0.5", "model.lora.rank=2")]
    assert {config.seed for config in made} == {7}
    assert {config.trainer.learning_rate for config in made} == {0.5}
    other = [
        one.composed.config for one in planned(folder, "model.name=random:qwen2_vl", "data=mine.jsonl", "sft.phases=[]")
    ]
    assert other[0].model.name == "random:qwen2_vl"
    assert other[-1].eval.compare == "random:qwen2_vl"
    assert other[4].model.name.endswith("4-prefer/final")
    assert [config.data.path for config in other[:2]] == ["mine.jsonl"] * 2
    assert other[2].data.path is not None
    assert other[2].data.path.endswith("2-sample/rows.jsonl")


def test_files_are_looked_for_unless_an_earlier_stage_makes_them(folder: Path) -> None:
    planned(folder, check_files=True)
    with pytest.raises(ConfigError, match=r"stage 1, 'cold'[\s\S]*data.path=gone.jsonl: no such file"):
        planned(folder, "data=gone.jsonl", "sft.phases=[]", check_files=True)


STAGE = {"name": "a", "command": "train"}


@pytest.mark.parametrize(
    ("chain", "said"),
    [
        ([{**STAGE, "set": {"trainer.stepz": 1}}], "stage 1, 'a' (mmreason train)"),
        ([{**STAGE, "set": {"trainer.stepz": 1}}], "Did you mean 'trainer.steps'?"),
        ([STAGE, STAGE], "the name 'a' is there twice"),
        ([{**STAGE, "name": "start"}], "'start' has a meaning of its own"),
        ([{**STAGE, "name": "../a"}], "stages.0.name"),
        ([{**STAGE, "command": "doctor"}], "stages.0.command"),
        ([{**STAGE, "model": "b"}], "model=b: 'b' is no earlier stage"),
        ([{**STAGE, "set": {"name": "x"}}], "set.name: the chain decides this"),
        ([{**STAGE, "set": {"model.name": "x"}}], "say it by the stage's own `model`"),
        ([{**STAGE, "set": {"hydra.run.dir": "x"}}], "of Hydra's own options"),
        ([{**STAGE, "set": {"a b": "x"}}], "not the name of an option"),
        ([{**STAGE, "rows_from": "previous"}], "there is no collect stage before this one"),
        ([{"name": "a", "command": "collect"}, {"name": "b", "command": "dpo", "pairs_from": "a"}], "does not leave what is needed"),
        ([{**STAGE, "pairs_from": "previous"}], "only dpo learns from pairs"),
        ([{"name": "a", "command": "dpo"}], "data.path is empty"),
        ([{**STAGE, "compare": "start"}], "only an eval stage compares"),
        ([{"name": "a", "command": "collect"}, {**STAGE, "name": "b", "model": "a"}], "does not leave what is needed"),
        ([{**STAGE, "set": {"objective.loss_type": "trpa", "trainer.micro_batch_size": 1}}], "stage 1"),
    ],
)  # fmt: skip
def test_a_wrong_chain_is_refused_as_a_whole(chain: list[dict[str, Any]], said: str, tmp_path: Path) -> None:
    assert said in refused(tmp_path, *chain)


def test_a_wrong_last_stage_is_refused_before_torch_and_before_the_first_starts(tmp_path: Path) -> None:
    with_recipe(tmp_path, [*CHAIN[:2], {**STAGE, "set": {"rollout.group_size": 1}}])
    code = (
        "import sys; from mmreason.cli import main; "
        f"code = main(['train', '-cd', {str(tmp_path)!r}, 'recipe=chain', 'out={tmp_path}', 'name=run']); "
        "print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "2 False"
    assert "stage 3, 'a'" in done.stderr
    assert not (tmp_path / "run").exists()


def test_other_commands_and_launchers_refuse_a_chain(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="which `mmreason train` runs"):
        compose("collect", ["recipe=chain"], config_dirs=[folder])
    assert not compose("eval", ["recipe=chain"], config_dirs=[folder]).config.is_chain
    assert not compose("sft", ["recipe=chain", "stages=[]", "debug=smoke"], config_dirs=[folder]).config.is_chain
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="without a launcher"):
        planned(folder)


def test_cfg_job_shows_every_stage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-cd", str(folder), "recipe=chain", f"out={folder}", "--cfg", "job"]) == 0
    shown = list(yaml.safe_load_all(capsys.readouterr().out))
    assert [one["command"] for one in shown] == ["train", *(one["command"] for one in CHAIN)]
    assert [one["name"] for one in shown[0]["stages"]] == [one["name"] for one in CHAIN]


@pytest.mark.parametrize("recipe", sorted(config_groups()["recipe"]))
def test_chains_among_the_recipes_are_whole(recipe: str) -> None:
    if recipe.startswith("tiny_vlm"):
        pytest.skip("a recipe of mmreason sft")
    chain = compose("train", [f"recipe={recipe}"])
    if chain.config.is_chain:
        assert len(plan_chain(chain)) == len(chain.config.stages)
    else:
        assert chain.config.command == "train"


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(-1e6, 1e6)
    | st.text("ab'\"\\ =,:{}[]$(1.", max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.from_regex(r"\A[a-z][a-z0-9_/]{0,8}\Z"), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(plain)
def test_values_come_through_hydras_grammar(value: Any) -> None:
    override = parse(f"key={written(value)}")
    assert not override.is_sweep_override()
    assert _unquoted(override.value()) == value


def _unquoted(value: Any) -> Any:
    if isinstance(value, dict):
        return {getattr(key, "text", key): _unquoted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unquoted(item) for item in value]
    return getattr(value, "text", value)


# ---------------------------------------------------------------------- running


def fake_job(codes: dict[str, tuple[int, bool]], started: list[str]) -> Callable[[Sequence[str]], tuple[int, bool]]:
    """A stand-in for the process of a stage: leaves what the stage would leave."""

    def job(command: Sequence[str]) -> tuple[int, bool]:
        words = dict(word.partition("=")[::2] for word in command)
        name = words["name"].strip("'")
        started.append(name)
        assert words["resume"] == "auto"
        code, stopped = codes.pop(name, (0, False))
        run = Path(words["out"].strip("'")) / name
        run.mkdir(parents=True, exist_ok=True)
        if code == 0:
            (run / "final").mkdir(exist_ok=True)
            (run / "final" / "config.json").write_text("{}")
            (run / "rows.jsonl").touch()
            (run / "summary.json").write_text(
                json.dumps({"before": {"accuracy": {"mean": 0.25}}, "after": {"accuracy": {"mean": 0.5}}})
            )
        return code, stopped

    return job


def run(folder: Path, *words: str) -> int:
    return main(["train", "-cd", str(folder), "recipe=chain", f"out={folder}", "name=run", *words])


def test_a_chain_goes_on_at_its_first_unfinished_stage(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[str] = []
    codes = {"3-again": (7, False), "4-prefer": (0, True)}
    monkeypatch.setattr(command_line, "run_job", fake_job(codes, started))
    assert run(folder) == 7
    assert started == ["1-cold", "2-sample", "3-again"]
    assert json.loads((folder / "run" / "summary.json").read_text())["finished"] is False
    assert (folder / "run" / "final").resolve() == folder / "run" / "1-cold" / "final"
    assert run(folder) == 2, "a chain is not begun anew in its folder"

    assert run(folder, "resume=auto") == 130
    assert started[3:] == ["3-again", "4-prefer"]
    assert run(folder, "resume=auto") == 0
    assert started[5:] == ["5-rl", "6-gain"]
    assert run(folder, "resume=auto") == 0
    assert started[7:] == [], "nothing is left to do"
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["finished"] is True
    assert [one["name"] for one in summary["stages"]] == [one["name"] for one in CHAIN]
    assert summary["stages"][4]["before"] == {"accuracy": {"mean": 0.25}}
    assert (folder / "run" / "final").resolve() == folder / "run" / "5-rl" / "final"
    assert "rl               mmreason train    accuracy 0.250 → 0.500" in capsys.readouterr().out


def test_a_finished_stage_is_neither_changed_nor_taken_for_granted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    monkeypatch.setattr(command_line, "run_job", fake_job({"2-sample": (1, False)}, started))
    run(folder)
    chain = compose(
        "train", ["recipe=chain", f"out={folder}", "name=run", "resume=auto", "seed=1"], config_dirs=[folder]
    )
    with pytest.raises(ResumeError, match="stage 1, 'cold', is done, with other options: seed: 0 then, 1 now"):
        run_chain(chain, plan_chain(chain, config_dirs=[folder]))
    (folder / "run" / "1-cold" / "final" / "config.json").unlink()
    chain = compose("train", ["recipe=chain", f"out={folder}", "name=run", "resume=auto"], config_dirs=[folder])
    with pytest.raises(MMReasonError, match=r"is done, but .*config\.json is not there"):
        run_chain(chain, plan_chain(chain, config_dirs=[folder]))
    for content in ('{"done": [', '{"done": [1]}', "[]"):
        (folder / "run" / "chain.json").write_text(content)
        with pytest.raises(ResumeError, match="is damaged"):
            run_chain(chain, plan_chain(chain, config_dirs=[folder]))
    assert started == ["1-cold", "2-sample"]


def test_a_stage_that_leaves_nothing_is_not_done(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line, "run_job", lambda _: (0, False))
    assert run(folder) == 1
    assert not (folder / "run" / "chain.json").exists()


def test_sigterm_reaches_the_stage_and_its_exit_code_comes_back(folder: Path) -> None:
    with_recipe(folder, [{**STAGE, "set": {"trainer.steps": 500}}])
    words = ["-cd", str(folder), "recipe=chain", f"out={folder}", "name=run"]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "mmreason", "train", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    metrics = folder / "run" / "1-a" / "metrics.jsonl"
    for _ in range(1200):
        if metrics.is_file() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + signal.SIGTERM, output[-2000:]
    assert "ended with exit code 143; resume=auto goes on there" in output
    assert list((folder / "run" / "1-a").glob("checkpoint-*")), "the stage has saved"


@pytest.mark.slow
def test_a_whole_chain_of_all_commands(folder: Path) -> None:
    assert run(folder) == 0
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert [one["command"] for one in summary["stages"]] == [one["command"] for one in CHAIN]
    by_name = {one["name"]: one for one in summary["stages"]}
    assert by_name["sample"]["kept"] > 0
    assert "accuracy" in by_name["rl"]["before"]
    assert {"before", "after", "difference"} <= by_name["gain"].keys()
    assert (folder / "run" / "final" / "config.json").is_file()
    assert stages.CHAIN in {path.name for path in (folder / "run").iterdir()}
