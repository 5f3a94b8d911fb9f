"""Demonstrations: prompts with what the model should write, from tasks, from files, and from episodes with tools.

What enters: phases that mix task styles, or the user's own rows. What leaves: data sets of `Demonstration`s, the same at the same place every
time, and a collator that makes model inputs of them.

In a phase, `maze/tools: 2` are the oracle's episodes: its turns as `agent.format` writes them, its calls really made, and labels on
what the model would write alone. `maze/mended` are such episodes with a mistake that the oracle makes, sees and mends (`Task.mended_plan`): what
ViLaSR (arXiv 2506.09965) finds by sampling, made. The tokens of the mistake have no labels. ViLaSR trains on whole episodes, in which mistakes are its own
model's; those that are made up would teach to err as often as they are mixed in, while what mends them is learned as well without.

Legend of shapes: B rows, T tokens of prompt and completion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from mmreason.config.agent_section import FORMAT_NAMES
from mmreason.config.schema import RunConfig, SftPhase
from mmreason.data.base import MENDED_STYLE, Task, TaskOptions, build_task
from mmreason.data.mixtures import parse_mixture_key
from mmreason.data.row_forms import RowProblem, refuse_control
from mmreason.errors import DataError
from mmreason.labelled_boxes import write_target_boxes
from mmreason.policy.policy import Policy, Prepared
from mmreason.records import Row
from mmreason.train.rows import FileRows

if TYPE_CHECKING:
    from mmreason.agent.loop import AgentLoop, Trajectory
    from mmreason.images import ImageLoader

#: Label of positions that do not count in the loss.
IGNORE = -100

#: Batches whose rows are put in order of length together.
BATCHES_SORTED = 8


@dataclass(frozen=True)
class Demonstration:
    """A prepared prompt, and what follows it.

    Attributes:
        prepared: the prompt.
        ids: tokens after it, picture placeholders expanded.
        owner: for each, 1 if the model should learn to write it.
        images: pictures among them, at the size the model sees.
    """

    prepared: Prepared
    ids: tuple[int, ...]
    owner: tuple[int, ...]
    images: tuple[Image.Image, ...] = ()

    @classmethod
    def of_text(cls, policy: Policy, prepared: Prepared, completion: str) -> Demonstration:
        """One turn: a text, and the end of the turn."""
        tokenizer = policy.tokenizer
        ids = tokenizer(completion + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        return cls(prepared, tuple(ids), (1,) * len(ids))

    @classmethod
    def of_episode(cls, prepared: Prepared, trajectory: Trajectory, mistakes: Sequence[int] = ()) -> Demonstration:
        """Turns of the model, and what it was shown between them.

        Args:
            prepared: the prompt.
            trajectory: the episode.
            mistakes: turns, from 0, that are not to be learned.
        """
        owner = list(trajectory.owner)
        starts = (0, *trajectory.turn_ends)
        for turn in mistakes:
            owner[starts[turn] : starts[turn + 1]] = [0] * (starts[turn + 1] - starts[turn])
        return cls(prepared, trajectory.ids, tuple(owner), trajectory.images)


@dataclass(frozen=True)
class _Source:
    """One entry of a mixture: a task at one difficulty, answered in one style.

    Attributes:
        task: makes the rows.
        style: of the answers.
        agent: wire format of the oracle's episodes; None for answers in one turn.
        mended: the oracle makes a mistake in each, and mends it.
    """

    task: Task[TaskOptions]
    style: str
    agent: str | None = None
    mended: bool = False


def parse_source(key: str, seed: int, default_format: str = "native") -> _Source:
    """Build `task/style` or `task/style/difficulty`; raises `ConfigError` with the styles there are."""
    parsed = parse_mixture_key(key)
    agent = parsed.format_of(default_format) if parsed.with_tools else None
    return _Source(build_task(parsed.config, seed), parsed.style, agent, parsed.mended)


def scripted_agents(config: RunConfig, policy: Policy) -> dict[str, AgentLoop]:
    """A loop for each wire format, which plays scripts in this process; none without `agent.tools`."""
    if not config.agent.enabled:
        return {}
    from mmreason.agent.loop import AgentLoop

    # Scripts need no child processes: their calls are the oracle's own.
    options = [config.agent.model_copy(update={"workers": 0, "format": name}) for name in FORMAT_NAMES]
    return {one.format: AgentLoop(policy, one, config.rollout.max_new_tokens) for one in options}


def replaying_agent(config: RunConfig, policy: Policy, loader: ImageLoader | None) -> AgentLoop | None:
    """The loop that plays the turns of a file again: its calls are anybody's, so they have their own processes and deadlines."""
    if not config.agent.enabled:
        return None
    from mmreason.agent.loop import AgentLoop

    return AgentLoop(policy, config.agent, config.rollout.max_new_tokens, loader)


