"""The bridge to TRL: its reward functions as rewards, and rewards in the stock `GRPOTrainer`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from trl import GRPOTrainer
from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment, think_format_reward

from mmreason.config.schema import RewardConfig
from mmreason.errors import ConfigError, PluginError, RewardFailure
from mmreason.policy.policy import Policy
from mmreason.records import Rollout, Row
from mmreason.reward_kit.pool import close_pools
from mmreason.reward_kit.trl_bridge import as_trl, from_trl
from mmreason.run_records import read_rollouts
from mmreason.scoring import REWARDS, RewardResult, RewardRunner, group_reward, load_reward_files, reward
from mmreason.train.grpo import grpo_arguments
from mmreason.train.run import training_rows

PACKAGE = __name__.split(".")[0]


@pytest.fixture(autouse=True)
def _rewards_of_a_test_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    REWARDS.names()
    monkeypatch.setattr(REWARDS, "_items", dict(REWARDS._items))


def rollout(text: str, group: int = 0, step: int = 0, **target: Any) -> Rollout:
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}
    row = Row(f"row/{group}", (message,), (), target, columns={"source": "test"})
    return Rollout(row, group, tuple(map(ord, text)), text, text, len(text), "stop", (), "relative_1000", step)


def runner(name: str, **options: Any) -> RewardRunner:
    return RewardRunner(RewardConfig.model_validate({f"{PACKAGE}/{name}": {}, "max_failure_share": 1.0, **options}))


# Theirs as ours


def test_trl_functions_score_as_they_do_in_trl() -> None:
    texts = ["<think>a</think>b", "b", "", "a b a b a b a b", "<think><think>a</think>" + "x" * 90]
    overlong, repetition = get_soft_overlong_punishment(80, 40), get_repetition_penalty_reward(2, -1.0)
    from_trl(range=(0.0, 1.0), source="trl")(think_format_reward)
    from_trl("overlong", range=(-1.0, 0.0))(overlong)
    from_trl("repeats")(repetition)
    conversations = [[{"role": "assistant", "content": text}] for text in texts]
    ids = [list(map(ord, text)) for text in texts]
    expected = {
        "think_format_reward": think_format_reward(conversations),
        "overlong": overlong(completion_ids=ids),
        "repeats": repetition(completions=conversations, completion_ids=ids),
    }
    for name, values in expected.items():
        table = runner(name).score([rollout(text) for text in texts])
        assert table.values[:, 0].tolist() == pytest.approx(values)
        assert len(set(values)) > 1
        assert not table.failures
    assert REWARDS.get(f"{PACKAGE}/think_format_reward").summary.startswith("Reward function that checks")


def test_a_trl_function_receives_what_trl_passes() -> None:
    seen: dict[str, Any] = {}

    @from_trl(columns={"solution": "answer"})
    def curious(
        prompts: Any, completions: Any, completion_ids: Any, log_metric: Any, log_extra: Any, **rest: Any
    ) -> Any:
        seen.update(prompts=prompts, completions=completions, completion_ids=completion_ids, **rest)
        log_metric("size", 3.0)
        log_extra("words", ["a"])
        return [None if completions[0][0]["content"] == "none" else 1]

    table = runner("curious").score([rollout("none", answer="x"), rollout("abc", step=6, answer="y")], progress=0.5)
    np.testing.assert_array_equal(table.values[:, 0], [np.nan, 1.0])
    assert not table.failures
    assert table.parts[f"{PACKAGE}/curious/size"].tolist() == [3.0, 3.0]
    assert seen["completions"] == [[{"role": "assistant", "content": "abc"}]]
    assert seen["prompts"][0][0]["content"][1]["text"] == "What?"
    assert seen["completion_ids"] == [[97, 98, 99]]
    assert seen["solution"] == seen["answer"] == ["y"]
    assert seen["source"] == ["test"]
    assert (seen["trainer_state"].global_step, seen["trainer_state"].max_steps) == (5, 10)
    assert callable(curious)


def test_plain_text_group_and_async_forms() -> None:
    @from_trl(conversational=False)
    def texts(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        return [float(prompt == "What?") + len(text) for prompt, text in zip(prompts, completions, strict=True)]

    @from_trl(per="group", conversational=False)
    async def rank(completions: list[str], **_: Any) -> list[float]:
        return [float(sum(len(other) < len(text) for other in completions)) for text in completions]

    rollouts = [rollout("abc"), rollout("a"), rollout("ab", 1)]
    assert runner("texts").score(rollouts).values[:, 0].tolist() == [4.0, 2.0, 3.0]
    assert runner("rank").score(rollouts).values[:, 0].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("returned", "kind"),
    [([1.0, 2.0], "exception"), (1.0, "exception"), (["high"], "not_a_number"), ([math.nan], "non_finite")],
)
def test_what_a_trl_function_returns_is_checked(returned: Any, kind: str) -> None:
    from_trl("odd")(lambda **_: returned)
    assert runner("odd").score([rollout("a")]).failures == {(f"{PACKAGE}/odd", kind): 1}


def test_a_missing_column_is_a_failure_that_names_it() -> None:
    from_trl("odd", columns={"solution": "answer"})(lambda **_: [1.0])
    table = runner("odd").score([rollout("a", boxes=[])])
    assert "the row has no 'answer'" in table.first_traceback[f"{PACKAGE}/odd"]
    with pytest.raises(PluginError, match="no name of its own"):
        from_trl()(functools.partial(think_format_reward))


@pytest.fixture
def isolated_file(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "bridged.py"
    path.write_text(
        "from mmreason.reward_kit.trl_bridge import from_trl\n"
        "@from_trl(isolated=True, deadline_s=0.4)\n"
        "def bridged(completions, **kwargs):\n"
        "    while completions[0][0]['content'] == 'loop':\n        pass\n"
        "    return [len(completions[0][0]['content'])]\n"
    )
    yield str(path)
    close_pools()


def test_a_trl_function_of_a_reward_file_may_be_isolated(isolated_file: str) -> None:
    section = {"files": [isolated_file], "bridged": {}, "max_failure_share": 1.0, "workers": 1}
    table = RewardRunner(RewardConfig.model_validate(section)).score([rollout("abc"), rollout("loop"), rollout("a")])
    np.testing.assert_array_equal(table.values[:, 0], [3.0, np.nan, 1.0])
    assert table.failures == {("bridged", "deadline"): 1}


# Ours as theirs


def test_a_reward_takes_the_form_of_trl() -> None:
    score = as_trl("exact", target={"answer": "solution"})
    values = score(
        prompts=["What?"] * 3,
        completions=["<answer>red</answer>", [{"role": "assistant", "content": "<answer>blue</answer>"}], "red"],
        completion_ids=[[1], [2], [3]],
        solution=["red", "red", "red"],
        trainer_state=SimpleNamespace(global_step=1, max_steps=4),
    )
    assert values == [1.0, 0.0, 0.0]
    assert score.__name__ == "exact"
    # The column `target`, as Arrow gives it back.
    completions = ["<answer>red</answer>"] * 2
    assert as_trl("exact")(
        prompts=["a", "b"], completions=completions, target=[{"answer": "red", "boxes": None}, {"answer": None}]
    ) == [1.0, None]


def test_boxes_are_read_in_the_frame_that_is_given() -> None:
    picture = Image.new("RGB", (200, 100))
    given: dict[str, Any] = {
        "prompts": [[{"role": "user", "content": "Where?"}]],
        "completions": ["<answer>[0, 0, 500, 1000]</answer>"],
        "images": [[picture]],
        "target": [{"boxes": [[0, 0, 100, 100]]}],
    }
    assert as_trl("iou", box_frame="relative_1000")(**given) == [1.0]
    assert as_trl("iou", box_frame="relative_1000", threshold=0.5)(**given | {"images": [picture]}) == [1.0]
    with pytest.raises(ConfigError, match="reads boxes"):
        as_trl("iou")
    with pytest.raises(ConfigError, match="image sizes"):
        as_trl("iou", box_frame="resized_px")


def test_boxes_in_pixels_of_the_model_need_the_policy(make_config: Callable[..., Any]) -> None:
    policy = Policy.load(make_config().model, device="cpu")
    picture = Image.new("RGB", (200, 100))
    width, height = policy.geometry_of(picture.size).model_size
    assert (width, height) != picture.size
    values = as_trl("iou", policy=policy)(
        prompts=["Where?"],
        completions=[f"<answer>[0, 0, {width}, {height}]</answer>"],
        images=[[picture]],
        target=[{"boxes": [[0, 0, 200, 100]]}],
    )
    assert values == [pytest.approx(1.0)]


def test_groups_parts_failures_and_progress_reach_trl() -> None:
    @group_reward()
    def rank(completion: list[str], rewards: Any, progress: float) -> list[RewardResult]:
        return [RewardResult(progress * len(text) / 10, {"right": rewards["exact"][0]}) for text in completion]

    @reward()
    def fragile(completion: str) -> float:
        return 1.0 / len(completion)

    logged: list[tuple[str, float]] = []
    columns: dict[str, Any] = {
        "target": [{"answer": "a"}] * 4,
        "trainer_state": SimpleNamespace(global_step=1, max_steps=2),
        "log_metric": lambda name, value: logged.append((name, value)),
    }
    name = f"{PACKAGE}/rank"
    score = as_trl(name, group_size=2, settings={"exact": {}})
    assert score(["p"] * 4, ["a", "ab", "abc", "abcd"], **columns) == [0.05, 0.1, 0.15, 0.2]
    assert logged == [(f"{name}/right", 0.0)]
    with pytest.raises(ConfigError, match="no whole groups of 2"):
        score(["p"] * 3, ["a"] * 3)
    with pytest.raises(ConfigError, match="group_size=num_generations"):
        as_trl(name)
    other = f"{PACKAGE}/fragile"
    logged.clear()
    lenient = as_trl(other, settings={"max_failure_share": 0.5})
    assert lenient(["p"] * 2, ["ab", ""], **columns) == [0.5, None]
    assert logged == [(f"{other}/failures/exception", 1.0)]
    with pytest.raises(RewardFailure, match="ZeroDivisionError"):
        as_trl(other)(["p"] * 2, ["ab", ""])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 2.0}, "reward_weights"),
        ({"gate": "exact > 0"}, "reward_weights"),
        ({"odd": 1}, r"reward\.exact\.odd: no such option"),
    ],
)
def test_options_of_another_kind_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        as_trl("exact", **options)


def test_a_dataset_without_the_target_is_refused() -> None:
    with pytest.raises(ConfigError, match="no column 'target'"):
        as_trl("exact")(["p"], ["a"], solution=["a"])
    with pytest.raises(ConfigError, match="no column 'soluton'"):
        as_trl("exact", target={"answer": "soluton"})(["p"], ["a"], solution=["a"])


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5))
def test_there_and_back_again_changes_nothing(texts: list[str]) -> None:
    def vowels(completions: Any, **_: Any) -> list[float]:
        return [sum(c[0]["content"].count(v) for v in "aeiou") / (1 + len(c[0]["content"])) for c in completions]

    kept = dict(REWARDS._items)
    try:
        from_trl("vowel_share")(vowels)
        conversations = [[{"role": "assistant", "content": text}] for text in texts]
        bridged = as_trl(f"{PACKAGE}/vowel_share")(["p"] * len(texts), conversations)
        assert bridged == vowels(conversations)
    finally:
        REWARDS._items.clear()
        REWARDS._items.update(kept)


def test_stock_grpo_trains_on_our_rewards(
    make_config: Callable[..., Any], make_trainer: Callable[..., Any], tmp_path: Path
) -> None:
    """One step of TRL's own trainer: the rewards, and then the weights, of ours bit for bit."""
    config = make_config(
        reward={"iou": {"weight": 0.5}}, trainer={"steps": 1}, model={"max_pixels": 12544, "min_pixels": 3136}
    )
    ours = make_trainer(config)
    ours.fit()
    policy = Policy.load(config.model, device="cpu")
    rows, _ = training_rows(config, policy)
    prepared = [rows.prepared(position) for position in range(config.rollout.prompts_per_step)]
    texts = ["".join(part.get("text", "") for part in item.messages[0]["content"]) for item in prepared]
    dataset = datasets.Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": text}] for text in texts],
            "images": [item.images for item in prepared],
            "target": [{"boxes": item.row.target["boxes"]} for item in prepared],
        },
        features=datasets.Features(
            {
                "prompt": [{"role": datasets.Value("string"), "content": datasets.Value("string")}],
                "images": [datasets.Image()],
                "target": {"boxes": [[datasets.Value("float64")]]},
            }
        ),
    )
    load_reward_files(config.reward.files)
    names = ("vowels", "format", "iou")
    stock = GRPOTrainer(
        model=policy.model,
        reward_funcs=[as_trl(name, policy=policy) for name in names],
        args=grpo_arguments(config, policy, [1.0, 0.0, 0.5], tmp_path / "stock"),
        train_dataset=dataset,
        processing_class=policy.processor,
    )
    stock.train()
    records = list(read_rollouts(ours.folder.rollouts))
    assert list(stock.reward_func_names) == list(names)
    for name in names:
        assert stock._logs["rewards"][name] == pytest.approx([record["rewards"][name] for record in records])
    assert len({record["reward"] for record in records}) > 1
    weights, theirs = ours.model.state_dict(), stock.model.state_dict()
    assert all(bool((weights[name] == theirs[name]).all()) for name in theirs)
