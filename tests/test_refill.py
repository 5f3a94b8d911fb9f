"""Dynamic sampling: groups that teach nothing are replaced, in real training steps on real tiny models."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_grpo import RUN_SCRIPT
from test_prompt_once_trainer import FORCE, Rows, disturb, metrics_of, shared_trainer
from transformers import set_seed

from mmreason.errors import ConfigError
from mmreason.objectives.settings import check_objective
from mmreason.reward_kit.composition import Condition
from mmreason.run_records import read_metrics, read_rollouts
from mmreason.train.checkpoints import find_checkpoint
from mmreason.train.grpo import MMReasonGRPOTrainer
from mmreason.train.refill import FIRST_REFILL_POSITION, _Round, joined_outputs

#: Completions of prompts with an odd number, or of any, are all worth the same.
REWARDS = '''
from mmreason.scoring import reward

@reward()
def even_only(rollout) -> float:
    """Letters that differ, for every other prompt."""
    if int(rollout.row.id.split("/")[1]) % 2:
        return 0.5
    return sum(map(ord, rollout.text)) % 97 / 96

@reward()
def last_digit(rollout) -> float:
    """Letters that differ, for two of three prompts."""
    if rollout.group % 3 == 0:
        return 0.5
    return sum(map(ord, rollout.text)) % 97 / 96

@reward()
def same(completion) -> float:
    """Always 1."""
    return 1.0
'''


@pytest.fixture(scope="session")
def parity_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("rewards") / "parity.py"
    path.write_text(REWARDS)
    return str(path)


@pytest.fixture
def make(make_config: Callable[..., Any], parity_file: str, vowels_file: str) -> Callable[..., MMReasonGRPOTrainer]:
    def trainer(name: str = "run", reward: str = "even_only", rounds: int = 3, **sections: Any) -> MMReasonGRPOTrainer:
        rollout = {"prompts_per_step": 4, "refill_rounds": rounds, **sections.pop("rollout", {})}
        rewards = {"files": (parity_file, vowels_file), "vowels": {"weight": 0.0}, reward: {}}
        config = make_config(name=name, policy=FORCE, rollout=rollout, reward=rewards, **sections)
        return shared_trainer(config, rows=Rows(1, 2))

    return trainer


def test_groups_without_spread_are_replaced(make: Callable[..., MMReasonGRPOTrainer]) -> None:
    trainer = make(objective={"terms": {"perception_kl": {"coefficient": 0.1}}})
    set_seed(0)
    trainer.fit()
    for line in metrics_of(trainer):
        assert line["zero_variance_groups"] == 0.0
        assert line["refill/rounds"] >= 1
        assert line["refill/missing_groups"] == 0
        assert line["refill/sampled_groups"] > 4
    written = list(read_rollouts(trainer.folder.rollouts))
    assert len(written) == 2 * 4 * 4
    groups = {(line["step"], line["group"]) for line in written}
    assert any(group >= FIRST_REFILL_POSITION for _, group in groups)
    assert all(group % 2 == 0 for _, group in groups)
    assert len({group for _, group in groups}) == len(groups) == 2 * 4, "no prompt twice"
    by_group: dict[Any, list[dict[str, Any]]] = {}
    for line in written:
        by_group.setdefault((line["step"], line["group"]), []).append(line)
    for lines in by_group.values():
        assert len(lines) == 4
        assert sum(line["advantage"] for line in lines) == pytest.approx(0, abs=1e-4)
        best = max(lines, key=lambda line: line["reward"])
        assert best["advantage"] == max(line["advantage"] for line in lines) > 0


def test_rounds_are_bounded_and_the_batch_keeps_its_size(make: Callable[..., MMReasonGRPOTrainer]) -> None:
    trainer = make(reward="same", rounds=2)
    trainer.fit()
    for line in metrics_of(trainer):
        assert (line["refill/rounds"], line["refill/sampled_groups"], line["refill/missing_groups"]) == (2, 12, 4)
        assert line["loss"] == 0.0
    assert len(list(read_rollouts(trainer.folder.rollouts))) == 2 * 4 * 4


def test_replaced_groups_are_scored_over_their_own_prompts(make: Callable[..., MMReasonGRPOTrainer]) -> None:
    """Log-probs of the joined batch equal those of a fresh pass over each row's own prompt."""
    trainer = make()
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    torch.manual_seed(1)
    batch = trainer._generate_and_score_completions([{"position": p} for p in range(4) for _ in range(4)])
    assert batch["num_items_in_batch"] == batch["completion_mask"].sum()
    with torch.no_grad():
        told, _ = trainer._log_probs(trainer.model, batch)
    prepared = [trainer.rows.prepared(rollout.group) for rollout in trainer.last_rollouts]
    for row in (0, 5, 15):
        ids = list(trainer.last_rollouts[row].token_ids)
        inputs = trainer.policy.batch([prepared[row]])
        length = inputs["input_ids"].shape[1]
        tokens = torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1)
        types = torch.cat([inputs["mm_token_type_ids"], torch.zeros(1, len(ids), dtype=torch.long)], dim=1)
        with torch.no_grad():
            logits = trainer.policy.model(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                mm_token_type_ids=types,
                pixel_values=inputs["pixel_values"],
                image_grid_thw=inputs["image_grid_thw"],
            ).logits
        expected = logits[0, length - 1 : -1].log_softmax(-1).gather(1, torch.tensor(ids).unsqueeze(1))[:, 0]
        assert torch.allclose(told[row, : len(ids)], expected, atol=1e-4)


