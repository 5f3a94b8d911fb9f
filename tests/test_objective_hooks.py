"""Loss terms, masked views, transforms and our own policy losses inside the real GRPO trainer, on real tiny models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_prompt_once_trainer import FORCE, OFF, Rows, disturb, metrics_of, shared_trainer
from transformers import TrainerCallback, set_seed

from benchmarks.step import Meter
from mmreason.errors import ConfigError, PluginError
from mmreason.objectives.advantages import difficulty_weight, group_mean
from mmreason.objectives.perception import perception_kl_per_token
from mmreason.objectives.registry import ADVANTAGES, LOSS_TERMS, AdvantageSpec
from mmreason.objectives.settings import ActiveAdvantage, check_objective
from mmreason.plugin_functions import PluginOptions
from mmreason.train.grpo import MMReasonGRPOTrainer
from mmreason.train.objective_hooks import scheduled
from mmreason.train.run import run_train

PAPO = {"perception_kl": {"coefficient": 0.5}, "double_entropy": {"coefficient": 0.2}}
CORRECT = {"vowels": {}, "correct": "vowels > 0.2"}


def generation_batch(trainer: MMReasonGRPOTrainer) -> dict[str, Any]:
    """The first prompts' batch, as the first step of a run would make it."""
    rollout = trainer.run_config.rollout
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    torch.manual_seed(3)
    positions = [p for p in range(rollout.prompts_per_step) for _ in range(rollout.group_size)]
    return trainer._generate_and_score_completions([{"position": position} for position in positions])


def trainer_of(make_config: Callable[..., Any], name: str = "run", **sections: Any) -> MMReasonGRPOTrainer:
    sections = {"policy": FORCE, "rollout": {"prompts_per_step": 3}, **sections}
    return shared_trainer(make_config(name=name, **sections), rows=Rows(1, 2, 1))


def gradient_of(trainer: MMReasonGRPOTrainer, loss: torch.Tensor) -> torch.Tensor:
    trainer.model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


# ---------------------------------------------------------------------- the masked view


def test_masked_view_keeps_text_and_grid_and_changes_pixels(make_config: Callable[..., Any]) -> None:
    trainer = trainer_of(make_config, objective={"terms": PAPO})
    generation_batch(trainer)
    seen, masked = trainer._store, trainer._masked_store
    assert masked is not None
    assert [prompt.ids for prompt in masked.prompts] == [prompt.ids for prompt in seen.prompts]
    for prompt, view in zip(seen.prompts, masked.prompts, strict=True):
        assert torch.equal(prompt.positions, view.positions)
        for one, other in zip(prompt.pictures, view.pictures, strict=True):
            assert seen.pictures[one].grid == masked.pictures[other].grid
            assert not torch.equal(seen.pictures[one].patches, masked.pictures[other].patches)


@pytest.mark.parametrize("policy", [FORCE, OFF], ids=["shared", "stock"])
@pytest.mark.parametrize("gradient", [False, True], ids=["once", "again"])
def test_without_a_picture_nothing_is_masked(
    policy: dict[str, str], gradient: bool, make_config: Callable[..., Any]
) -> None:
    """No second pass is made, and the term is exactly 0 with its gradient, whatever the estimator."""
    terms = {"perception_kl": {"coefficient": 5.0, "kind": "plain"}}
    with_term, without = (
        shared_trainer(
            make_config(name=name, policy=policy, rollout={"prompts_per_step": 2}, objective=objective), rows=Rows(0)
        )
        for name, objective in (("with", {"mask": {"gradient": gradient}, "terms": terms}), ("without", {}))
    )
    passes = Counter[str]()
    with_term._masked_pass = lambda *_: passes.update(["masked"])  # type: ignore[assignment, method-assign]
    batches = [generation_batch(trainer) for trainer in (with_term, without)]
    assert with_term._masked_store is None
    assert torch.equal(batches[0]["completion_ids"], batches[1]["completion_ids"])
    gradients = []
    for trainer, batch in zip((with_term, without), batches, strict=True):
        batch["advantages"] = torch.linspace(-1, 1, len(batch["advantages"]))
        gradients.append(gradient_of(trainer, trainer._compute_loss(trainer.model, batch)))
    assert not passes
    assert torch.equal(gradients[0], gradients[1])
    assert float(gradients[1].norm()) > 1e-3
    assert float(with_term._term_sums["perception_kl/kl"]) == 0.0
    assert float(with_term._term_sums["perception_kl/loss"]) == 0.0


