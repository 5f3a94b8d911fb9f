"""Options that would change nothing are refused: when a run is composed, or, where its data file decides, when it starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmreason.config.compose import compose
from mmreason.config.schema import RunConfig
from mmreason.errors import ConfigError
from mmreason.objectives.settings import check_objective, task_datasets
from mmreason.train.opening import check_rows
from mmreason.train.rows import RowFiles

WEIGHT = "objective.advantages.dataset_weight.weights"


def refusal(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose("train", list(words))
    return str(caught.value)


# ---------------------------------------------------------------------- weights of data sets


def test_weights_of_data_sets_that_a_task_has_not_are_refused() -> None:
    said = refusal("task=grounding", f"{WEIGHT}.groundin=2", f"{WEIGHT}.grounding=3")
    assert "no row of this run is of the data set 'groundin'. Did you mean 'grounding'? There are: grounding" in said
    assert said.count("dataset_weight.weights.") == 1
    compose("train", ["task=grounding", f"{WEIGHT}.grounding=3"])


def test_a_weight_may_be_for_the_rows_of_one_phase() -> None:
    phases = "[{name: a, until_step: 3, set: {task: {name: counting}}}, {name: b, set: {task: {name: scene_qa}}}]"
    words = ["task=scene_qa", "trainer.steps=9", f"curriculum.phases={phases}"]
    config = compose("train", [*words, f"{WEIGHT}.counting=2", f"{WEIGHT}.scene_qa=1"]).config
    assert config.objective.advantages["dataset_weight"]["weights"] == {"counting": 2, "scene_qa": 1}
    assert "There are: counting, scene_qa" in refusal(*words, f"{WEIGHT}.grounding=2")


def test_data_sets_of_a_task_are_those_of_its_rows() -> None:
    from mmreason.data.base import TASKS, build_task

    for name, _ in TASKS:
        config = RunConfig(task={"name": name})
        assert {build_task(config.task).row(index).dataset for index in range(3)} <= set(task_datasets(config))
    several = RunConfig(task={"name": "image_quality", "datasets": "by_picture"})
    assert {build_task(several.task).row(index).dataset for index in range(60)} == set(task_datasets(several))


# ---------------------------------------------------------------------- parts that no loss term reads


def test_guard_and_mask_without_a_term_that_reads_them_are_refused() -> None:
    said = refusal("objective.guard.cut=0.1", "objective.mask.probability=0.9")
    assert "objective.guard changes nothing without objective.terms.perception_kl" in said
    assert (
        "objective.mask changes nothing without a loss term that looks at masked images (double_entropy, perception_kl)"
        in said
    )
    # The guard watches one term, the mask serves both.
    entropy = "objective.terms.double_entropy.coefficient=0.01"
    compose("train", [entropy, "objective.mask.probability=0.9"])
    assert "objective.guard" in refusal(entropy, "objective.guard.cut=0.1")
    compose("train", ["objective.terms.perception_kl.coefficient=0.01", "objective.guard.cut=0.1"])
    # A recipe whose term is switched off keeps what belonged to it.
    compose("train", ["recipe=papo", "objective.terms.perception_kl=null"])


@pytest.mark.parametrize("loss", ["bnpo", "dr_grpo", "dapo", "cispo"])
def test_ratios_of_sequences_in_sums_over_tokens_are_refused(loss: str) -> None:
    said = refusal(f"objective={loss}", "objective.importance_sampling=sequence")
    assert f"{loss} sums over tokens" in said
    assert "objective=gspo" in said
    compose("train", [f"objective={loss}"])


def test_losses_that_settle_the_level_of_the_ratio() -> None:
    assert "luspo scales the loss of a whole completion" in refusal(
        "objective=luspo", "objective.importance_sampling=token"
    )
    assert "vespo makes its own weight" in refusal("objective=vespo", "objective.importance_sampling=sequence")
    for name in ("luspo", "vespo", "gspo", "sapo"):
        compose("train", [f"objective={name}"])
    compose("train", ["objective=sapo", "objective.importance_sampling=sequence"])


def test_dropout_between_two_passes_that_are_compared_is_refused() -> None:
    lora = ["model.lora.rank=4", "model.lora.dropout=0.1"]
    for term in ("perception_kl", "double_entropy"):
        said = refusal(f"objective.terms.{term}.coefficient=0.01", *lora)
        assert f"objective.terms.{term} compares two passes of the policy, and with model.lora.dropout=0.1" in said
        compose("train", [f"objective.terms.{term}.coefficient=0.01", "model.lora.rank=4"])
    compose("train", ["objective.terms.nll_on_correct.coefficient=0.01", "reward.correct='iou > 0.5'", *lora])


# ---------------------------------------------------------------------- pictures that are not there


def test_masks_that_mask_nothing_are_refused(make_config: Callable[..., Any]) -> None:
    mask = {"probability": 0.0}
    for terms in ({"perception_kl": {"coefficient": 0.1}}, {"double_entropy": {"coefficient": 0.1}}):
        config = make_config(name="run", objective={"mask": mask, "terms": terms})
        with pytest.raises(ConfigError, match=r"objective\.mask\.probability=0 masks nothing"):
            check_objective(config)
    check_objective(make_config(name="run", objective={"mask": mask, "terms": {"perception_kl": {"coefficient": 0.0}}}))
    check_objective(make_config(name="run", objective={"mask": mask, "terms": {}}))


def test_augmentation_of_a_task_without_images_is_refused() -> None:
    blur = "augment.gaussian_blur.probability=0.5"
    assert "augment.gaussian_blur changes images, and the questions of task=random_calculation have none" in refusal(
        "task=random_calculation", blur
    )
    compose("train", ["task=random_calculation", "augment.gaussian_blur.probability=0"])
    compose("train", ["task=counting", blur])
    phases = "[{name: a, until_step: 3, set: {task: {name: random_calculation}}}, {name: b}]"
    said = refusal("task=counting", "trainer.steps=9", blur, f"curriculum.phases={phases}")
    assert "curriculum phase 'a': augment.gaussian_blur" in said
    off = phases.replace("set: {", "set: {augment.gaussian_blur.probability: 0, ")
    compose("train", ["task=counting", "trainer.steps=9", blur, f"curriculum.phases={off}"])


# ---------------------------------------------------------------------- files, when a run starts


@pytest.fixture
def in_file(tmp_path: Path) -> Callable[..., RunConfig]:
    """A run whose rows come from the file `mine.jsonl`, with images or without."""

    def make(*, images: bool, **sections: Any) -> RunConfig:
        Image.new("RGB", (64, 64), "navy").save(tmp_path / "a.png")
        row = {"question": "Which number?", "answer": "7", **({"image": "a.png"} if images else {})}
        rows = [row | {"id": str(n)} for n in range(4)]
        (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return RunConfig(data={"path": str(tmp_path / "mine.jsonl")}, **sections)

    return make


def test_what_a_file_gives_nothing_to_do_is_refused_at_the_start(in_file: Callable[..., RunConfig]) -> None:
    augment = {"gaussian_noise": {"probability": 0.5}}
    terms = {"perception_kl": {"coefficient": 0.1}}
    weights = {"dataset_weight": {"weights": {"mime": 2.0}}}
    for sections, said in (
        ({"augment": augment}, r"augment\.gaussian_noise changes images, and no row of .*mine\.jsonl has one"),
        (
            {"objective": {"terms": terms}},
            r"objective\.terms\.perception_kl compares with masked images, and no row of",
        ),
        ({"objective": {"advantages": weights}}, r"weights\.mime: .*Did you mean 'mine'\? There are: mine"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_rows(in_file(images=False, **sections), RowFiles())
    fine = in_file(
        images=True,
        augment=augment,
        objective={"terms": terms, "advantages": {"dataset_weight": {"weights": {"mine": 2.0}}}},
    )
    check_rows(fine, RowFiles())
    check_rows(in_file(images=False), RowFiles())


def test_weights_for_phases_of_a_task_and_of_a_file(in_file: Callable[..., RunConfig]) -> None:
    def config(name: str) -> RunConfig:
        phases = [
            {"name": "a", "until_step": 3, "set": {"data.path": None, "task": {"name": "counting"}}},
            {"name": "b"},
        ]
        advantages = {"dataset_weight": {"weights": {"counting": 1.0, name: 2.0}}}
        return in_file(images=True, objective={"advantages": advantages}, curriculum={"phases": phases})

    check_rows(config("mine"), RowFiles())
    with pytest.raises(ConfigError, match="There are: counting, mine"):
        check_rows(config("yours"), RowFiles())