class MixtureDataset(Dataset[Demonstration]):
    """Demonstrations in the order of their phases; the same place always holds the same one.

    What is drawn for `BATCHES_SORTED` batches of a phase is put in order of length before it is cut into batches, and these are
    shuffled: rows of a batch are of about one length, and little of it is padding.

    Attributes:
        written_tokens: tokens that a row's model should write, in the mean over all phases.
    """

    def __init__(
        self,
        policy: Policy,
        phases: Sequence[SftPhase],
        batch_size: int,
        seed: int,
        agents: Mapping[str, AgentLoop] | None = None,
        default_format: str = "native",
    ) -> None:
        self.policy, self.seed, self.batch_size, self.agents = policy, seed, batch_size, agents or {}
        sources = {key: parse_source(key, seed, default_format) for phase in phases for key in phase.mixture}
        usual = {key: self._usual_tokens(source) for key, source in sources.items()}
        self.tokens = {key: read for key, (read, _) in usual.items()}
        self.sources = sources
        self.starts = np.cumsum([0, *(phase.steps * batch_size for phase in phases)])
        self.phases = [
            (list(phase.mixture), np.asarray(list(phase.mixture.values())) / sum(phase.mixture.values()))
            for phase in phases
        ]
        steps = np.asarray([phase.steps for phase in phases], dtype=np.float64)
        means = [float(np.dot([usual[key][1] for key in keys], weights)) for keys, weights in self.phases]
        self.written_tokens = float(np.dot(means, steps) / steps.sum())
        self._drawn: tuple[int, list[tuple[int, str]]] = (-1, [])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, position: int) -> Demonstration:
        phase = int(np.searchsorted(self.starts, position, side="right")) - 1
        size = BATCHES_SORTED * self.batch_size
        first = position - (position - int(self.starts[phase])) % size
        if self._drawn[0] != first:
            self._drawn = (first, self._draw(phase, first, min(first + size, int(self.starts[phase + 1]))))
        index, key = self._drawn[1][position - first]
        return self._demonstration(self.sources[key], index)

    def _draw(self, phase: int, first: int, end: int) -> list[tuple[int, str]]:
        """Index and source of what is at places `first` to `end`."""
        keys, weights = self.phases[phase]
        drawn = [
            (index, keys[int(np.random.default_rng([self.seed, index]).choice(len(keys), p=weights))])
            for index in range(first, end)
        ]
        drawn.sort(key=lambda one: self.tokens[one[1]])
        batches = [drawn[start : start + self.batch_size] for start in range(0, len(drawn), self.batch_size)]
        order = np.random.default_rng([self.seed, first, 1]).permutation(len(batches))
        return [one for batch in order for one in batches[batch]]

    def _demonstration(self, source: _Source, index: int) -> Demonstration:
        if source.agent is not None:
            return self._episode(self.agents[source.agent], source, index)
        row = source.task.example(index, source.style)
        prepared = self.policy.prepare(row)
        completion = source.task.trace(row, source.style, prepared.geometry, self.policy.family.box_frame)
        return Demonstration.of_text(self.policy, prepared, completion)

    def _episode(self, agent: AgentLoop, source: _Source, index: int) -> Demonstration:
        from mmreason.agent.scripted import planned_turns, play_script, turn_text

        row = source.task.example(index, MENDED_STYLE) if source.mended else source.task.row(index)
        prepared = self.policy.prepare(row)
        turns = planned_turns(agent, source.task, prepared, mended=source.mended)
        (trajectory,) = play_script(agent, [prepared], [[turn_text(agent, turn) for turn in turns]])
        if trajectory.episode.answer is None:
            raise DataError(
                f"row {row.id}: the oracle's episode ends by '{trajectory.stop.value}' before its answer: raise the budgets of "
                "agent.*, or rollout.max_new_tokens"
            )
        mistakes = [number for number, turn in enumerate(turns) if turn.wrong]
        return Demonstration.of_episode(agent.prepare(prepared), trajectory, mistakes)

    def _usual_tokens(self, source: _Source) -> tuple[float, float]:
        """Mean number of tokens of a row, and of what its model should write, over a few."""
        examples = [self._demonstration(source, index) for index in range(8)]
        prompts = self.policy.tokenizer([self.policy.render(one.prepared.messages) for one in examples])["input_ids"]
        images = sum(geometry.num_tokens for one in examples for geometry in one.prepared.geometry)
        read = sum(map(len, prompts)) + sum(len(one.ids) for one in examples) + images
        return read / len(examples), sum(sum(one.owner) for one in examples) / len(examples)


