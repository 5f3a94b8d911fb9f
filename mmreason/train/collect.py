"""`mmreason collect`: rejection sampling. The policy answers every row several times; what passes the filters is kept.

What enters: a checked `RunConfig`: rows of a task or file, rewards, `collect.*`. What leaves: a run folder with

    rows.jsonl      kept completions, in the form that `mmreason sft data=…` and `mmreason train data=…` read
    pairs.jsonl     with `collect.pairs=true`: preference pairs for `mmreason dpo data=…` (`mmreason.data.pairs`)
    images/         the pictures of both, each once
    rollouts.jsonl  every completion with its rewards; its `step` is the batch of rows that it belongs to
    progress.json   how far it came, after every batch: a killed run goes on there and repeats nothing
    summary.json    what was kept, and how many completions each filter dropped

Each batch of rows is sampled under a seed of its own, so that a continued run writes what an undisturbed one would have.
Sources: rejection sampling as in SOPHIA (arXiv 2507.16814: correct, shortest, pass-rate band); pairs as in VisRL (arXiv 2503.07523).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import set_seed

from mmreason.agent.loop import AgentLoop, build_agent
from mmreason.config.schema import RunConfig
from mmreason.data.row_forms import RowProblem, interpret
from mmreason.errors import ConfigError, ResumeError
from mmreason.evaluate import accuracy_rule
from mmreason.judge.build import build_judge
from mmreason.policy.policy import Policy
from mmreason.records import Rollout, Row
from mmreason.reward_kit.composition import Condition
from mmreason.run_records import RolloutWriter, RunFolder, append_lines, save_picture, to_plain, write_atomically
from mmreason.scoring import RewardRunner, ScoreTable
from mmreason.train.callbacks import Interrupted, SignalWatch, process_state, refuse_unlaunched_gpus
from mmreason.train.checkpoints import check_same_run
from mmreason.train.collect_filters import TOTAL, Candidate, Filters, Selection, pass_rate, revises
from mmreason.train.opening import refuse_other_command, run_identity

if TYPE_CHECKING:
    from mmreason.data.readers import RowFile
    from mmreason.images import ImageLoader

PROGRESS = "progress.json"
ROWS = "rows.jsonl"
PAIRS = "pairs.jsonl"
#: Rows of a task where `collect.rows` is not set.
ROWS_OF_A_TASK = 256
#: First number of the seeds of batches: apart from the random streams of tasks and orders.
_STREAM = 0x636F6C
#: Keys of a written row that no column of the source row may take.
_OWN_KEYS = frozenset(
    {"id", "messages", "images", "image", "target", "completion", "pass_rate", "turns", "agent_format", "hidden"}
)
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass
class Progress:
    """How far a collection came. Everything in it is written after each batch, in one file, in one go.

    Attributes:
        batches: of rows, done.
        bytes: file name -> its length after them; what lies behind belongs to a batch that was not finished.
        counts: rows, completions, kept ones, pairs, … so far.
        dropped: filter -> completions.
        failures: `reward: kind` -> failed calls.
        reward_state: what rewards note from batch to batch.
    """

    batches: int = 0
    bytes: dict[str, int] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    reward_state: dict[str, Any] = field(default_factory=dict)


def run_collect(config: RunConfig, plain: dict[str, Any]) -> dict[str, Any]:
    """Sample, score, filter, write; returns what `summary.json` holds.

    Raises:
        ConfigError, DataError, ImageError, ModelError, ResumeError, RewardFailure: the message says what to do.
        Interrupted: SIGTERM or SIGINT; the batch under way was finished.
    """
    started = time.monotonic()
    if process_state().num_processes > 1:
        raise ConfigError("mmreason collect runs as one process: start it without a launcher, on one GPU")
    refuse_unlaunched_gpus()
    if config.trainer.num_threads:
        torch.set_num_threads(config.trainer.num_threads)
    folder = RunFolder(Path(config.out) / config.name)
    identity = to_plain(run_identity(config))
    progress = open_collection(config, folder, identity)
    source = _Source.of(config)
    policy = Policy.load(config.model, seed=config.seed)
    policy.share_prompts(config.policy)
    collector = Collector(config, policy, source, folder, build_agent(config, policy, source.loader))
    folder.write_config(plain)
    if progress.batches:
        print(f"continuing {folder.path} after {progress.counts['rows']} rows")
    with SignalWatch() as watch:
        collector.run(progress, identity, watch)
    summary = _summary(config, progress, source, folder, time.monotonic() - started)
    folder.write_summary(summary)
    _tell(summary)
    if source.file is not None and source.file.skipped:
        print(source.file.skipped_summary())
    return summary


# ---------------------------------------------------------------------- what is sampled for


@dataclass(frozen=True)
class _Source:
    """Rows by number, and how to tell whether an answer is correct."""

    config: RunConfig
    rows: Sequence[Row] | None
    count: int
    correct: Condition
    loader: ImageLoader | None
    file: RowFile | None

    @classmethod
    def of(cls, config: RunConfig) -> _Source:
        collect = config.collect
        if config.data.path is None:
            metric, correct_at = accuracy_rule(config, ())
            return cls(config, None, collect.rows or ROWS_OF_A_TASK, _correct(config, metric, correct_at), None, None)
        from mmreason.data.readers import image_loader, read_rows, split_rows

        # Whole pictures: one that breaks in the middle would otherwise end the collection.
        file = read_rows(config.data, full_check=True)
        rows, _ = split_rows(file.rows, config.data.eval_share, config.seed)
        rows = rows[collect.first_row :][: collect.rows]
        if not rows:
            raise ConfigError(
                f"no row is left of {file.path}: data.eval_share={config.data.eval_share:g} is held out, and "
                f"collect.first_row={collect.first_row} are passed over; lower one of them"
            )
        metric, correct_at = accuracy_rule(config, rows)
        return cls(config, rows, len(rows), _correct(config, metric, correct_at), image_loader(config.data), file)

    def batch(self, number: int) -> list[Row]:
        size = self.config.collect.rows_at_once
        places = range(number * size, min((number + 1) * size, self.count))
        if self.rows is not None:
            return [self.rows[place] for place in places]
        from mmreason.data.base import build_task

        task = build_task(self.config.task, self.config.seed)
        return [task.row(self.config.collect.first_row + place, "train") for place in places]


def _correct(config: RunConfig, metric: str, correct_at: float) -> Condition:
    """`reward.correct`, or else what a held-out evaluation calls accurate."""
    if config.reward.correct is not None:
        return Condition.parse(config.reward.correct)
    if metric not in config.reward.active():
        raise ConfigError(
            f"collect cannot tell what is correct: '{metric}', the measure of these rows, is none of the run's rewards "
            f"({', '.join(config.reward.active())}). Set reward.correct, such as reward.correct='exact > 0.5'."
        )
    return Condition(metric, ">", correct_at)


# ---------------------------------------------------------------------- the loop


@dataclass(frozen=True)
class Sampled:
    """One completion.

    Attributes:
        rollout: its record.
        turns: of an episode with tools, what the model wrote in each; else empty.
        revised: the episode drew something again, or took a second look.
    """

    rollout: Rollout
    turns: tuple[str, ...] = ()
    revised: bool = False


class Collector:
    """Samples, scores, filters and writes, a batch of rows at a time.

    Args:
        config: the run.
        policy: what answers.
        source: the rows.
        folder: where everything is written.
        agent: runs episodes with tools; None for answers in one turn.
    """

    def __init__(
        self, config: RunConfig, policy: Policy, source: _Source, folder: RunFolder, agent: AgentLoop | None = None
    ) -> None:
        self.config, self.policy, self.source, self.folder, self.agent = config, policy, source, folder, agent
        self.rewards = RewardRunner(config.reward, build_judge(config.judge, policy, source.loader))
        unknown = set(config.collect.pair_scores) - {TOTAL, *self.rewards.names}
        if config.collect.pairs and unknown:
            raise ConfigError(
                f"collect.pair_scores: no reward '{min(unknown)}' in this run; there are {TOTAL}, {', '.join(self.rewards.names)}"
            )
        self.filters = Filters(config.collect)
        self.writer = RolloutWriter(folder)

    def run(self, progress: Progress, identity: Mapping[str, Any], watch: SignalWatch) -> None:
        """Do all batches that are not done; raises `Interrupted` after the one in which a signal came."""
        batches = -(-self.source.count // self.config.collect.rows_at_once)
        if progress.reward_state:
            self.rewards.load_state_dict(progress.reward_state)
        started = time.monotonic()
        for number in range(progress.batches, batches):
            self._batch(number, progress)
            progress.batches = number + 1
            progress.reward_state = dict(self.rewards.state_dict())
            paths = [self.folder.rollouts, self.folder.path / ROWS, self.folder.path / PAIRS]
            progress.bytes = {path.name: path.stat().st_size for path in paths if path.is_file()}
            saved = {"identity": identity, **vars(progress)}
            write_atomically(self.folder.path / PROGRESS, json.dumps(saved).encode())
            counts = progress.counts
            print(
                f"rows {counts['rows']}/{self.source.count}  correct {_share(counts['correct'], counts['told'])}  "
                f"kept {counts['kept']}  pairs {counts['pairs']}  {time.monotonic() - started:.0f} s",
                flush=True,
            )
            if watch.caught is not None and progress.batches < batches:
                raise Interrupted(
                    f"stopped after {counts['rows']} of {self.source.count} rows. Continue with the same command and "
                    f"resume=auto name={self.folder.path.name}.",
                    watch.caught,
                )

    def _batch(self, number: int, progress: Progress) -> None:
        rows = self.source.batch(number)
        first_group = number * self.config.collect.rows_at_once
        sampled = self.sample(rows, number, first_group)
        rollouts = [one.rollout for one in sampled]
        failed = Counter(self.rewards.failures)
        table = self.rewards.score(rollouts)
        for (name, kind), count in (self.rewards.failures - failed).items():
            progress.failures[f"{name}: {kind}"] += count
        self.writer.write(
            number + 1,
            rollouts,
            table.as_lists(),
            [None if np.isnan(value) else float(value) for value in table.total],
            [None] * len(rollouts),
        )
        candidates = self._candidates(sampled, table)
        each = self.config.collect.samples_per_row
        lines: list[dict[str, Any]] = []
        pairs: list[dict[str, Any]] = []
        for place, row in enumerate(rows):
            group = candidates[place * each : (place + 1) * each]
            selection = self.filters.select(group)
            progress.counts.update(
                rows=1, completions=len(group), told=sum(one.correct == one.correct for one in group)
            )
            progress.counts["correct"] += sum(one.correct == 1.0 for one in group)
            progress.dropped += selection.dropped
            try:
                new_lines, new_pairs = self._records(row, group, selection)
            except RowProblem:
                progress.dropped["row_cannot_be_written"] += len(selection.kept)
                continue
            progress.counts.update(kept=len(new_lines), pairs=len(new_pairs), rows_kept=bool(new_lines))
            lines += new_lines
            pairs += new_pairs
        append_lines(self.folder.path / ROWS, lines)
        if self.config.collect.pairs:
            append_lines(self.folder.path / PAIRS, pairs)

    def sample(self, rows: Sequence[Row], batch: int, first_group: int = 0) -> list[Sampled]:
        """`samples_per_row` completions of each row, those of a row together, under the seed of the batch."""
        rollout, each = self.config.rollout, self.config.collect.samples_per_row
        set_seed(int(np.random.SeedSequence([_STREAM, self.config.seed, batch]).generate_state(1)[0]))
        prepared = [self.policy.prepare(row, self.source.loader) for row in rows]
        asked = [item for item in prepared for _ in range(each)]
        groups = [first_group + place // each for place in range(len(asked))]
        if self.agent is not None:
            played = self.agent.play(asked, temperature=rollout.temperature, top_k=rollout.top_k, top_p=rollout.top_p)
            return [
                Sampled(
                    self.policy.episode_rollout(item, group, one, batch + 1),
                    one.texts,
                    revises(one.episode.store.pictures),
                )
                for item, group, one in zip(asked, groups, played, strict=True)
            ]
        completions = self.policy.generate(
            asked, rollout.max_new_tokens, rollout.temperature, rollout.top_k, rollout.top_p
        )
        return [
            Sampled(self.policy.rollout(item.row, group, ids, item.geometry, batch + 1))
            for item, group, ids in zip(asked, groups, completions, strict=True)
        ]

    def _candidates(self, sampled: Sequence[Sampled], table: ScoreTable) -> list[Candidate]:
        rule = self.source.correct
        correct = rule.holds(table.column(rule.name))
        scores = {name: table.column(name) for name in table.names} | {TOTAL: table.total}
        return [
            Candidate(
                one.rollout.text,
                one.rollout.num_tokens,
                one.rollout.stop_reason == "stop",
                float(correct[place]),
                {name: float(values[place]) for name, values in scores.items()},
                one.turns,
                one.revised,
            )
            for place, one in enumerate(sampled)
        ]

    def _records(
        self, row: Row, group: Sequence[Candidate], selection: Selection
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The lines of one row; raises `RowProblem` if the reader would refuse them."""
        if not selection.kept and not selection.pairs:
            return [], []
        prompt = {
            "messages": to_plain(row.messages),
            "images": [self._picture(image) for image in row.images],
            "target": to_plain(row.target),
        }
        rate = to_plain(pass_rate(group))
        lines = [
            {
                "id": f"{row.id}#{place}",
                **prompt,
                **self._written(row, group[place]),
                "pass_rate": rate,
                **_columns(row),
            }
            for place in selection.kept
        ]
        pairs = [
            {
                "id": f"{row.id}#{chosen}>{rejected}",
                **prompt,
                "chosen": group[chosen].text,
                "rejected": group[rejected].text,
                "scores": {
                    "chosen": to_plain(dict(group[chosen].scores)),
                    "rejected": to_plain(dict(group[rejected].scores)),
                },
            }
            for chosen, rejected in selection.pairs
        ]
        for record in (lines or pairs)[:1]:
            interpret(record)
        return lines, pairs

    def _written(self, row: Row, candidate: Candidate) -> dict[str, Any]:
        """What is to be learned: a completion, or turns that `mmreason sft` plays again, with the pictures that tools may bring up."""
        if self.agent is None:
            return {"completion": candidate.text}
        hidden = {name: self._picture(image) for name, image in row.columns.get("hidden", {}).items()}
        kept = {"turns": list(candidate.turns), "agent_format": self.agent.config.format}
        return {**kept, **({"hidden": hidden} if hidden else {})}

    def _picture(self, image: Any) -> str:
        """The picture's place in the run folder; there once, by its content."""
        if not isinstance(image, str):
            return save_picture(image, self.folder.images).relative_to(self.folder.path).as_posix()
        assert self.source.loader is not None  # rows with paths come from a file
        content = self.source.loader.read(image)
        suffix = Path(image).suffix.lower()
        name = hashlib.sha256(content).hexdigest()[:32] + (suffix if suffix in _SUFFIXES else ".img")
        path = self.folder.images / name
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        return path.relative_to(self.folder.path).as_posix()


