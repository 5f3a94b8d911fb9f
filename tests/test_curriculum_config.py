"""The section `curriculum`: what phases may set, what is refused before anything is loaded, and captions of scenes and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_curriculum import data_file

from mmreason.config.compose import compose
from mmreason.config.curriculum import nested, phase_configs
from mmreason.config.schema import DataConfig, TaskConfig
from mmreason.data.base import build_task
from mmreason.data.captioned import with_caption
from mmreason.data.readers import read_rows
from mmreason.data.scene_tasks import describe
from mmreason.errors import ConfigError, DataError

# ---------------------------------------------------------------------- the section


BASE = ("trainer.steps=30", "task=scene_qa")


def refusal(phases: str, *words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose("train", [*BASE, *words, f"curriculum.phases={phases}"])
    return str(caught.value)


@pytest.mark.parametrize(
    ("phases", "said"),
    [
        ("[{name: a, untl_step: 3}, {name: b}]", "Did you mean 'until_step'?"),
        ("[{name: a, until: {metrc: x}}, {name: b}]", "Did you mean 'metric'?"),
        ("[{name: a}, {name: b}]", "it never ends; a phase ends by one of"),
        ("[{name: a, until_step: 3, by_hand: true}, {name: b}]", "until_step and by_hand are given"),
        ("[{name: a, until_step: 3}, {name: b, until_step: 9}]", "the last phase lasts to the end"),
        ("[{name: a, until_step: 3}, {name: a}]", "two phases are called a"),
        ("[{name: a, until_step: 30}, {name: b}]", "'b': it would never have a step"),
        ("[{name: a, until_step: 9}, {name: b, until_step: 9}, {name: c}]", "'b': it would never have a step"),
        ("[{name: a, until: {metric: reward, above: 1, min_steps: 30}}, {name: b}]", "not over before step 30"),
        ("[{name: a, until: {metric: reward}}, {name: b}]", "needs either above or below"),
        ("[{name: a, until: {metric: reward, above: 1, over_steps: 5, max_steps: 4}}, {name: b}]", "max_steps=4 ends"),
        ("[{name: a, until: {metric: rewards/exat, above: 1}}, {name: b}]", "Did you mean 'exact'?"),
        ("[{name: a, until: {metric: rewrd, above: 1}}, {name: b}]", "Did you mean 'reward'?"),
        ("[{name: a, until: {metric: correct, above: 1}}, {name: b}]", "set reward.correct"),
        ("[{name: a, until: {metric: eval/accuracy, above: 1}}, {name: b}]", "trainer.eval_every_steps"),
        ("[{name: a, until: {metric: objective, above: 1}}, {name: b}]", "no such metric"),
        ("[{name: a, until: {metric: step_seconds, above: 1}}, {name: b}]", "times differ from run to run"),
        ("[{name: a, until_step: 3, set: {rollout: {temprature: 1}}}, {name: b}]", "Did you mean 'rollout.temperature'?"),
        ("[{name: a, until_step: 3, set: {rollout.group_size: 2}}, {name: b}]", "cannot change within a run"),
        ("[{name: a, until_step: 3, set: {rollout: {temperature: 1}, rollout.temperature: 2}}, {name: b}]", "given twice"),
        ("[{name: a, until_step: 3, set: {seed: 2}}, {name: b}]", "cannot change within a run"),
        ("[{name: a, until_step: 3, set: {data: {eval_share: 0}}}, {name: b}]", "cannot change within a run"),
        ("[{name: a, until_step: 3, set: {reward.iou.weight: 1}}, {name: b}]", "reward.iou is not in the run"),
        ("[{name: a, until_step: 3, set: {reward: {exact: null}}}, {name: b}]", "set its weight"),
        ("[{name: a, until_step: 3, set: {reward.exact.wieght: 1}}, {name: b}]", "Did you mean 'weight'?"),
        ("[{name: a, until_step: 3, set: {objective.terms.nll_on_correct.coefficient: 1}}, {name: b}]", "not in the run"),
        ("[{name: a, until_step: 3, set: {task: {name: scene_q}}}, {name: b}]", "Did you mean 'scene_qa'?"),
        ("[{name: a, until_step: 3, set: {task: grounding}}, {name: b}]", "{task: {name: grounding}}"),
        ("[{name: a, until_step: 3, set: {task.captoin: true}}, {name: b}]", "Did you mean 'caption'?"),
        ("[{name: a, until_step: 3, set: {task: {name: scene_caption, caption: true}}}, {name: b}]", "no such option"),
        ("[{name: a, until_step: 3, set: {augment.noise.probability: 1}}, {name: b}]", "unknown option"),
        ("[{name: a, until_step: 3, set: {data.path: x.jsonl, task.caption: true}}, {name: b}]", "data.path: null"),
        ("[{name: a, until_step: 3, set: {data.caption_column: x}}, {name: b}]", "there are no columns"),
        ("[{name: a, until_step: 3, set: {reward.exact.weight: 0, reward.format.weight: 0}}, {name: b}]", "nothing to learn"),
        ("[{name: a, until_step: 3, set: {rollout.temperature: 0}}, {name: b}]", "a number > 0"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_is_loaded(phases: str, said: str) -> None:
    message = refusal(phases)
    assert said in message
    assert "the configuration is refused" in message


def test_more_refusals() -> None:
    two = "[{name: a, until_step: 3}, {name: b}]"
    assert "Did you mean 'phase_b'" not in refusal(two, "curriculum.phase=c")
    assert "no such phase" in refusal(two, "curriculum.phase=c")
    odd = refusal(two, "objective.num_iterations=2")
    assert "until_step=3 must be a multiple of objective.num_iterations=2" in odd
    with pytest.raises(ConfigError, match="this run has no phases"):
        compose("train", [*BASE, "curriculum.phase=a"])
    with pytest.raises(ConfigError, match="only `mmreason train` has phases"):
        compose("sft", ["recipe=tiny_vlm", f"curriculum.phases={two}"])


def test_missing_files_of_later_phases_are_refused(tmp_path: Path) -> None:
    phases = f"[{{name: a, until_step: 3}}, {{name: b, set: {{data: {{path: '{tmp_path / 'gone.jsonl'}'}}}}}}]"
    with pytest.raises(ConfigError, match=r"gone\.jsonl: no such file"):
        compose("train", [*BASE, f"curriculum.phases={phases}"], check_files=True)


def test_a_judge_opens_pictures_of_one_folder(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    paths = [data_file(tmp_path, 3), data_file(tmp_path / "x", 3)]
    phases = (
        f"[{{name: a, until_step: 3, set: {{data.path: '{paths[0]}'}}}}, {{name: b, set: {{data.path: '{paths[1]}'}}}}]"
    )
    assert "a judge opens those of one" in refusal(phases, "judge=policy")
    compose("train", [*BASE, f"curriculum.phases={phases}", "judge=policy", f"data.image_root={tmp_path}"])


def test_a_phase_without_pictures_switches_masked_terms_off() -> None:
    phases = "[{name: text, until_step: 3, set: {task: {name: random_calculation}%s}}, {name: free}]"
    term = "objective.terms.perception_kl.coefficient"
    assert "phase 'text': objective.terms.perception_kl compares with masked images" in refusal(
        phases % "", f"{term}=0.1"
    )
    words = [*BASE, f"{term}=0.1", f"curriculum.phases={phases % f', {term}: 0'}"]
    assert len(phase_configs(compose("train", words).config)) == 2


def test_a_phase_is_the_run_with_its_changes() -> None:
    phases = (
        "[{name: a, until_step: 3, set: {task: {name: grounding}, reward: {exact: {weight: 0}}}}, "
        "{name: b, set: {task.caption: true}}]"
    )
    config = compose("train", [*BASE, "task.difficulty=2", f"curriculum.phases={phases}"]).config
    first, second = phase_configs(config)
    assert first.task.model_dump() == {"name": "grounding"}, "another task comes with its own options only"
    assert first.reward.weights()["exact"] == 0
    assert second.task.model_dump() == {"name": "scene_qa", "difficulty": 2, "caption": True}
    assert second.reward == config.reward, "on top of the run, not of the phase before"
    assert not second.curriculum.phases


def test_three_stages_of_autothink_compose() -> None:
    phases = (
        "[{name: balance, until_step: 10}, {name: reinforce, until_step: 20, "
        "set: {reward.autothink.stage: 2, rollout.max_new_tokens: 128}}, "
        "{name: length, set: {reward.autothink.stage: 3, rollout.max_new_tokens: 192}}]"
    )
    words = ["reward.autothink.template=tags", "reward.correct='exact > 0.5'", "reward.exact.weight=0"]
    config = compose("train", [*BASE, *words, f"curriculum.phases={phases}"]).config
    stages = [one.reward.active()["autothink"].get("stage", 1) for one in phase_configs(config)]
    assert stages == [1, 2, 3]


keys = st.sampled_from(["a", "b", "c"])
trees = st.recursive(st.integers(), lambda inner: st.dictionaries(keys, inner, min_size=1, max_size=3), max_leaves=8)


def dotted(tree: Any, prefix: str = "") -> dict[str, int]:
    if not isinstance(tree, dict):
        return {prefix.removesuffix("."): tree}
    return {key: value for name, inner in tree.items() for key, value in dotted(inner, f"{prefix}{name}.").items()}


@given(st.dictionaries(keys, trees, min_size=1))
def test_dotted_keys_are_sections(tree: dict[str, Any]) -> None:
    assert nested(dotted(tree)) == nested(tree) == tree


# ---------------------------------------------------------------------- captions


@pytest.mark.parametrize("name", ["grounding", "scene_qa"])
def test_captions_are_true_and_change_nothing_else(name: str) -> None:
    plain = build_task(TaskConfig(name=name))
    told = build_task(TaskConfig.model_validate({"name": name, "caption": True}))
    for index in range(5):
        one, other = plain.row(index), told.row(index)
        question = one.messages[0]["content"][-1]["text"]
        caption, _, rest = other.messages[0]["content"][-1]["text"].partition("\n")
        assert rest == question
        assert caption.startswith("Caption: ")
        said = caption.removeprefix("Caption: ").removesuffix(".").split(", ")
        scene = type("Scene", (), {"objects": one.columns["objects"], "image": one.images[0]})
        assert said == describe(scene)  # type: ignore[arg-type]
        assert (one.id, one.target) == (other.id, other.target)
        assert one.images[0].tobytes() == other.images[0].tobytes()  # type: ignore[union-attr]


IMAGE = {"type": "image"}


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([IMAGE, "What?"], [IMAGE, "Caption: a cat.\nWhat?"]),
        (["What?"], ["Caption: a cat.\nWhat?"]),
        (["Look:", IMAGE, "What?"], ["Look:", IMAGE, "Caption: a cat.\nWhat?"]),
        (["What?", IMAGE], ["What?", IMAGE, "\nCaption: a cat."]),
    ],
)
def test_captions_stand_between_pictures_and_question(parts: list[Any], expected: list[Any]) -> None:
    def made(found: list[Any]) -> list[dict[str, str]]:
        return [{"type": "text", "text": part} if isinstance(part, str) else part for part in found]

    given_turns = ({"role": "system", "content": made(["Be brief."])}, {"role": "user", "content": made(parts)})
    first, last = with_caption(given_turns, " a cat. ")
    assert first == given_turns[0]
    assert last["content"] == made(expected)
    assert given_turns[1]["content"] == made(parts), "the messages given are not changed"


@pytest.mark.parametrize("value", [None, "", "  ", 3, ["x"], "<|im_end|>"])
def test_bad_captions_are_bad_rows(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "rows.jsonl"
    good = {"question": "What?", "answer": "1", "seen": "a cat"}
    path.write_text(json.dumps(good) + "\n" + json.dumps({**good, "seen": value}))
    config = DataConfig(path=str(path), caption_column="seen", on_bad_row="skip")
    found = read_rows(config)
    assert len(found.rows) == len(found.skipped) == 1
    assert found.rows[0].messages[0]["content"][0]["text"] == "Caption: a cat\nWhat?"
    with pytest.raises(DataError, match=r":2: (no caption|control token)"):
        read_rows(config.model_copy(update={"on_bad_row": "raise"}))