class RowsDataset(Dataset[Demonstration]):
    """The user's own rows: `columns.completion` is the text to learn, or else the answer is written without thinking.

    Of a row with `columns.turns`, texts of the model's turns as `mmreason collect` writes them, the episode is played again: its calls are
    really made, and labels are on the turns alone.

    Args:
        policy: its tokenizer and its view of pictures.
        rows: the rows.
        loader: opens image paths.
        count: demonstrations, in the order of the seed.
        seed: of the order.
        agent: plays turns; None without `agent.tools`.

    Raises:
        DataError: when it is made, if a row has neither turns nor a completion nor an answer nor boxes, or turns that cannot be
            played; when an episode is read that does not go as it did.
    """

    def __init__(
        self,
        policy: Policy,
        rows: Sequence[Row],
        loader: Any,
        count: int,
        seed: int,
        agent: AgentLoop | None = None,
    ) -> None:
        for row in rows:
            if row.columns.get("turns") is not None:
                _refuse_unplayable(row, agent)
            else:
                _refuse_nothing_to_learn(row)
        self.policy, self.source, self.loader, self.count = policy, FileRows(rows, seed), loader, count
        self.agent = agent

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Demonstration:
        row = self.source.row(index)
        prepared = self.policy.prepare(row, self.loader)
        if self.agent is None:
            return Demonstration.of_text(self.policy, prepared, self._completion(row, prepared))
        if row.columns.get("turns") is not None:
            return self._episode(self.agent, row, prepared)
        return Demonstration.of_text(self.policy, self.agent.prepare(prepared), self._completion(row, prepared))

    def _episode(self, agent: AgentLoop, row: Row, prepared: Prepared) -> Demonstration:
        from mmreason.agent.scripted import play_script

        turns: list[str] = row.columns["turns"]
        (trajectory,) = play_script(agent, [prepared], [turns])
        if list(trajectory.texts) != turns:
            raise DataError(
                f"row {row.id}: its episode has {len(turns)} turns and now ends by '{trajectory.stop.value}' after "
                f"{len(trajectory.texts)}: use the agent.* and rollout.max_new_tokens that it was collected with"
            )
        return Demonstration.of_episode(agent.prepare(prepared), trajectory)

    def _completion(self, row: Row, prepared: Prepared) -> str:
        if row.columns.get("completion") is not None:
            return str(row.columns["completion"])
        if "boxes" in row.target:
            answer = write_target_boxes(row.target, prepared.geometry, self.policy.family.box_frame)
        else:
            answer = str(row.target["answer"])
        return f"<think></think><answer>{answer}</answer>"


def _refuse_unplayable(row: Row, agent: AgentLoop | None) -> None:
    turns, written = row.columns["turns"], row.columns.get("agent_format")
    if agent is None:
        raise DataError(
            f"row {row.id} holds turns of an episode with tools: give agent.tools, and agent.format as it was"
        )
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) for turn in turns):
        raise DataError(f"row {row.id}: `turns` must be a list of the texts that the model wrote, one a turn")
    if written is not None and written != agent.config.format:
        raise DataError(
            f"row {row.id}: its turns are written in {written!r:.40}, not in agent.format={agent.config.format}"
        )
    for turn in turns:
        try:
            refuse_control(turn, "`turns`: the end of a turn is added by itself")
        except RowProblem as problem:
            raise DataError(f"row {row.id}: {problem}") from None


def _refuse_nothing_to_learn(row: Row) -> None:
    completion = row.columns.get("completion")
    if completion is not None and not isinstance(completion, str):
        raise DataError(f"row {row.id}: `completion` must be a text to learn, not {type(completion).__name__}")
    if completion is None and "boxes" not in row.target and "answer" not in row.target:
        raise DataError(
            f"row {row.id} has nothing to learn: supervised training needs a `completion`, a final assistant turn, "
            "or a target with `answer` or `boxes`"
        )


class Collator:
    """Turns demonstrations into right-padded inputs `[B, T]` with labels on the completions only."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.image_id = policy.tokenizer.convert_tokens_to_ids("<|image_pad|>")

    def __call__(self, items: Sequence[Demonstration]) -> dict[str, torch.Tensor]:
        images = [item.prepared.images for item in items]
        prompts = self.policy.processor(
            text=[self.policy.render(item.prepared.messages) for item in items],
            images=images if any(images) else None,
            padding=False,
        )
        length = max(len(p) + len(item.ids) for p, item in zip(prompts["input_ids"], items, strict=True))
        batch: dict[str, torch.Tensor] = {
            "input_ids": torch.full((len(items), length), self.policy.tokenizer.pad_token_id),
            "attention_mask": torch.zeros(len(items), length, dtype=torch.long),
            "labels": torch.full((len(items), length), IGNORE),
            "mm_token_type_ids": torch.zeros(len(items), length, dtype=torch.long),
        }
        for i, (prompt, item) in enumerate(zip(prompts["input_ids"], items, strict=True)):
            start, end = len(prompt), len(prompt) + len(item.ids)
            written = torch.tensor(item.ids)
            batch["input_ids"][i, :end] = torch.cat([torch.tensor(prompt), written])
            batch["attention_mask"][i, :end] = 1
            batch["labels"][i, start:end] = written.masked_fill(torch.tensor(item.owner) == 0, IGNORE)
        batch["mm_token_type_ids"] = (batch["input_ids"] == self.image_id).long()
        pixels = prompts if not any(item.images for item in items) else self._pixels(items)
        for key in ("pixel_values", "image_grid_thw"):
            if key in pixels:
                batch[key] = torch.as_tensor(np.asarray(pixels[key]))
        return batch

    def _pixels(self, items: Sequence[Demonstration]) -> Any:
        """Patches of all pictures in the order of their placeholders: each row's prompt, then its completion."""
        shown = [image for item in items for image in (*item.prepared.images, *item.images)]
        return self.policy.processor.image_processor(images=shown)
