"""Demonstrations: prompts with what the model should write, from tasks, from files, and from episodes with tools.

What enters: phases that mix task styles, or the user's own rows. What leaves: data sets of `Demonstration`s, the same at the same place every
time, and a collator that makes model inputs of them.

In a phase, `maze/tools: 2` are the oracle's episodes: its turns as `agent.format` writes them, its calls really made, and labels on
what the model would write alone.

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
from mmreason.data.base import Task, TaskOptions, build_task
from mmreason.data.mixtures import parse_mixture_key
from mmreason.errors import DataError
from mmreason.labelled_boxes import write_target_boxes
from mmreason.policy.policy import Policy, Prepared
from mmreason.records import Row
from mmreason.train.rows import FileRows

if TYPE_CHECKING:
    from mmreason.agent.loop import AgentLoop, Trajectory

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
        owner: for each, 1 if the model should write it.
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
    def of_episode(cls, prepared: Prepared, trajectory: Trajectory) -> Demonstration:
        """Turns of the model, and what it was shown between them."""
        return cls(prepared, trajectory.ids, trajectory.owner, trajectory.images)


@dataclass(frozen=True)
class _Source:
    """One entry of a mixture: a task at one difficulty, answered in one style.

    Attributes:
        task: makes the rows.
        style: of the answers.
        agent: wire format of the oracle's episodes; None for answers in one turn.
    """

    task: Task[TaskOptions]
    style: str
    agent: str | None = None


def parse_source(key: str, seed: int, default_format: str = "native") -> _Source:
    """Build `task/style` or `task/style/difficulty`; raises `ConfigError` with the styles there are."""
    parsed = parse_mixture_key(key)
    agent = parsed.format_of(default_format) if parsed.with_tools else None
    return _Source(build_task(parsed.config, seed), parsed.style, agent)


def scripted_agents(config: RunConfig, policy: Policy) -> dict[str, AgentLoop]:
    """A loop for each wire format, which plays scripts in this process; none without `agent.tools`."""
    if not config.agent.enabled:
        return {}
    from mmreason.agent.loop import AgentLoop

    # Scripts need no child processes: their calls are the oracle's own.
    options = [config.agent.model_copy(update={"workers": 0, "format": name}) for name in FORMAT_NAMES]
    return {one.format: AgentLoop(policy, one, config.rollout.max_new_tokens) for one in options}


class MixtureDataset(Dataset[Demonstration]):
    """Demonstrations in the order of their phases; the same place always holds the same one.

    What is drawn for `BATCHES_SORTED` batches of a phase is put in order of length before it is cut into batches, and these are
    shuffled: rows of a batch are of about one length, and little of it is padding.
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
        self.tokens = {key: self._usual_tokens(source) for key, source in sources.items()}
        self.sources = sources
        self.starts = np.cumsum([0, *(phase.steps * batch_size for phase in phases)])
        self.phases = [
            (list(phase.mixture), np.asarray(list(phase.mixture.values())) / sum(phase.mixture.values()))
            for phase in phases
        ]
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
            return self._episode(self.agents[source.agent], source.task, source.task.row(index))
        row = source.task.example(index, source.style)
        prepared = self.policy.prepare(row)
        completion = source.task.trace(row, source.style, prepared.geometry, self.policy.family.box_frame)
        return Demonstration.of_text(self.policy, prepared, completion)

    def _episode(self, agent: AgentLoop, task: Task[TaskOptions], row: Row) -> Demonstration:
        from mmreason.agent.scripted import plan_texts, play_script

        prepared = self.policy.prepare(row)
        (trajectory,) = play_script(agent, [prepared], [plan_texts(agent, task, prepared)])
        if trajectory.episode.answer is None:
            raise DataError(
                f"row {row.id}: the oracle's episode ends by '{trajectory.stop.value}' before its answer: raise the budgets of "
                "agent.*, or rollout.max_new_tokens"
            )
        return Demonstration.of_episode(agent.prepare(prepared), trajectory)

    def _usual_tokens(self, source: _Source) -> float:
        """Mean number of tokens of a prompt and its completion, over a few."""
        examples = [self._demonstration(source, index) for index in range(8)]
        prompts = self.policy.tokenizer([self.policy.render(one.prepared.messages) for one in examples])["input_ids"]
        images = sum(geometry.num_tokens for one in examples for geometry in one.prepared.geometry)
        return (sum(map(len, prompts)) + sum(len(one.ids) for one in examples) + images) / len(examples)


class RowsDataset(Dataset[Demonstration]):
    """The user's own rows: `columns.completion` is the text to learn, or else the answer is written without thinking.

    Raises:
        DataError: when it is made, if a row has neither a completion nor an answer nor boxes.
    """

    def __init__(self, policy: Policy, rows: Sequence[Row], loader: Any, count: int, seed: int) -> None:
        for row in rows:
            _refuse_nothing_to_learn(row)
        self.policy, self.source, self.loader, self.count = policy, FileRows(rows, seed), loader, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Demonstration:
        row = self.source.row(index)
        prepared = self.policy.prepare(row, self.loader)
        return Demonstration.of_text(self.policy, prepared, self._completion(row, prepared))

    def _completion(self, row: Row, prepared: Prepared) -> str:
        if row.columns.get("completion") is not None:
            return str(row.columns["completion"])
        if "boxes" in row.target:
            answer = write_target_boxes(row.target, prepared.geometry, self.policy.family.box_frame)
        else:
            answer = str(row.target["answer"])
        return f"<think></think><answer>{answer}</answer>"


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