def test_steps_with_and_without_pictures_follow_each_other(make_config: Callable[..., Any]) -> None:
    """The masked pass, by its tokens: none, some, none."""
    sections = {"objective": {"terms": PAPO}, "policy": FORCE, "rollout": {"prompts_per_step": 1}}
    trainer = shared_trainer(make_config(name="run", trainer={"steps": 3}, **sections), rows=Rows(0, 1, 0))
    meter, passed = Meter(trainer.clock), []
    meter.watch(trainer.model)
    trainer.add_callback(_EachStep(lambda: passed.append(meter.tokens["reference"])))
    trainer.fit()
    assert passed[0] == 0 < passed[1] == passed[2]
    told = [line["objective/perception_kl/kl"] for line in metrics_of(trainer)]
    assert told[0] == told[2] == 0.0


class _EachStep(TrainerCallback):
    def __init__(self, tell: Callable[[], None]) -> None:
        self.tell = tell

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.tell()


def test_one_mask_a_prompt_and_another_at_another_step(make_config: Callable[..., Any]) -> None:
    trainer = trainer_of(make_config, objective={"terms": PAPO})
    views = [trainer.rows.masked(0, 0.6, 14, [0, step, 0]).images[0].tobytes() for step in (0, 0, 1)]
    assert views[0] == views[1] != views[2]
    generation_batch(trainer)
    assert trainer._masked_store is not None
    assert len(trainer._masked_store.prompts) == trainer.run_config.rollout.prompts_per_step
    patches = []
    for step in (0, 0, 1):
        trainer.state.global_step = step
        trainer._mask_images([0, 0, 1])
        patches.append([picture.patches for picture in trainer._masked_store.pictures.values()])
    assert all(torch.equal(one, other) for one, other in zip(patches[0], patches[1], strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(patches[0], patches[2], strict=True))


@pytest.mark.parametrize("policy", [FORCE, OFF], ids=["shared", "stock"])
def test_masking_nothing_adds_nothing(policy: dict[str, str], make_config: Callable[..., Any]) -> None:
    """The divergence is exactly 0 with its gradient where the masked images are the images."""
    options = {"mask": {"probability": 0.0}, "terms": {"perception_kl": {"coefficient": 7.0}}}
    with_term, without = (
        trainer_of(make_config, name, policy=policy, objective=objective)
        for name, objective in (("with", options), ("without", {}))
    )
    batches = [generation_batch(trainer) for trainer in (with_term, without)]
    assert torch.equal(batches[0]["completion_ids"], batches[1]["completion_ids"])
    gradients = []
    for trainer, batch in zip((with_term, without), batches, strict=True):
        batch["advantages"] = torch.linspace(-1, 1, len(batch["advantages"]))
        gradients.append(gradient_of(trainer, trainer._compute_loss(trainer.model, batch)))
    # Not bitwise on the stock path: its pass without gradient is cut into batches of another size.
    assert float((gradients[0] - gradients[1]).norm()) <= 1e-6 * float(gradients[1].norm())
    assert float(gradients[1].norm()) > 1e-3
    assert abs(float(with_term._term_sums["perception_kl/kl"])) < 1e-9


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_shared_prompts_and_stock_path_give_the_same_terms(family: str, make_config: Callable[..., Any]) -> None:
    shared, stock = (
        trainer_of(make_config, name, family=family, policy=policy, objective={"terms": PAPO})
        for name, policy in (("shared", FORCE), ("stock", OFF))
    )
    batches = []
    for trainer in (shared, stock):
        disturb(trainer.model)
        batches.append(generation_batch(trainer))
    told, batch = batches
    assert torch.equal(told["completion_ids"], batch["completion_ids"])
    kept = told["completion_mask"].bool()
    assert float((told["masked_log_probs"] - batch["masked_log_probs"])[kept].abs().max()) < 1e-5
    losses = [t._compute_loss(t.model, b) for t, b in ((shared, told), (stock, batch))]
    one, other = gradient_of(shared, losses[0]), gradient_of(stock, losses[1])
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    assert float((one - other).norm()) <= 1e-4 * float(other.norm())


def test_perception_term_is_the_formula(make_config: Callable[..., Any]) -> None:
    """`loss with the term - loss without = - coefficient × mean K`, with K worked out here."""
    trainer = trainer_of(make_config, objective={"terms": {"perception_kl": {"coefficient": 0.5}}})
    disturb(trainer.model)
    batch = generation_batch(trainer)
    whole = trainer._compute_loss(trainer.model, batch)
    assert trainer._newest_pass is not None
    log_probs = trainer._newest_pass[0].detach()
    divergence = perception_kl_per_token(log_probs, batch["masked_log_probs"])
    mask = batch["completion_mask"].bool()
    mean = divergence[mask].sum() / mask.sum()
    trainer.terms = []
    alone = trainer._compute_loss(trainer.model, batch)
    assert float(mean) > 1e-4
    assert (whole - alone).item() == pytest.approx(-0.5 * float(mean), rel=1e-4)


def test_gradient_through_the_masked_pass_is_optional(make_config: Callable[..., Any]) -> None:
    """As released the masked entropy moves no weight; worked out again in the update, it does."""
    gradients = []
    for gradient in (False, True):
        options = {"mask": {"gradient": gradient}, "terms": {"double_entropy": {"original": 0.0, "masked": 1.0}}}
        trainer = trainer_of(make_config, f"run{gradient}", objective=options)
        batch = generation_batch(trainer)
        batch["advantages"] = torch.zeros_like(batch["advantages"])
        gradients.append(float(gradient_of(trainer, trainer._compute_loss(trainer.model, batch)).norm()))
    assert gradients[0] == 0.0
    assert gradients[1] > 1e-3


# ---------------------------------------------------------------------- micro-batches and steps


@pytest.mark.parametrize("policy", [FORCE, OFF], ids=["shared", "stock"])
def test_micro_batches_add_up_to_the_step(policy: dict[str, str], make_config: Callable[..., Any]) -> None:
    """Terms, losses and their metrics are those of the whole step, however it is cut."""
    found = []
    for micro in (None, 4):
        trainer = trainer_of(
            make_config,
            f"micro{micro}",
            policy=policy,
            rollout={"prompts_per_step": 2, "group_size": 4},
            trainer={"steps": 1, "micro_batch_size": micro},
            objective={"loss_type": "dapo", "terms": {**PAPO, "nll_on_correct": {"coefficient": 0.1}}},
            reward=CORRECT,
        )
        disturb(trainer.model)
        set_seed(0)
        trainer.fit()
        weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        found.append((metrics_of(trainer)[-1], weights))
    (whole, weights), (cut, cut_weights) = found
    for name in (
        "loss",
        "objective/perception_kl/kl",
        "objective/double_entropy/entropy",
        "objective/nll_on_correct/nll",
    ):
        assert cut[name] == pytest.approx(whole[name], rel=1e-4), name
    assert whole["objective/perception_kl/kl"] > 1e-4
    assert float((weights - cut_weights).norm()) <= 1e-4 * float(weights.norm())


@pytest.mark.parametrize("loss_type", ["trpa", "filtered_nll"])
def test_own_policy_losses_train_in_micro_batches(loss_type: str, make_config: Callable[..., Any]) -> None:
    found = []
    for micro in (None, 4):
        trainer = trainer_of(
            make_config,
            f"micro{micro}",
            rollout={"prompts_per_step": 2, "group_size": 4},
            trainer={"steps": 1, "micro_batch_size": micro},
            objective={"loss_type": loss_type, "trpa": {"format_reward": "vowels"}},
            reward=CORRECT,
        )
        disturb(trainer.model)
        set_seed(0)
        before = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
        trainer.fit()
        after = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        assert float((after - before).norm()) > 0
        found.append((metrics_of(trainer)[0]["loss"], after))
    (whole, weights), (cut, cut_weights) = found
    assert cut == pytest.approx(whole, rel=1e-4)
    assert float((weights - cut_weights).norm()) <= 1e-4 * float(weights.norm())


def test_trpa_at_the_reference_loses_ln_2(make_config: Callable[..., Any]) -> None:
    """Before the first update all scores are 0: every pair, and every completion alone, costs ln 2."""
    trainer = trainer_of(
        make_config, objective={"loss_type": "trpa", "trpa": {"format_reward": "vowels"}}, reward=CORRECT
    )
    batch = generation_batch(trainer)
    assert set(batch["level"].tolist()) <= {1, 2, 3, 4}
    assert trainer._compute_loss(trainer.model, batch).item() == pytest.approx(np.log(2), rel=1e-4)


def test_trpa_reads_levels_and_the_policy_that_sampled(make_config: Callable[..., Any]) -> None:
    options = {"loss_type": "trpa", "trpa": {"format_reward": "vowels", "kl_coefficient": 1.0}}
    trainer = trainer_of(make_config, objective=options, reward=CORRECT)
    batch = generation_batch(trainer)
    facts, count = trainer.step_facts(), len(batch["level"])
    form, answered, correct = np.ones(count), [True] * count, np.ones(count)
    form[3], answered[2], correct[1:4] = 0.0, False, (0.0, 0.0, np.nan)
    told = replace(facts, values={"vowels": form}, answered=answered, correct=correct)
    trainer.step_facts = lambda: told  # type: ignore[method-assign]
    batch = trainer.complete_objective(batch)
    assert batch["level"].tolist() == [1, 2, 3, 4] + [1] * (count - 4)
    # What cannot be told is not correct.
    assert batch["is_correct"].tolist() == [True, False, False, False] + [True] * (count - 4)
    before = trainer._compute_loss(trainer.model, batch).item()
    assert trainer._newest_pass is not None
    batch["old_per_token_logps"] = trainer._newest_pass[0].detach() - 0.5
    after = trainer._compute_loss(trainer.model, batch).item()
    assert after - before == pytest.approx(np.exp(-0.5) - 0.5, rel=1e-3)


def test_nll_counts_the_tokens_of_correct_completions_only(make_config: Callable[..., Any]) -> None:
    trainer = trainer_of(make_config, objective={"terms": {"nll_on_correct": {"coefficient": 0.1}}}, reward=CORRECT)
    batch = generation_batch(trainer)
    batch["is_correct"] = torch.arange(len(batch["is_correct"])) % 3 == 0
    mask = batch["completion_mask"] * batch["is_correct"].unsqueeze(1)
    trainer._correct_tokens = mask.sum().float()
    trainer._compute_loss(trainer.model, batch)
    assert trainer._newest_pass is not None
    expected = -(trainer._newest_pass[0].detach() * mask).sum() / mask.sum()
    assert float(trainer._term_sums["nll_on_correct/nll"]) == pytest.approx(float(expected), rel=1e-5)


def test_filtered_nll_is_the_formula(make_config: Callable[..., Any]) -> None:
    trainer = trainer_of(make_config, objective={"loss_type": "filtered_nll"}, reward={"vowels": {}})
    batch = generation_batch(trainer)
    loss = trainer._compute_loss(trainer.model, batch).item()
    assert trainer._newest_pass is not None
    per_row = (trainer._newest_pass[0].detach() * batch["completion_mask"]).sum(dim=1)
    assert loss == pytest.approx(-float((batch["total_reward"] * per_row).mean()), rel=1e-5)
    assert loss > 0
    # What is worth less than nothing, or nobody knows what, is passed over and not pushed down.
    batch["total_reward"] = torch.where(torch.arange(len(per_row)) % 2 == 0, -1.0, torch.nan)
    assert trainer._compute_loss(trainer.model, batch).item() == 0.0


def test_beta_falls_as_a_cosine(make_config: Callable[..., Any]) -> None:
    trainer = trainer_of(make_config, objective={"beta": 0.04, "beta_schedule": "cosine"}, trainer={"steps": 4})
    trainer.fit()
    told = [line["objective/beta"] for line in metrics_of(trainer)]
    assert told == pytest.approx([0.04, 0.034142, 0.02, 0.005858], abs=1e-6)
    assert [scheduled(0.04, "linear", progress) for progress in (0.0, 0.25, 1.0)] == pytest.approx([0.04, 0.03, 0.0])
    assert [scheduled(0.04, "constant", progress) for progress in (0.0, 1.0)] == [0.04, 0.04]


# ---------------------------------------------------------------------- advantages


def test_transforms_see_whole_groups_and_weigh_them(make_config: Callable[..., Any]) -> None:
    weights = {"dataset_weight": {"default": 3.0}, "difficulty_weight": {"reward": "vowels"}}
    plain, weighed = (
        trainer_of(make_config, name, objective={"advantages": advantages}, reward={"vowels": {}})
        for name, advantages in (("plain", {}), ("weighed", weights))
    )
    before, after = generation_batch(plain), generation_batch(weighed)
    told = weighed.step_facts()
    vowels = torch.from_numpy(told.values["vowels"])
    weight = difficulty_weight(group_mean(vowels, after["group_number"]))
    assert float(before["advantages"].abs().max()) > 0.1
    assert torch.allclose(after["advantages"], (3 * before["advantages"] * weight).float(), atol=1e-5)
    weighed.step_facts = lambda: replace(told, values={"vowels": 2 + told.values["vowels"]})  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=r"objective\.advantages\.difficulty_weight: .* reward in 0\.\.1"):
        weighed.complete_objective(after)


