"""A model with its tools, asked by a person: the terminal, the web page and replays share it.

What enters: a validated configuration, a question with pictures, and a listener. What leaves: the steps as they happen, with their pictures,
and the finished episode as it is saved. The loop is that of training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from mmreason.agent.episode import Event
from mmreason.agent.images import ImageStore, Picture
from mmreason.agent.loop import AgentLoop, Listener, Trajectory, shared_or_refused
from mmreason.agent.trace import SavedEpisode, SavedSampling, saved_episode
from mmreason.agent.writing import TurnText
from mmreason.policy.policy import Policy
from mmreason.records import Row

if TYPE_CHECKING:
    from mmreason.config.schema import RunConfig
    from mmreason.policy.policy import Prepared
    from mmreason.prompt_once.generation import TokenListener


@dataclass(frozen=True)
class Step:
    """Something that happened, for people.

    Attributes:
        event: what.
        pictures: the new ones.
    """

    event: Event
    pictures: tuple[Picture, ...] = ()


#: Told each step as it happens.
Watcher = Callable[[Step], None]
#: Told (turn counted from 0, text that it adds) while the model writes.
Reader = Callable[[int, str], None]


class WatchedLoop(AgentLoop):
    """A loop for one episode at a time, whose pictures can be looked at while it runs."""

    store: ImageStore

    def new_store(self, images: Sequence[Image.Image], hidden: Mapping[str, Image.Image]) -> ImageStore:
        self.store = super().new_store(images, hidden)
        return self.store

    def step(self, event: Event) -> Step:
        """An event with its pictures."""
        return Step(event, tuple(self.store[image_id] for image_id in event.pictures))


@dataclass(frozen=True)
class Question:
    """What a person asks.

    Attributes:
        text: the question.
        images: pictures that come with it.
        hidden: pages and frames that tools may bring up, by name.
        pages: texts of pages, by name.
        answer: the right answer; None if nobody knows.
    """

    text: str
    images: tuple[Image.Image, ...]
    hidden: Mapping[str, Image.Image] | None = None
    pages: Mapping[str, str] | None = None
    answer: str | None = None

    def row(self) -> Row:
        """As rows of a data set are."""
        content: list[dict[str, Any]] = [{"type": "image"} for _ in self.images]
        content.append({"type": "text", "text": self.text})
        columns: dict[str, Any] = {}
        if self.hidden:
            columns = {"hidden": dict(self.hidden), "pages": dict(self.pages or {})}
        target = {} if self.answer is None else {"answer": self.answer}
        return Row("asked", ({"role": "user", "content": content},), self.images, target, "asked", columns)


class Session:
    """A loaded model with tools.

    Args:
        config: with `agent.tools`.

    Raises:
        ModelError: the model cannot be loaded, or its prompts are not shared.
        PluginError: a tool is unknown.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.policy = Policy.load(config.model, seed=config.seed)
        self.policy.share_prompts(config.policy)
        shared_or_refused(self.policy)
        self.loop = WatchedLoop(self.policy, config.agent, config.rollout.max_new_tokens)

    def ask(
        self,
        question: Question,
        watcher: Watcher | None = None,
        *,
        reader: Reader | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> SavedEpisode:
        """Let the model answer.

        Args:
            question: with its pictures.
            watcher: told each step as it happens.
            reader: told what the model writes, as it writes; the episode is the same without.
            temperature: 0 = greedy.
            seed: of sampling.

        Raises:
            ImageError: a picture fits no size that the model can see.
        """
        import torch

        torch.manual_seed(seed)
        loop = self.loop
        prepared = self.policy.prepare(question.row())
        written = None if reader is None else _Reading(self.policy.tokenizer, reader)

        def told(_row: int, event: Event) -> None:
            if written is not None:
                written.turn_is_over(event.turn)
            if watcher is not None:
                watcher(loop.step(event))

        trajectory = self.play(prepared, temperature, told, written)
        sampling = SavedSampling(temperature=temperature, seed=seed if temperature > 0 else None)
        return saved_episode(loop, prepared, trajectory, sampling, self._rewards(prepared, trajectory))

    def play(
        self, prepared: Prepared, temperature: float, listener: Listener, token_listener: TokenListener | None
    ) -> Trajectory:
        """One episode, written by the model."""
        return self.loop.play([prepared], temperature=temperature, listener=listener, token_listener=token_listener)[0]

    def _rewards(self, prepared: Prepared, trajectory: Trajectory) -> dict[str, float | None]:
        """Parts and total of the reward, where the answer is known; None where a part does not apply or failed."""
        if "answer" not in prepared.row.target:
            return {}
        from mmreason.scoring import RewardRunner

        table = RewardRunner(self.config.reward).score([self.policy.episode_rollout(prepared, 0, trajectory)])
        parts = {name: _number(table.values[0, k]) for k, name in enumerate(table.names)}
        return {**parts, "total": _number(table.total[0])}


class _Reading:
    """Makes text of the tokens of one episode."""

    def __init__(self, tokenizer: Any, reader: Reader) -> None:
        self._tokenizer, self._reader, self._turn = tokenizer, reader, 0
        self._text = TurnText(tokenizer)

    def __call__(self, _row: int, tokens: Sequence[int]) -> None:
        piece = self._text.add(tokens)
        if piece:
            self._reader(self._turn, piece)

    def turn_is_over(self, turn: int) -> None:
        """Every turn has an event, and its events come after its tokens."""
        if turn == self._turn:
            self._turn, self._text = turn + 1, TurnText(self._tokenizer)


def _number(value: Any) -> float | None:
    number = float(value)
    return number if number == number else None
