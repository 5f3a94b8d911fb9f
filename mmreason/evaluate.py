"""Held-out evaluation: greedy answers, every reward, means with 95 % intervals.

What enters: a policy and rows. What leaves: an `EvalResult` with one score per row and reward, from which two results can be
compared row by row. Greedy decoding draws no random number, so evaluating during training does not disturb it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmreason.config.curriculum import goal
from mmreason.config.schema import RewardConfig, RunConfig
from mmreason.errors import ConfigError, RewardFailure
from mmreason.records import Rollout, Row
from mmreason.stats import Interval, mean_interval, paired_difference

if TYPE_CHECKING:
    from mmreason.agent.loop import AgentLoop, Player
    from mmreason.data.readers import RowFile
    from mmreason.images import ImageLoader
    from mmreason.judge.service import JudgeService
    from mmreason.policy.policy import Policy
    from mmreason.scoring import Exchange, RewardRunner, ScoreTable

#: First number of the seeds of masks: apart from the random streams of tasks and augmentation.
_MASK_STREAM = 0x6D61736B
#: How an answer begins that is given at once.
AT_ONCE = "<think></think><answer>"
#: What `measures` may find.
MEASURES = ("srcc", "plcc", "unread_scores", "boxes_given", "boxes_wanted", "box_precision", "box_recall")


@dataclass(frozen=True)
class EvalResult:
    """Scores of one evaluation.

    Attributes:
        scores: name -> one value a row `[N]`, NaN where a reward does not apply. `accuracy` is 1 where the task's metric passes.
        rollouts: the greedy completions, in row order.
    """

    scores: dict[str, NDArray[np.float64]]
    rollouts: tuple[Rollout, ...] = field(repr=False)

    def mean(self, name: str) -> float:
        """Mean over the rows to which the score applies; NaN if there is none."""
        values = self.scores[name]
        return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")

    def intervals(self) -> dict[str, Interval]:
        """Mean and 95 % bootstrap interval of every score."""
        kept = {name: values[np.isfinite(values)] for name, values in self.scores.items()}
        return {name: mean_interval(values) for name, values in kept.items() if len(values)}

    def difference(self, before: EvalResult) -> dict[str, Interval]:
        """Paired difference (self minus `before`, same rows) of every score."""
        result = {}
        for name, values in self.scores.items():
            old = before.scores[name]
            both = np.isfinite(values) & np.isfinite(old)
            if both.any():
                result[name] = paired_difference(old[both], values[both])
        return result

    def as_dict(self) -> dict[str, Any]:
        """`{name: {mean, low, high, n}}` for summary.json."""
        return {name: interval.as_dict() for name, interval in self.intervals().items()}


def sample_rollouts(
    policy: Policy,
    rows: Sequence[Row],
    *,
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 0.0,
    loader: ImageLoader | None = None,
    view: Callable[[Row], Row] | None = None,
    agent: Player | None = None,
    at_once: bool = False,
) -> list[Rollout]:
    """One completion a row, in row order; `temperature=0` is greedy.

    Args:
        policy: answers.
        rows: the questions.
        max_new_tokens: limit of an answer in tokens.
        batch_size: rows answered at once.
        temperature: of sampling.
        loader: opens image paths.
        view: what the policy is shown of a row, with pictures of the same sizes; the rollouts hold the rows themselves.
        agent: runs episodes with tools, with its own limits; None = an answer in one turn.
        at_once: begin every answer for the policy (`AT_ONCE`), so that it neither thinks nor calls; not with an agent.
    """
    rollouts: list[Rollout] = []
    begun = policy.tokenizer(AT_ONCE, add_special_tokens=False)["input_ids"] if at_once else []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        prepared = [policy.prepare(row if view is None else view(row), loader) for row in batch]
        if agent is not None:
            played = agent.play(prepared, temperature=temperature)
            for item, trajectory in zip(prepared, played, strict=True):
                rollouts.append(policy.episode_rollout(item, len(rollouts), trajectory))
            continue
        if at_once:
            prepared = [replace(item, begun=AT_ONCE) for item in prepared]
        completions = policy.generate(prepared, max_new_tokens, temperature)
        for row, item, ids in zip(batch, prepared, completions, strict=True):
            rollouts.append(policy.rollout(row, len(rollouts), [*begun, *ids], item.geometry))
    return rollouts


def masked_view(
    policy: Policy, probability: float, patch_px: int, seed: int, loader: ImageLoader | None = None
) -> Callable[[Row], Row]:
    """A view with blackened cells, as PAPO masks pictures (arXiv 2507.06448): a matter of the seed and the row's id alone.

    Args:
        policy: opens the pictures.
        probability: of each cell, 0 to 1.
        patch_px: side of a cell in pixels of the original picture.
        seed: of the masks.
        loader: opens image paths.
    """
    from mmreason.data.transforms import mask_patches

    def view(row: Row) -> Row:
        rng = np.random.default_rng([_MASK_STREAM, seed, zlib.crc32(row.id.encode())])
        pictures = policy.open_images(row, loader)
        return replace(row, images=tuple(mask_patches(picture, probability, patch_px, rng) for picture in pictures))

    return view


def measures(rollouts: Sequence[Rollout]) -> dict[str, float | int]:
    """What only a whole evaluation has: how scores order the pictures, how many boxes there are and how many are right.

    Returns:
        Name -> number, of `MEASURES`; those that the rows have nothing to do with are absent. NaN where one is undefined.
        Rank correlations of several data sets are averaged, each data set counting the same.
    """
    from mmreason.box_statistics import box_statistics
    from mmreason.rank_correlation import score_correlations

    found: dict[str, float | int] = {}
    correlations = list(score_correlations(rollouts).values())
    if correlations:
        found["srcc"] = math.fsum(one.srcc for one in correlations) / len(correlations)
        found["plcc"] = math.fsum(one.plcc for one in correlations) / len(correlations)
        found["unread_scores"] = sum(one.unread for one in correlations)
    boxes = box_statistics(rollouts)
    if boxes.n:
        found |= {"boxes_given": boxes.given, "boxes_wanted": boxes.wanted}
        found |= {"box_precision": boxes.precision, "box_recall": boxes.recall}
    return found


def evaluate(
    policy: Policy,
    rows: Sequence[Row],
    rewards: RewardConfig,
    *,
    metric: str,
    correct_at: float,
    max_new_tokens: int,
    batch_size: int = 64,
    temperature: float = 0.0,
    loader: ImageLoader | None = None,
    judge: JudgeService | None = None,
    view: Callable[[Row], Row] | None = None,
    exchange: Exchange | None = None,
    agent: Player | None = None,
    at_once: bool = False,
) -> EvalResult:
    """Score held-out rows with every configured reward, and `accuracy`: the share whose `metric` is above `correct_at`.

    Processes that evaluate the same rows together give their `exchange`: all get the scores of the first, or its failure.

    Raises:
        RewardFailure: a reward fails too often.
    """
    from mmreason.scoring import RewardRunner

    rollouts = sample_rollouts(
        policy,
        rows,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        temperature=temperature,
        loader=loader,
        view=view,
        agent=agent,
        at_once=at_once,
    )
    table = _scored_once(RewardRunner(rewards, judge), rollouts, exchange)
    scores = {name: table.values[:, column] for column, name in enumerate(table.names)}
    if metric in scores:
        values = scores[metric]
        scores["accuracy"] = np.where(np.isfinite(values), (values > correct_at).astype(np.float64), np.nan)
    scores["completion_length"] = np.asarray([rollout.num_tokens for rollout in rollouts], dtype=np.float64)
    return EvalResult(scores, tuple(rollouts))


def _scored_once(runner: RewardRunner, rollouts: Sequence[Rollout], exchange: Exchange | None) -> ScoreTable:
    """Scores by the first process: a reward that fails on one of them alone must not leave the others waiting."""
    if exchange is None:
        return runner.score(rollouts)
    found: ScoreTable | RewardFailure | None = None
    if exchange.rank == 0:
        try:
            found = runner.score(rollouts)
        except RewardFailure as failure:
            found = failure
    table = exchange.gather(found)[0]
    assert table is not None
    if isinstance(table, RewardFailure):
        raise table
    return table


def accuracy_rule(config: RunConfig, rows: Sequence[Row]) -> tuple[str, float]:
    """The measure that decides whether an answer is right, and the value that it must exceed.

    Args:
        config: the run.
        rows: those of the data file; a task brings its own rule.
    """
    from mmreason.data.base import build_task

    if config.data.path is None:
        task = build_task(config.task, config.seed)
        return task.metric, task.correct_at
    return ("iou" if any("boxes" in row.target for row in rows) else "exact"), 0.5


def held_out_rows(config: RunConfig, file: RowFile | None = None) -> tuple[list[Row], str, float, ImageLoader | None]:
    """The rows of an evaluation, with the metric that decides `accuracy`: held-out rows of the task or the data file.

    Args:
        config: the run.
        file: the data file if it has been read already.
    """
    from mmreason.data.base import build_task

    if config.data.path is None:
        task = build_task(config.task, config.seed)
        rows = [task.row(index, "held_out") for index in range(config.trainer.eval_rows)]
        return rows, *accuracy_rule(config, rows), None
    from mmreason.data.readers import image_loader, read_rows, split_rows

    file = file or read_rows(config.data)
    _, held_out = split_rows(file.rows, config.data.eval_share, config.seed)
    return held_out[: config.trainer.eval_rows], *accuracy_rule(config, held_out), image_loader(config.data)


def run_eval(config: RunConfig, plain: dict[str, Any]) -> dict[str, Any]:
    """Evaluate `model` on held-out rows (of a curriculum's last phase), and `eval.compare` on the same; prints and writes scores.

    Returns:
        The summary that is written to `summary.json` in the run folder.

    Raises:
        ConfigError: nothing is held out, or the run folder holds a training run.
    """
    from mmreason.data.readers import read_rows
    from mmreason.run_records import RunFolder
    from mmreason.train.opening import refuse_other_command

    folder = RunFolder(Path(config.out) / config.name)
    refuse_other_command(folder, "eval")
    config = goal(config)
    # Whole pictures: one that breaks in the middle would otherwise end the evaluation.
    file = read_rows(config.data, full_check=True) if config.data.path is not None else None
    rows, metric, correct_at, loader = held_out_rows(config, file)
    if not rows:
        raise ConfigError("there are no held-out rows: raise trainer.eval_rows, or data.eval_share for a file")
    names = (
        {"before": config.eval.compare, "after": config.model.name}
        if config.eval.compare
        else {"after": config.model.name}
    )
    done = _evaluate_models(config, names, rows, (metric, correct_at), loader)
    results = done.results
    summary: dict[str, Any] = {"command": "eval", "models": names, "seed": config.seed, "measures": done.measures}
    summary["rows_skipped"] = file.skipped_by_kind if file is not None else {}
    summary |= {label: result.as_dict() for label, result in results.items()}
    if done.tools:
        summary["tools"] = done.tools
    if done.oracle is not None:
        summary["oracle"] = done.oracle.as_dict()
    if "without_tools" in results:
        title = f"{config.model.name} with tools minus without, paired:"
        summary["difference_of_tools"] = _told_difference(title, results["after"], results["without_tools"])
    if "before" in results:
        title = f"{config.model.name} minus {config.eval.compare}, paired:"
        summary["difference"] = _told_difference(title, results["after"], results["before"])
    if file is not None and file.skipped:
        print(file.skipped_summary())
    summary["run_dir"] = str(folder.path)
    folder.write_config(plain)
    folder.write_summary(summary)
    return summary


@dataclass
class _Evaluations:
    """What `run_eval` found, by label: `before`, `after`, and `without_tools` for the second model without its tools."""

    results: dict[str, EvalResult] = field(default_factory=dict)
    measures: dict[str, dict[str, float | int]] = field(default_factory=dict)
    tools: dict[str, dict[str, float]] = field(default_factory=dict)
    oracle: EvalResult | None = None


def _evaluate_models(
    config: RunConfig,
    names: Mapping[str, str],
    rows: Sequence[Row],
    rule: tuple[str, float],
    loader: ImageLoader | None,
) -> _Evaluations:
    """Evaluate and print one model after the other; `rule` is the metric that decides `accuracy`, and its bound."""
    import torch

    from mmreason.agent.loop import build_agent
    from mmreason.judge.build import build_judge
    from mmreason.policy.policy import Policy

    done = _Evaluations()
    judge = None
    for label, name in names.items():
        torch.manual_seed(config.seed)
        policy = Policy.load(config.model.model_copy(update={"name": name}), seed=config.seed)
        policy.share_prompts(config.policy)
        if judge is None or config.judge.kind == "policy":
            judge = build_judge(config.judge, policy, loader)
        score = partial(
            evaluate,
            policy,
            rows,
            config.reward,
            metric=rule[0],
            correct_at=rule[1],
            max_new_tokens=config.rollout.max_new_tokens,
            batch_size=config.trainer.eval_batch_size,
            temperature=config.eval.temperature,
            loader=loader,
            judge=judge,
            view=_view(config, policy, loader),
            at_once=config.eval.at_once,
        )
        agent = build_agent(config, policy, loader)
        if agent is not None and config.eval.oracle and not done.oracle:
            done.oracle = score(agent=_oracle(config, agent))
            _tell_scores(f"the oracle of {config.task.name} on {len(rows)} held-out rows:", done.oracle.intervals())
        result = done.results[label] = score(agent=agent)
        done.measures[label] = measures(result.rollouts)
        title = f"{name} on {len(rows)} held-out rows{_shown_how(config)}"
        _tell_scores(f"{title}:", result.intervals(), done.measures[label])
        if agent is not None:
            used = done.tools[label] = _tool_use(result)
            shown = {key: value for key, value in used.items() if value or "/failures/" not in key}
            _tell_scores("how it used its tools:", {}, shown)
        if agent is not None and config.eval.without_tools != "no" and label == "after":
            torch.manual_seed(config.seed)
            at_once = config.eval.without_tools == "at_once"
            done.results["without_tools"] = score(agent=None, at_once=at_once)
            how = "without tools, at once" if at_once else "without tools"
            _tell_scores(f"{title}, {how}:", done.results["without_tools"].intervals())
    return done


def _oracle(config: RunConfig, agent: AgentLoop) -> Player:
    """The oracle of the task, playing through the loop."""
    from mmreason.agent.scripted import OraclePlayer
    from mmreason.data.base import build_task

    return OraclePlayer(agent, build_task(config.task, config.seed))


def _told_difference(title: str, after: EvalResult, before: EvalResult) -> dict[str, Any]:
    """Paired differences of two evaluations, printed, and as they stand in summary.json."""
    difference = after.difference(before)
    _tell_scores(title, difference)
    return {score: interval.as_dict() for score, interval in difference.items()}


def _tool_use(result: EvalResult) -> dict[str, float]:
    """How the episodes of an evaluation used their tools: the metrics that apply to single episodes."""
    from mmreason.train.tool_metrics import EpisodeFacts, tool_metrics

    correct = result.scores.get("accuracy")
    facts = [EpisodeFacts.of(rollout) for rollout in result.rollouts]
    metrics = tool_metrics(facts, None if correct is None else correct.tolist())
    return {name: value for name, value in metrics.items() if math.isfinite(value) and "group" not in name}


def _view(config: RunConfig, policy: Policy, loader: ImageLoader | None) -> Callable[[Row], Row] | None:
    """What `eval.mask_probability` shows of a row; `None` for whole pictures."""
    if config.eval.mask_probability == 0:
        return None
    return masked_view(policy, config.eval.mask_probability, config.eval.mask_patch_px, config.seed, loader)


def _shown_how(config: RunConfig) -> str:
    probability = config.eval.mask_probability
    return f", {probability:.0%} of the cells of each picture blackened" if probability else ""


def _tell_scores(title: str, intervals: Mapping[str, Interval], found: Mapping[str, float | int] | None = None) -> None:
    print(title)
    for name, interval in intervals.items():
        print(f"  {name:<18} {interval}")
    for name, number in (found or {}).items():
        print(f"  {name:<18} {number:.3f}")