def test_a_transform_that_returns_nonsense_is_named(make_config: Callable[..., Any]) -> None:
    trainer = trainer_of(make_config)
    spec = AdvantageSpec("short", lambda advantages: advantages[:1], ("advantages",), PluginOptions, "")
    trainer.transforms = [ActiveAdvantage(spec, PluginOptions())]
    with pytest.raises(PluginError, match=r"objective\.advantages\.short returned \[1\] numbers"):
        generation_batch(trainer)


# ---------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"objective": {"terms": {"perception_lk": {}}}}, "Did you mean 'perception_kl'"),
        ({"objective": {"terms": {"perception_kl": {"gamma": 1}}}}, r"objective\.terms\.perception_kl\.gamma: no such"),
        ({"objective": {"terms": {"perception_kl": {"coefficient": -1}}}}, "greater than or equal to 0"),
        ({"objective": {"terms": {"nll_on_correct": {}}}}, r"set reward\.correct"),
        ({"objective": {"advantages": {"difficulty_weight": {"reward": "vowel"}}}}, "Did you mean 'vowels'"),
        ({"objective": {"advantages": {"pass_rate_weight": {}}}}, r"set reward\.correct"),
        ({"objective": {"beta_schedule": "cosine"}}, r"while objective\.beta=0"),
        ({"objective": {"loss_type": "filtered_nll", "delta": 2.0}}, r"does not read objective\.delta=2\.0"),
        (
            {"objective": {"loss_type": "trpa", "trpa": {"format_reward": "form"}}},
            r"trpa\.format_reward=form: no such reward",
        ),
        (
            {"objective": {"loss_type": "trpa"}, "trainer": {"micro_batch_size": 2}, "rollout": {"group_size": 4}},
            "cuts groups",
        ),
        ({"objective": {"loss_type": "filtered_nll", "epsilon": 0.1}}, r"does not read objective\.epsilon=0\.1"),
        ({"objective": {"loss_type": "filtered_nll", "scale_rewards": "none"}}, r"objective\.scale_rewards=none"),
        (
            {"objective": {"loss_type": "filtered_nll", "advantages": {"dataset_weight": {"default": 2}}}},
            "uses no advantages",
        ),
        ({"objective": {"loss_type": "grpo", "trpa": {"beta": 0.3}}}, r"objective\.trpa changes nothing"),
        ({"objective": {"terms": PAPO}, "task": {"name": "random_calculation"}}, "task=random_calculation have none"),
        ({"objective": {"advantages": {"dataset_weight": {"weights": {"a": -1}}}}}, "greater than or equal to 0"),
        (
            {"objective": {"advantages": {"pass_rate_band": {"low": 0.9, "high": 0.2}}}, "reward": CORRECT},
            r"low=0\.9 must be below high=0\.2",
        ),
        (
            {"objective": {"advantages": {"pass_rate_weight": {"low": 2, "high": 1}}}, "reward": CORRECT},
            "low=2 must be below high=1",
        ),
    ],
)
def test_contradictions_are_refused(sections: dict[str, Any], message: str, make_config: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=message):
        check_objective(make_config(name="run", **{"reward": {"vowels": {}}, **sections}))