def test_what_teaches_is_a_matter_of_totals_or_of_being_correct(make: Callable[..., MMReasonGRPOTrainer]) -> None:
    trainer = make(reward="same", rollout={"refill_by": "correct"})
    trainer.correct = Condition.parse("vowels > 0.5")
    row = trainer.policy.rollout(trainer.rows.prepared(0).row, 0, [], trainer.rows.prepared(0).geometry, 1)
    vowels = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.6, 1.0, 0.6, 1.0])
    values = torch.stack([vowels if name == "vowels" else 1 - vowels for name in trainer.reward_func_names], dim=1)
    found = _Round({}, [replace(row, group=7 + n // 4) for n in range(8)], values, torch.arange(8.0))
    assert trainer._informative(found).tolist() == [True] * 4 + [False] * 4
    equal = replace(found, total=torch.ones(8))
    assert trainer._informative(equal).tolist() == [True] * 4 + [False] * 4
    rollout = trainer.run_config.rollout.model_copy(update={"refill_by": "total"})
    trainer.run_config = trainer.run_config.model_copy(update={"rollout": rollout})
    assert trainer._informative(found).all()
    assert not trainer._informative(equal).any()


def test_a_continued_run_draws_the_same_prompts(make: Callable[..., MMReasonGRPOTrainer]) -> None:
    whole = make("whole", trainer={"steps": 3, "save_every_steps": 1})
    set_seed(0)
    whole.fit()
    again = make("again", trainer={"steps": 3, "save_every_steps": 1})
    set_seed(0)
    again.fit()
    for step in (2, 3):
        shutil.rmtree(again.folder.path / f"checkpoint-{step}")
    resumed = make("again", trainer={"steps": 3, "save_every_steps": 1})
    resumed.folder.truncate_after(1)
    resumed.fit(find_checkpoint("auto", resumed.folder))
    ignored = ("step_seconds", "seconds/")
    for one, other in zip(metrics_of(whole), metrics_of(resumed), strict=True):
        assert {k: v for k, v in one.items() if not k.startswith(ignored)} == {
            k: v for k, v in other.items() if not k.startswith(ignored)
        }


# ---------------------------------------------------------------------- replay


def test_stored_groups_take_the_place_of_dull_ones(make: Callable[..., MMReasonGRPOTrainer]) -> None:
    trainer = make(rounds=0, rollout={"replay_groups": 6, "replay_max_age": 3}, trainer={"steps": 4})
    set_seed(0)
    trainer.fit()
    told = metrics_of(trainer)
    assert [line["replay/groups"] for line in told] == [0, 2, 2, 2]
    assert [line["zero_variance_groups"] for line in told] == [0.5, 0, 0, 0]
    written = list(read_rollouts(trainer.folder.rollouts))
    assert len(written) == 4 * 4 * 4
    texts: dict[int, set[Any]] = {}
    for line in written:
        texts.setdefault(line["step"], set()).add((line["id"], line["completion"], line["reward"], line["advantage"]))
    # The two prompts of step 1 that differed come back, with the completions, rewards and advantages they had.
    assert len([line for line in texts[2] if line in texts[1]]) >= 8


def test_replayed_completions_keep_the_log_probs_they_were_sampled_with(
    make: Callable[..., MMReasonGRPOTrainer],
) -> None:
    trainer = make(rounds=0, rollout={"replay_groups": 6})
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()

    def batch_at(step: int) -> dict[str, Any]:
        trainer.state.global_step = step
        return trainer._generate_and_score_completions([{"position": 4 * step + p} for p in range(4) for _ in range(4)])

    first = batch_at(0)
    disturb(trainer.model)
    second = batch_at(1)
    with torch.no_grad():
        now, _ = trainer._log_probs(trainer.model, second)
    mask = second["completion_mask"].bool()
    assert second["num_items_in_batch"] == mask.sum()
    apart = (now - second["old_per_token_logps"]).abs()
    replayed = torch.tensor([rollout.group < 4 for rollout in trainer.last_rollouts])
    assert replayed.sum() == 8
    assert float(apart[~replayed][mask[~replayed]].max()) < 1e-5
    assert float(apart[replayed][mask[replayed]].max()) > 1e-2
    old = {tuple(ids[:n]): row for row, (ids, n) in _sampled(first).items()}
    for row, (ids, length) in _sampled(second).items():
        if replayed[row]:
            before = first["old_per_token_logps"][old[tuple(ids[:length])], :length]
            assert torch.equal(second["old_per_token_logps"][row, :length], before)
    assert torch.isfinite(trainer._compute_loss(trainer.model, second))


def _sampled(batch: dict[str, Any]) -> dict[int, tuple[list[int], int]]:
    lengths = batch["completion_mask"].sum(dim=1).tolist()
    return {row: (ids, n) for row, (ids, n) in enumerate(zip(batch["completion_ids"].tolist(), lengths, strict=True))}


def test_the_buffer_goes_with_the_checkpoint(make: Callable[..., MMReasonGRPOTrainer]) -> None:
    options: dict[str, Any] = {
        "rounds": 0,
        "rollout": {"replay_groups": 6},
        "trainer": {"steps": 3, "save_every_steps": 1},
    }
    whole, again = make("whole", **copy.deepcopy(options)), make("again", **copy.deepcopy(options))
    for trainer in (whole, again):
        set_seed(0)
        trainer.fit()
    for step in (2, 3):
        shutil.rmtree(again.folder.path / f"checkpoint-{step}")
    resumed = make("again", **copy.deepcopy(options))
    resumed.folder.truncate_after(1)
    resumed.fit(find_checkpoint("auto", resumed.folder))
    for one, other in zip(metrics_of(whole), metrics_of(resumed), strict=True):
        for name in ("loss", "reward", "grad_norm", "replay/groups"):
            assert one.get(name) == other.get(name), name


def test_joining_pads_prompts_left_and_completions_right() -> None:
    outputs = [
        {
            "prompt_ids": torch.tensor([[1, 2]]),
            "completion_ids": torch.tensor([[3]]),
            "advantages": torch.tensor([0.5]),
        },
        {
            "prompt_ids": torch.tensor([[4]]),
            "completion_ids": torch.tensor([[5, 6]]),
            "advantages": torch.tensor([1.0]),
        },
    ]
    joined = joined_outputs(outputs, 9)
    assert joined["prompt_ids"].tolist() == [[1, 2], [9, 4]]
    assert joined["completion_ids"].tolist() == [[3, 9], [5, 6]]
    assert joined["advantages"].tolist() == [0.5, 1.0]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"rollout": {"refill_by": "correct"}}, "changes nothing"),
        ({"rollout": {"refill_rounds": 2, "refill_by": "correct"}}, r"set reward\.correct"),
        ({"rollout": {"refill_rounds": 2}, "policy": {"prompt_once": "off"}}, "needs shared prompts"),
        ({"rollout": {"refill_rounds": 2}, "objective": {"scale_rewards": "batch"}}, "another number"),
        ({"rollout": {"replay_groups": 2}, "objective": {"scale_rewards": "batch"}}, "replayed from by another number"),
    ],
)
def test_contradictions_are_refused(sections: dict[str, Any], message: str, make_config: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=message):
        check_objective(make_config(name="run", **sections))


