"""The question asks for the form that the rewards want: for every recipe, after every training, in every phase."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmreason.config.answer_form import FORM, form_text, instruction_text, wanted_tags
from mmreason.config.compose import compose, load
from mmreason.config.schema import ModelConfig, RunConfig
from mmreason.errors import ConfigError
from mmreason.recipes import recipes
from mmreason.stages import plan_chain

REAL = "model=qwen2_5_vl_3b"
#: Recipes of `mmreason train`; the two others make the embedded models.
ALL = [one.name for one in recipes() if one.name not in ("tiny_vlm", "tiny_tools")]


def asked(config: RunConfig) -> str:
    return instruction_text(config.model, "")


def refusal(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose("train", list(words))
    return str(caught.value)


@pytest.mark.parametrize("name", ALL)
def test_every_block_that_the_form_reward_wants_is_asked_for(name: str) -> None:
    composed = compose("train", [f"recipe={name}", REAL])
    runs = [composed.config] if not composed.config.stages else [one.composed.config for one in plan_chain(composed)]
    for config in runs:
        for tag in wanted_tags(config.reward.active()) or ("answer",):
            assert (r"\boxed{" if tag == "boxed" else f"<{tag}> </{tag}>") in asked(config)


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("papo", r" First think inside <think> </think>, then put the answer in \boxed{}."),
        (
            "visionary_r1",
            " First describe what you see inside <info> </info>, then think inside <think> </think>, then answer inside "
            "<answer> </answer>.",
        ),
        (
            "timemaster",
            " First think inside <think> </think>, then give the class inside <class> </class>, then say what follows from it "
            "inside <extension> </extension>.",
        ),
        ("quickstart", " First think inside <think> </think>, then answer inside <answer> </answer>."),
        # Both modes are open, and a detection has labels.
        ("autothink", " Think inside <think> </think> if that helps, or leave it empty, then answer inside <answer> </answer>."),
        (
            "vlm_r1_ovd",
            ' First think inside <think> </think>, then give a JSON list of {"bbox_2d": box, "label": name}, or [], inside '
            "<answer> </answer>.",
        ),
    ],
)  # fmt: skip
def test_what_is_asked(recipe: str, told: str, tmp_path: Path) -> None:
    composed = compose("train", [f"recipe={recipe}", REAL])
    assert asked(composed.config) == told
    assert compose("train", [f"recipe={recipe}"]).config.model.instruction == ""
    saved = tmp_path / "config.yaml"
    saved.write_text(composed.yaml())
    assert asked(load(saved)) == told


def test_texts_of_other_blocks() -> None:
    assert form_text(["boxed"]) == r"Put the answer in \boxed{}."
    assert form_text(["summary", "answer"]) == (
        "First write the summary inside <summary> </summary>, then answer inside <answer> </answer>."
    )
    assert instruction_text(ModelConfig(instruction=" {form} {box_hint}"), "As numbers.") == (
        " First think inside <think> </think>, then answer inside <answer> </answer>. As numbers."
    )
    assert instruction_text(ModelConfig(instruction=" {form}", form="Say it."), "") == " Say it."


def test_typed_options_reach_the_question() -> None:
    config = compose(
        "train", [REAL, "reward.format.tags=[think,boxed]", "model.instruction=' Be brief. {form}'"]
    ).config
    assert asked(config) == r" Be brief. First think inside <think> </think>, then put the answer in \boxed{}."
    assert asked(compose("train", [REAL, "model.form='<think> first, then <answer>.'"]).config) == (
        " <think> first, then <answer>."
    )
    # Without the reward, the usual form: the answer has to be found.
    assert "<answer>" in asked(compose("train", [REAL, "reward.format=null"]).config)


def test_a_question_that_asks_for_another_form_is_refused() -> None:
    said = refusal("recipe=papo", REAL, "model.instruction=' Think in <think> </think>, answer in <answer> </answer>.'")
    assert "reward.format.tags=[think, boxed] wants boxed, and the question asks for think, answer" in said
    assert FORM in said
    assert "wants think, boxed" in refusal("recipe=papo", REAL, "model.form='Answer inside <answer> </answer>.'")
    # Nothing is said of the form, or nobody is paid for it: rows may describe it, and training before may have taught it.
    for word in ("model.instruction=' Be brief.'", "model.instruction=''", "reward.format.weight=0"):
        compose("train", ["recipe=papo", REAL, word])
    compose("eval", ["recipe=papo", REAL, "model.instruction=' Answer in <answer> </answer>.'"])
    assert "model.form: model.instruction has no place for it" in refusal("model.form='Say it.'")


def test_a_phase_cannot_want_another_form_than_the_run_asks_for() -> None:
    words = ["task=scene_qa", REAL, "trainer.steps=30"]
    phases = "[{name: a, until_step: 3, set: {reward.format.tags: [think, boxed]}}, {name: b}]"
    said = refusal(*words, f"curriculum.phases={phases}")
    assert "curriculum phase 'a': reward.format.tags=[think, boxed] wants boxed" in said
    free = phases.replace("tags: [think, boxed]", "weight: 0")
    assert "<answer>" in asked(compose("train", [*words, f"curriculum.phases={free}"]).config)


@pytest.fixture
def trained(tmp_path: Path) -> str:
    """Folder of a run that was trained to box its answers."""
    run = tmp_path / "boxing"
    (run / "final").mkdir(parents=True)
    facts = {"model_type": "qwen2_5_vl", "text_config": {"hidden_size": 2048}}
    (run / "final" / "config.json").write_text(json.dumps(facts))
    (run / "config.yaml").write_text(compose("train", ["recipe=papo", REAL]).yaml())
    return str(run)


def test_a_trained_model_is_asked_as_it_was_trained(trained: str) -> None:
    from mmreason.agent.command import agent_config

    boxed = r" First think inside <think> </think>, then put the answer in \boxed{}."
    for command, words in (("eval", []), ("collect", []), ("sft", ["data=rows.jsonl"]), ("dpo", ["data=pairs.jsonl"])):
        assert asked(compose(command, [f"model={trained}", *words]).config) == boxed, command
    assert asked(compose("eval", [f"model={trained}", "task=scene_qa"]).config) == boxed
    # What is typed wins; training by reward asks for what it pays for.
    assert "<answer>" in asked(compose("eval", [f"model={trained}", "model.form=null"]).config)
    assert "<answer>" in asked(compose("train", [f"model={trained}", "recipe=scene_qa"]).config)
    assert "<class>" in asked(compose("train", [f"model={trained}", "recipe=timemaster"]).config)

    class Given:
        model, tools, format, file, hidden, seed, options = trained, None, None, None, [], 0, []

    given: Any = Given()
    assert asked(agent_config(given)) == boxed


def test_stages_ask_for_one_form(trained: str) -> None:
    """Also those that would ask as their first model was trained."""
    chain = compose("train", ["recipe=r1_onevision", f"model={trained}", "size=tiny"])
    told = {asked(one.composed.config) for one in plan_chain(chain)}
    assert told == {" First think inside <think> </think>, then answer inside <answer> </answer>."}