def test_every_built_in_says_what_it_is() -> None:
    for _, spec in [*LOSS_TERMS, *ADVANTAGES]:
        assert spec.summary
        assert spec.options({}) is not None


def test_what_the_guard_says_is_shown_while_the_run_goes_on(
    make_config: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit that every run passes: the text of the guard on the screen, and the cut on the page."""
    guard = {"max_perception_kl": 1e-12, "patience_steps": 1, "cooldown_steps": 1}
    config = make_config(objective={"terms": PAPO, "guard": guard}, trainer={"steps": 2})
    run_train(config, config.model_dump(mode="json"))
    alarms = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ALARM")]
    for step, factor in ((1, "0.5"), (2, "0.25")):
        text = f"step {step}: the perception term is collapsing (perception_kl"
        (line,) = [line for line in alarms if text in line]
        assert f"cut to {factor} of what is set" in line
    page = (tmp_path / "runs" / "run" / "report.html").read_text(encoding="utf-8")
    assert "perception term collapses" in page
    assert "2 times" in page


def test_guard_state_goes_with_the_checkpoint(make_config: Callable[..., Any], tmp_path: Path) -> None:
    trainer = trainer_of(make_config, objective={"terms": PAPO})
    assert trainer.guard is not None
    trainer.end_objective_step(1.0, 0.0)
    trainer.guard.factor = 0.25
    other = trainer_of(make_config, "other", objective={"terms": PAPO})
    other.load_objective_state(trainer.objective_state())
    assert other.coefficient(other.terms[0]) == pytest.approx(0.25 * 0.5)
    # PAPO's entropy term goes down with it.
    assert other.coefficient(other.terms[1]) == pytest.approx(0.25 * 0.2)
    assert other.objective_state() == trainer.objective_state()


# ---------------------------------------------------------------------- plug-ins


PLUGIN = '''
from mmreason.objectives.registry import Term, advantage, loss_term

@loss_term()
def brevity_pull(log_probs, mean, *, strength: float = 2.0):
    """Makes what was written less likely."""
    return Term(strength * mean(log_probs), {"log_prob": mean(log_probs).detach()})

@advantage()
def halved(advantages, num_tokens):
    """Half of every advantage."""
    return advantages / 2
'''


def test_terms_and_transforms_of_a_users_file(make_config: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "own_objective.py"
    path.write_text(PLUGIN)
    options = {
        "files": (str(path),),
        "terms": {"brevity_pull": {"coefficient": 0.1, "schedule": ((0.0, 1.0), (1.0, 0.0))}},
        "advantages": {"halved": {}},
    }
    check_objective(make_config(name="run", objective=options))
    trainer = trainer_of(make_config, objective=options, trainer={"steps": 2})
    trainer.fit()
    told = metrics_of(trainer)
    assert [line["objective/brevity_pull/coefficient"] for line in told] == pytest.approx([0.1, 0.05])
    assert told[0]["objective/brevity_pull/loss"] == pytest.approx(2 * told[0]["objective/brevity_pull/log_prob"])


def test_a_file_that_registers_nothing_is_named(make_config: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "empty.py"
    path.write_text("x = 1\n")
    with pytest.raises(ConfigError, match=r"objective file .*empty\.py: registers no loss term"):
        check_objective(make_config(name="run", objective={"files": (str(path),)}))


# ---------------------------------------------------------------------- what the masked pass costs


def test_masked_pass_does_the_work_of_one_packed_pass(make_config: Callable[..., Any]) -> None:
    """Each prompt once and each completion once, as in the update; on the stock path every row again."""
    counts: dict[str, dict[str, tuple[int, int]]] = {}
    for name, policy in (("shared", FORCE), ("stock", OFF)):
        trainer = trainer_of(
            make_config,
            name,
            policy=policy,
            objective={"terms": {"perception_kl": {"coefficient": 0.1}}},
            trainer={"steps": 1},
        )
        meter = Meter(trainer.clock)
        meter.watch(trainer.model)
        trainer.fit()
        counts[name] = {stage: (meter.tokens[stage], meter.patches[stage]) for stage in ("reference", "update")}
        if name == "shared":
            store = trainer._store
            # The last token of a prompt is read once for each completion, the last one of a completion never.
            tokens = sum(len(prompt.ids) - 1 for prompt in store.prompts)
            tokens += sum(rollout.num_tokens for rollout in trainer.last_rollouts)
            patches = sum(len(store.pictures[p].patches) for prompt in store.prompts for p in prompt.pictures)
            assert counts["shared"]["reference"] == (tokens, patches)
    assert counts["shared"]["reference"] == counts["shared"]["update"]
    assert counts["stock"]["reference"] == counts["stock"]["update"]
    assert counts["stock"]["reference"][0] > 2 * counts["shared"]["reference"][0]