@pytest.mark.slow
def test_two_processes_refill_together(
    make_config: Callable[..., Any], parity_file: str, vowels_file: str, tmp_path: Path
) -> None:
    """Each process fills its own groups; prompts are never drawn twice, weights stay the same on both."""
    config = make_config(
        policy=FORCE,
        model={"name": "tiny"},
        rollout={"prompts_per_step": 4, "group_size": 4, "refill_rounds": 4, "max_new_tokens": 24},
        reward={"files": (parity_file, vowels_file), "vowels": {"weight": 0.0}, "last_digit": {}},
        objective={
            "terms": {"perception_kl": {"coefficient": 0.01}},
            "advantages": {"difficulty_weight": {"reward": "last_digit"}},
        },
    )
    (tmp_path / "run.py").write_text(RUN_SCRIPT)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(tmp_path / "run.py"), str(tmp_path / "config.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "runs" / "run"
    lines = list(read_metrics(run / "metrics.jsonl"))
    assert [line["refill/missing_groups"] for line in lines] == [0, 0]
    assert all(line["refill/sampled_groups"] > 4 for line in lines)
    assert all(line["objective/perception_kl/kl"] > 0 for line in lines)
    records = list(read_rollouts(run / "rollouts.jsonl"))
    groups = [record["group"] for record in records]
    assert len(records) == 2 * 4 * 4
    assert all(groups.count(group) == 4 for group in set(groups))
    assert len(set(groups)) == 8
    for group in set(groups):
        members = [record for record in records if record["group"] == group]
        scores = np.array([record["reward"] for record in members])
        expected = np.exp(1 - scores.mean()) * (scores - scores.mean()) / (scores.std(ddof=1) + 1e-4)
        assert [record["advantage"] for record in members] == pytest.approx(expected, abs=1e-3)