def _columns(row: Row) -> dict[str, Any]:
    """The row's other columns, as far as JSON can hold them."""
    kept = {}
    for name, value in row.columns.items():
        if name not in _OWN_KEYS:
            try:
                kept[name] = to_plain(value)
            except TypeError:
                continue
    return kept


# ---------------------------------------------------------------------- opening and closing


def open_collection(config: RunConfig, folder: RunFolder, identity: Mapping[str, Any]) -> Progress:
    """Where to go on, with what a killed run left unfinished cut off; or a new start.

    Raises:
        ConfigError: the folder holds another run, or `resume` is a path. ResumeError: this run cannot continue it.
    """
    if config.resume not in ("none", "auto"):
        raise ConfigError(f"resume={config.resume}: mmreason collect continues its own folder only; use resume=auto")
    refuse_other_command(folder, "collect")
    path = folder.path / PROGRESS
    if config.resume == "none" or not path.is_file():
        written = [folder.rollouts, folder.path / ROWS, folder.path / PAIRS]
        if config.resume == "none" and folder.path.is_dir() and any(folder.path.iterdir()):
            raise ConfigError(
                f"run folder {folder.path} is not empty. Choose another name=…, continue the run with "
                "resume=auto, or remove the folder."
            )
        for leftover in written:
            leftover.unlink(missing_ok=True)
        return Progress()
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        check_same_run(saved["identity"], identity, 0)
        progress = Progress(
            saved["batches"],
            saved["bytes"],
            Counter(saved["counts"]),
            Counter(saved["dropped"]),
            Counter(saved["failures"]),
            saved["reward_state"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ResumeError(f"{path} is damaged: {error!r}. Remove the folder, or choose another name=…") from error
    for name in (folder.rollouts.name, ROWS, PAIRS):
        _cut_back(folder.path / name, int(progress.bytes.get(name, 0)))
    return progress


def _cut_back(path: Path, length: int) -> None:
    size = path.stat().st_size if path.is_file() else 0
    if size < length:
        raise ResumeError(
            f"{path} has {size} bytes, and {length} were written before: it was changed since. Remove the folder, or "
            "choose another name=…"
        )
    if size > length:
        os.truncate(path, length)


def _summary(
    config: RunConfig, progress: Progress, source: _Source, folder: RunFolder, seconds: float
) -> dict[str, Any]:
    counts = progress.counts
    return {
        "command": "collect",
        "run_dir": str(folder.path),
        "model": config.model.name,
        "seed": config.seed,
        "rows": counts["rows"],
        "completions": counts["completions"],
        "correct": f"{source.correct.name} {source.correct.sign} {source.correct.number:g}",
        "pass_rate": counts["correct"] / counts["told"] if counts["told"] else None,
        "kept": counts["kept"],
        "rows_kept": counts["rows_kept"],
        "dropped": dict(progress.dropped.most_common()),
        "pairs": counts["pairs"],
        "with_tools": config.agent.enabled,
        "rewards_failed": dict(progress.failures),
        "rows_skipped": source.file.skipped_by_kind if source.file is not None else {},
        "seconds": round(seconds, 1),
    }


def _tell(summary: Mapping[str, Any]) -> None:
    print(
        f"kept {summary['kept']} of {summary['completions']} completions, of {summary['rows_kept']} of {summary['rows']} rows"
    )
    for name, count in summary["dropped"].items():
        print(f"  {name:<22} {count}")
    with_tools = ", with the same agent.*" if summary["with_tools"] else ""
    print(
        f"rows:  {Path(summary['run_dir']) / ROWS}; try: mmreason sft data={Path(summary['run_dir']) / ROWS}{with_tools}"
    )
    if summary["pairs"]:
        print(f"pairs: {summary['pairs']} in {Path(summary['run_dir']) / PAIRS}; try: mmreason dpo data=…")


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "–"
