"""Episodes on real models: what is trained is what was sampled and shown, token by token, for all families.

A random model never writes a call. The format of these tests reads one out of any text: what it says decides, so that episodes of one batch
have one to four turns, some with pictures and some without, and end by an answer or by a budget.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from test_prompt_once_exact import assert_same_gradients, gradients
from transformers import set_seed

from mmreason.agent.calls import Call, ParsedTurn
from mmreason.agent.episode import Stop
from mmreason.agent.formats import get_format
from mmreason.agent.formats.deepeyes import DeepEyes
from mmreason.agent.loop import AgentLoop, Trajectory, build_agent
from mmreason.errors import ModelError
from mmreason.policy.policy import Policy
from mmreason.prompt_once.generation import Generation, Sampling
from mmreason.prompt_once.prompts import IMAGE_PAD
from mmreason.records import Row
from mmreason.run_records import RunFolder, read_metrics
from mmreason.train.grpo import MMReasonGRPOTrainer
from mmreason.train.run import training_rows

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


class AnyText:
    """Reads a call, an answer, nothing or a mistake out of any text, by its checksum."""

    def parse(self, text: str, last_image: str = "img_0") -> ParsedTurn:
        choice = zlib.crc32(text.encode()) % 10
        if choice < 6:
            box = [1 + choice, 2, 50 + 5 * choice, 60]
            return ParsedTurn("", (Call("crop", {"image": last_image, "box": box}),))
        if choice == 6:
            return ParsedTurn("", problem="this cannot be read")
        if choice == 7:
            return ParsedTurn("", (Call("crop", {"image": "img_77", "box": [0, 0, 40, 40]}),))
        return ParsedTurn("", answer="red") if choice == 8 else ParsedTurn(text)


class AnyTextCalls(AnyText, DeepEyes):
    """The same, with what tools return written as DeepEyes does."""


def any_text(name: str, reads: type = AnyText) -> Any:
    """The same, with what tools return written as in the format of this name."""
    return type(f"{reads.__name__}{name}", (reads, type(get_format(name))), {})()


class OnlyCalls(AnyText):
    """Reads a call out of any text: no episode ever answers."""

    def parse(self, text: str, last_image: str = "img_0") -> ParsedTurn:
        side = 40 + zlib.crc32(text.encode()) % 30
        return ParsedTurn("", (Call("crop", {"image": last_image, "box": [0, 0, side, side]}),))


class Rows:
    """A question about a picture, and every third time about none."""

    def row(self, position: int) -> Row:
        shown: tuple[Image.Image, ...] = ()
        if position % 3 != 2:
            shown = (Image.linear_gradient("L").rotate(40 * position).resize((84, 84 + 28 * (position % 2))),)
        content = [*({"type": "image"} for _ in shown), {"type": "text", "text": f"Say {position}"}]
        return Row(f"made/{position}", ({"role": "user", "content": content},), shown, {"answer": "red"}, "made")


#: A token and the log-probability it was drawn with.
Draw = tuple[int, float]


class Recorded(Generation):
    """Notes each token as it is drawn: for each turn of the batch, for each row that writes it, in order.

    Attributes:
        drawn: `[turn of the batch][place among the rows that write][token]`.
    """

    drawn: list[list[list[Draw]]]

    def sample(self, sampling: Sampling, rows: Sequence[int] | None = None, listener: Any = None) -> list[list[int]]:
        self._here = list(range(len(self.rows) if rows is None else len(rows)))
        self._ended: set[int] = set()
        self._stops = set(sampling.stops)
        self.drawn.append([[] for _ in self._here])
        return super().sample(sampling, rows, listener)

    def _draw(self, hidden: torch.Tensor, processors: Any, temperature: float) -> torch.Tensor:
        token = super()._draw(hidden, processors, temperature)
        if len(token) < len(self._here):  # rows that had ended were dropped, all of them
            self._here = [place for place in self._here if place not in self._ended]
        scores = self.model.get_output_embeddings()(hidden).float().log_softmax(-1)
        for place, one, row in zip(self._here, token.tolist(), scores, strict=True):
            if place not in self._ended:
                self.drawn[-1][place].append((one, float(row[one])))
            if one in self._stops:
                self._ended.add(place)
        return token


def recorded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[tuple[int, int], list[Draw]]]:
    """Has draws noted from now on; what it returns tells them by episode and turn."""
    drawn: list[list[list[Draw]]] = []
    writing: list[list[int]] = []
    write = AgentLoop._write

    def noted(self: AgentLoop, generation: Any, rows: Any, which: Sequence[int], *rest: Any) -> Any:
        writing.append(list(which))
        return write(self, generation, rows, which, *rest)

    monkeypatch.setattr(Recorded, "drawn", drawn, raising=False)
    monkeypatch.setattr("mmreason.prompt_once.sharing.Generation", Recorded)
    monkeypatch.setattr(AgentLoop, "_write", noted)

    def by_turn() -> dict[tuple[int, int], list[Draw]]:
        found: dict[tuple[int, int], list[Draw]] = {}
        turns: Counter[int] = Counter()
        for rows, draws in zip(writing, drawn, strict=True):
            for row, own in zip(rows, draws, strict=True):
                found[row, turns[row]] = own
                turns[row] += 1
        return found

    return by_turn


AGENT: dict[str, Any] = {
    "tools": ("crop",),
    "format": "deepeyes",
    "tell": False,
    "workers": 0,
    "max_turns": 5,
    "max_turn_tokens": 5,
    "min_turn_tokens": 2,
}


def agent_trainer(config: Any) -> MMReasonGRPOTrainer:
    set_seed(config.seed)
    policy = Policy.load(config.model, device="cpu", seed=config.seed)
    policy.share_prompts(config.policy)
    rows, _ = training_rows(config, policy)
    rows.source = Rows()
    agent = build_agent(config, policy)
    assert agent is not None
    agent.wire = any_text(config.agent.format)
    # A random model does not end its turns: any of many tokens does.
    policy.model.generation_config.eos_token_id = [policy.tokenizer.eos_token_id, *range(40, 300)]
    trainer = MMReasonGRPOTrainer(policy, rows, config, RunFolder(Path(config.out) / config.name), agent=agent)
    trainer.eos_token_ids = policy.stop_token_ids
    return trainer


@pytest.fixture
def agent_config(make_config: Callable[..., Any]) -> Callable[..., Any]:
    def make(agent: dict[str, Any] | None = None, **sections: Any) -> Any:
        rollout = {"prompts_per_step": 9, "group_size": 4, "max_new_tokens": 200, **sections.pop("rollout", {})}
        return make_config(agent={**AGENT, **(agent or {})}, rollout=rollout, **sections)

    return make


def sampled(trainer: MMReasonGRPOTrainer) -> dict[str, Any]:
    """A generation batch of the first prompts."""
    rollout = trainer.run_config.rollout
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    inputs = [{"position": p} for p in range(rollout.prompts_per_step) for _ in range(rollout.group_size)]
    output: dict[str, Any] = trainer._generate_and_score_completions(inputs)
    return output


@pytest.mark.parametrize(
    ("family", "keep_turns", "wire"),
    [
        *((family, keep_turns, "deepeyes") for family in FAMILIES for keep_turns in (None, 1)),
        ("qwen2_5_vl", None, "native"),
        ("qwen3_vl", 1, "native"),
        ("qwen2_vl", None, "vilasr"),
        ("qwen3_vl", None, "vrag"),
    ],
)
def test_log_probs_of_the_trainer_are_those_of_sampling(
    agent_config: Callable[..., Any], family: str, keep_turns: int | None, wire: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_turn = recorded(monkeypatch)
    agent = {"keep_turns": keep_turns, "format": wire, "max_turn_tokens": 14}
    trainer = agent_trainer(agent_config(agent, family=family, policy={"prompt_once": "force"}))
    output = sampled(trainer)
    draws = by_turn()
    with torch.no_grad():
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
        mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
        found, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, output["completion_ids"].shape[1]
        )
    episodes = trainer.trajectories
    assert {len(one.turn_ends) for one in episodes} >= {1, 2, 3}
    assert sum(len(one.pictures) > 1 for one in episodes) >= 2, "no episode with several pictures"
    assert any(not one.pictures and not trainer._prepared[i].images for i, one in enumerate(episodes))
    # Every token that was drawn and kept, in its row, turn and place, with the probability it was drawn with.
    assert draws.keys() == {(row, turn) for row, one in enumerate(episodes) for turn in range(len(one.turn_ends))}
    longest = 0
    for row, one in enumerate(episodes):
        start = 0
        for turn, end in enumerate(one.turn_ends):
            start += one.owner[start:].index(1)
            kept = draws[row, turn][: end - start]
            assert [token for token, _ in kept] == list(one.ids[start:end])
            assert all(one.owner[start:end])
            expected = torch.tensor([value for _, value in kept])
            torch.testing.assert_close(found[row, start:end], expected, atol=2e-5, rtol=0)
            longest = max(longest, end - start)
            start = end
        assert start == len(one.ids), "the last token is the end of the last turn"
    assert longest > 5


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_and_plain_passes_agree_where_pictures_lie_in_completions(
    agent_config: Callable[..., Any], family: str
) -> None:
    trainer = agent_trainer(agent_config(family=family, policy={"prompt_once": "force"}))
    output = sampled(trainer)
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
    mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
    counted = trainer.loss_mask(output).bool()
    packed = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, output["completion_ids"].shape[1])
    trainer._packs = False
    plain = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, output["completion_ids"].shape[1])
    assert counted.any()
    torch.testing.assert_close(packed[0][counted], plain[0][counted], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_packed_and_plain_passes_agree_where_pictures_lie_in_completions(
    agent_config: Callable[..., Any], family: str
) -> None:
    """In float64, with a weight of its own for each token that counts."""
    rollout = {"prompts_per_step": 4, "group_size": 3}
    trainer = agent_trainer(agent_config(family=family, policy={"prompt_once": "force"}, rollout=rollout))
    output = sampled(trainer)
    assert any(one.pictures for one in trainer.trajectories)
    model = trainer.model.double()
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
    mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
    counted = trainer.loss_mask(output).bool()

    def slopes(packs: bool) -> dict[str, torch.Tensor]:
        trainer._packs = packs
        found, _, _ = trainer._get_per_token_logps_and_entropies(model, ids, mask, output["completion_ids"].shape[1])
        return gradients(model, found.masked_fill(~counted, 0.0))

    packed, plain = slopes(True), slopes(False)
    assert any("visual" in name and gradient.any() for name, gradient in plain.items()), "no way back to a picture"
    assert_same_gradients(packed, plain)


def test_older_turns_leave_the_context_with_their_pictures(agent_config: Callable[..., Any]) -> None:
    trainer = agent_trainer(agent_config({"keep_turns": 1, "max_turns": 6}))
    sampled(trainer)
    store = trainer._store
    long = [(row, one) for row, one in enumerate(trainer.trajectories) if len(one.turn_ends) >= 4]
    assert long
    for row, one in long:
        question = store.prompts[trainer._prompt_of_row[row]]
        assert [part.end for part in one.segments] == list(one.turn_ends)
        assert store.prompts[one.segments[0].prompt] == question
        for before, part in zip(one.segments, one.segments[1:], strict=False):
            context = store.prompts[part.prompt]
            # The question, the turn before this one, and what came of it.
            assert context.ids == (*question.ids, *one.ids[before.start : part.start])
            assert len(context.pictures) - len(question.pictures) <= 1
            assert all(one.owner[part.start : part.end])
            assert not any(one.owner[before.end : part.start])


def test_forgetting_trains(agent_config: Callable[..., Any]) -> None:
    trainer = agent_trainer(agent_config({"keep_turns": 2}, objective={"beta": 0.01}, trainer={"steps": 2}))
    before = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
    trainer.fit()
    after = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)


def test_what_is_trained_is_what_was_sampled(agent_config: Callable[..., Any]) -> None:
    trainer = agent_trainer(agent_config())
    output = sampled(trainer)
    policy = trainer.policy
    pad, stops = policy.tokenizer.convert_tokens_to_ids(IMAGE_PAD), set(policy.stop_token_ids)
    for row, one in enumerate(trainer.trajectories):
        length = len(one.ids)
        assert output["completion_ids"][row, :length].tolist() == list(one.ids)
        assert output["completion_mask"][row].sum() == length
        trained = output["tool_mask"][row, :length].tolist()
        assert trained == ([0] * length if one.stop.over_budget else list(one.owner))
        assert one.owner[-1] == 1, "the last token is never an observation's"
        # One placeholder for each token of each picture, all of them shown and none sampled.
        assert one.ids.count(pad) == sum(seen.num_tokens for seen in one.geometry)
        assert not any(owner for token, owner in zip(one.ids, one.owner, strict=True) if token == pad)
        # The end of each turn is the model's own.
        for end in one.turn_ends[:-1]:
            assert one.ids[end - 1] in stops
            assert one.owner[end - 1] == 1
            assert one.owner[end] == 0
        rollout = trainer.sampled.rollouts[row]
        assert rollout.num_tokens == sum(one.owner)
        assert rollout.owner == one.owner
        assert len(rollout.turns) >= len(one.turn_ends)
    kinds = {turn.error for one in trainer.sampled.rollouts for turn in one.turns}
    assert {"", "malformed", "unknown_image"} <= kinds
    stops_seen = {one.stop for one in trainer.trajectories}
    assert stops_seen & {Stop.answer, Stop.no_call}
    assert stops_seen & {Stop.length, Stop.budget}


def test_episodes_that_were_cut_off_teach_nothing(agent_config: Callable[..., Any]) -> None:
    trainer = agent_trainer(agent_config({"over_budget": "leave_out"}, trainer={"steps": 1}))
    output = trainer.complete_objective(sampled(trainer))
    cut = torch.tensor([one.stop.over_budget for one in trainer.trajectories])
    assert cut.any()
    assert not cut.all()
    assert (output["advantages"][cut] == 0).all()
    size = trainer.run_config.rollout.group_size
    total = trainer.sampled.total.masked_fill(cut, float("nan")).view(-1, size)
    for rewards, advantages in zip(total, output["advantages"].view(-1, size), strict=True):
        kept = rewards[~rewards.isnan()]
        if len(kept) > 1:
            expected = (kept - kept.mean()) / (kept.std() + 1e-4)
            torch.testing.assert_close(advantages[~rewards.isnan()], expected.float(), atol=1e-5, rtol=1e-4)
        else:
            assert (advantages == 0).all()


@pytest.mark.parametrize("loss", ["grpo", "bnpo", "dapo"])
@pytest.mark.parametrize("over_budget", ["mask", "leave_out", "keep"])
def test_a_batch_in_which_every_episode_is_cut_off(
    agent_config: Callable[..., Any], over_budget: str, loss: str
) -> None:
    config = agent_config(
        {"over_budget": over_budget, "max_turns": 3},
        objective={"loss_type": loss},
        rollout={"prompts_per_step": 4},
        trainer={"steps": 2, "micro_batch_size": 8},
    )
    trainer = agent_trainer(config)
    assert trainer.agent is not None
    trainer.agent.wire = any_text("deepeyes", OnlyCalls)
    before = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
    outputs: list[dict[str, Any]] = []
    totals: list[torch.Tensor] = []
    record = trainer._record

    def noted(output: dict[str, Any]) -> None:
        assert all(one.stop.over_budget for one in trainer.trajectories)
        outputs.append(output)
        totals.append(trainer.sampled.total.clone())
        record(output)

    trainer._record = noted  # type: ignore[method-assign]
    trainer.fit()
    after = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    kept = over_budget == "keep"
    assert torch.isfinite(after).all()
    assert torch.equal(before, after) != kept
    for output, total in zip(outputs, totals, strict=True):
        assert bool(trainer.loss_mask(output).any()) == kept
        groups = total.view(-1, config.rollout.group_size)
        assert (groups.std(dim=1) > 0).any(), "there would be something to learn"
        usual = (groups - groups.mean(dim=1, keepdim=True)) / (groups.std(dim=1, keepdim=True) + 1e-4)
        # Left out, nobody is left to be compared with; masked, they still belong to their group.
        expected = torch.zeros(len(total)) if over_budget == "leave_out" else usual.flatten()
        torch.testing.assert_close(output["advantages"], expected, atol=1e-5, rtol=1e-4)
    lines = list(read_metrics(trainer.folder.metrics))
    assert len(lines) == 2
    for line in lines:
        assert line["tools/over_budget"] == 1.0
        told = [line[name] for name in ("loss", "grad_norm", "entropy", "reward", "reward_std", "completion_length")]
        assert all(value is not None and math.isfinite(value) for value in told)
        if not kept:
            assert line["loss"] == line["grad_norm"] == 0.0
        # Not known is only what there are no such episodes or groups to take a mean of.
        unknown = {name for name, value in line.items() if value is None}
        assert all(name.startswith(("tools/", "zero_variance_groups/")) for name in unknown), unknown


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo"])
def test_training_with_tools_moves_the_weights_and_writes_records(agent_config: Callable[..., Any], loss: str) -> None:
    config = agent_config(objective={"loss_type": loss}, trainer={"steps": 2})
    trainer = agent_trainer(config)
    before = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
    trainer.fit()
    after = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)


def test_refilled_groups_keep_their_pictures(agent_config: Callable[..., Any]) -> None:
    config = agent_config(
        rollout={"refill_rounds": 2, "prompts_per_step": 3, "group_size": 3}, policy={"prompt_once": "force"}
    )
    trainer = agent_trainer(config)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    output = trainer.filled_batch([{"position": p} for p in range(3) for _ in range(3)])
    shown = [
        tuple(digest for part in trainer._segments[index] for digest in part.pictures)
        for index in output["episode_index"].tolist()
    ]
    pad = trainer.policy.tokenizer.convert_tokens_to_ids(IMAGE_PAD)
    merge = trainer.policy.family.merge_size
    for ids, mask, pictures in zip(output["completion_ids"], output["completion_mask"], shown, strict=True):
        needed = sum(trainer._store.pictures[digest].num_tokens(merge) for digest in pictures)
        assert int((ids[mask.bool()] == pad).sum()) == needed


# ---------------------------------------------------------------------- budgets, without a trainer


def played(policy: Policy, config: Any, rows: Sequence[Row], **sampling: Any) -> list[Trajectory]:
    agent = AgentLoop(policy, config.agent, config.rollout.max_new_tokens)
    agent.wire = AnyTextCalls()
    set_seed(0)
    return agent.play([policy.prepare(row) for row in rows], temperature=1.0, **sampling)


@pytest.fixture
def policy(agent_config: Callable[..., Any]) -> Policy:
    config = agent_config()
    policy = Policy.load(config.model, device="cpu")
    policy.share_prompts(config.policy)
    policy.model.generation_config.eos_token_id = [policy.tokenizer.eos_token_id, *range(40, 300)]
    return policy


@pytest.mark.parametrize("limit", [12, 30, 45, 60, 90, 120])
def test_completions_stay_within_their_tokens_and_cut_nothing_in_halves(
    policy: Policy, agent_config: Callable[..., Any], limit: int
) -> None:
    config = agent_config(rollout={"max_new_tokens": limit})
    episodes = played(policy, config, [Rows().row(p) for p in range(12)])
    pad = policy.tokenizer.convert_tokens_to_ids(IMAGE_PAD)
    for one in episodes:
        assert 0 < len(one.ids) <= limit
        assert one.owner[-1] == 1
        assert one.ids.count(pad) == sum(seen.num_tokens for seen in one.geometry)
        # Pictures that were taken back are in no record.
        roots = len(one.episode.row.images)
        assert len(one.episode.store) - roots == len(one.pictures)
        shown = [name for event in one.episode.events for name in event.pictures]
        assert shown == list(one.episode.store.ids[roots:])
    if limit in (45, 60):
        assert any(event.kind == "taken_back" for one in episodes for event in one.episode.events)


def test_a_limit_of_pictures_and_of_calls(policy: Policy, agent_config: Callable[..., Any]) -> None:
    rows = [Rows().row(p) for p in (0, 1, 3, 4)] * 4
    few = played(policy, agent_config({"max_pictures": 1, "max_turns": 5}, rollout={"max_new_tokens": 400}), rows)
    assert max(len(one.pictures) for one in few) == 1
    assert any(turn.error == "budget" for one in few for turn in one.episode.turns)
    one_call = played(policy, agent_config({"max_calls": 1, "max_turns": 5}), rows)
    assert all(sum(turn.ok and turn.tool is not None for turn in one.episode.turns) <= 1 for one in one_call)


def test_equal_seeds_play_equal_episodes(policy: Policy, agent_config: Callable[..., Any]) -> None:
    rows = [Rows().row(p) for p in range(4)]
    first, second = (played(policy, agent_config(), rows) for _ in range(2))
    assert [(one.ids, one.owner, one.pictures) for one in first] == [
        (one.ids, one.owner, one.pictures) for one in second
    ]


def test_agents_need_shared_prompts(agent_config: Callable[..., Any]) -> None:
    config = agent_config()
    with pytest.raises(ModelError, match="shared prompts"):
        build_agent(config, Policy.load(config.model, device="cpu"))
