"""The agent loop: many episodes side by side, the same for training, evaluation and the demo.

What enters: prompts of one generation batch, and how to sample. What leaves: a `Trajectory` for each row: tokens exactly as the model sampled
them and as it was shown them, who wrote which, and the pictures in between.

Turns are sampled for all episodes at once, calls of all episodes run in one batch of the tools' pool, and what an episode has read is not
read again: its keys are kept between turns (`mmreason.prompt_once.generation`). Nothing is ever decoded and tokenized again.

Legend of shapes: N episodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from mmreason.agent.calls import Call, CallError, RawOutcome, WireFormat
from mmreason.agent.episode import Episode, Event, Reply, Stop
from mmreason.agent.eviction import Evicting
from mmreason.agent.formats import get_format
from mmreason.agent.images import ImageStore, Picture
from mmreason.agent.rendering import render
from mmreason.agent.templates import HasProcessor, agent_chat, observation_ids, set_agent_template, system_with_tools
from mmreason.agent.toolbox import Job, Toolbox
from mmreason.config.agent_section import AgentConfig
from mmreason.errors import ImageError, ModelError
from mmreason.prompt_once.generation import Generation, Sampling, TokenListener
from mmreason.prompt_once.packing import Segment
from mmreason.prompt_once.prompts import IMAGE_PAD, Digest, PromptStore
from mmreason.records import ImageGeometry, Row

if TYPE_CHECKING:
    from mmreason.config.schema import RunConfig
    from mmreason.images import ImageLoader
    from mmreason.policy.policy import Policy, Prepared
    from mmreason.prompt_once.sharing import Sharing


#: Said to a model whose older turns leave the context.
_FORGETTING = (
    "You will forget older turns and their pictures. In the thinking of each turn write between <summary> and </summary> all that "
    "you still need."
)


class Player(Protocol):
    """What answers rows in episodes: `AgentLoop`, or a script."""

    def play(self, prepared: Sequence[Prepared], *, temperature: float = 0.0) -> list[Trajectory]:
        """An episode for each prompt."""
        ...


class Writer(Protocol):
    """What writes the turns: `mmreason.prompt_once.generation.Generation`, or a script."""

    def sample(
        self, sampling: Sampling, rows: Sequence[int] | None = None, listener: TokenListener | None = None
    ) -> list[list[int]]:
        """One turn of each of these rows; the listener is told tokens as they come."""
        ...

    def extend(self, row: int, ids: Sequence[int], pictures: Sequence[Digest] = ()) -> None:
        """Give a row more to read before it writes again."""
        ...


class Begin(Protocol):
    """Makes a generation."""

    def __call__(self, prompts: Sequence[int], *, multi_turn: bool = False) -> Generation:
        """A generation whose rows continue these prompts of the store."""
        ...


#: Told (row, event) as things happen.
Listener = Callable[[int, Event], None]


@dataclass(frozen=True)
class Trajectory:
    """One finished episode, as it is trained.

    Attributes:
        ids: tokens after the prompt: turns as sampled, and what the model was shown between them, picture placeholders expanded.
        owner: for each, 1 if the model sampled it (the end of each turn included), 0 if it was put there.
        pictures: digests of the pictures among `ids`, in order of their placeholders.
        geometry: of the same pictures.
        images: the same pictures at the size the model sees.
        segments: the parts of `ids` that are scored, each with the prompt of the store that it continues: one, or one for each turn
            where older turns leave the context.
        turn_ends: how many of `ids` there are at the end of each turn of the model.
        texts: what the model wrote, turn by turn.
        episode: turns, events, pictures, answer and why it ended.
    """

    ids: tuple[int, ...]
    owner: tuple[int, ...]
    pictures: tuple[Digest, ...]
    geometry: tuple[ImageGeometry, ...]
    images: tuple[Image.Image, ...]
    segments: tuple[Segment, ...]
    turn_ends: tuple[int, ...]
    texts: tuple[str, ...]
    episode: Episode

    @property
    def num_sampled(self) -> int:
        """Tokens that the model wrote."""
        return sum(self.owner)

    @property
    def stop(self) -> Stop:
        assert self.episode.stop is not None
        return self.episode.stop


@dataclass
class LoopClock:
    """Where the time of a run of the loop went, in seconds, and what was done."""

    generate_s: float = 0.0
    tools_s: float = 0.0
    observe_s: float = 0.0
    turns: int = 0
    calls: int = 0


@dataclass
class _Running:
    """A row that is still being written."""

    episode: Episode
    ids: list[int] = field(default_factory=list)
    owner: list[int] = field(default_factory=list)
    pictures: list[Digest] = field(default_factory=list)
    geometry: list[ImageGeometry] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)
    turn_ends: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    seen: dict[str, ImageGeometry] = field(default_factory=dict)
    observed: int = 0

    def finished(self, prompt: int, contexts: Sequence[int]) -> Trajectory:
        """The record of the episode.

        Args:
            prompt: of the row, in the store.
            contexts: what each turn continues, where that differs from turn to turn; else empty.
        """
        whole = (Segment(prompt, 0, len(self.ids), tuple(self.pictures)),)
        return Trajectory(
            tuple(self.ids),
            tuple(self.owner),
            tuple(self.pictures),
            tuple(self.geometry),
            tuple(self.images),
            self._turns_apart(contexts) or whole,
            tuple(self.turn_ends),
            tuple(self.texts),
            self.episode,
        )

    def _turns_apart(self, contexts: Sequence[int]) -> tuple[Segment, ...]:
        """A segment for each turn, without what was shown between them."""
        found, start = [], 0
        for context, end in zip(contexts, self.turn_ends, strict=bool(contexts)):
            while not self.owner[start]:
                start += 1
            found.append(Segment(context, start, end))
            start = end
        return tuple(found)


@dataclass(frozen=True)
class _Observation:
    """A reply as the model reads it."""

    ids: list[int]
    digests: list[Digest]
    geometry: dict[str, ImageGeometry]
    images: list[Image.Image]


class AgentLoop:
    """Runs episodes.

    Args:
        policy: writes, where its prompts are shared; else only scripts can be played.
        config: tools, format, budgets.
        max_tokens: of a completion, tools' answers included.
        loader: opens image paths of rows.

    Raises:
        PluginError, ConfigError: a tool is unknown, or an option of one is wrong.
    """

    def __init__(self, policy: Policy, config: AgentConfig, max_tokens: int, loader: ImageLoader | None = None) -> None:
        self.policy, self.config, self.max_tokens, self.loader = policy, config, max_tokens, loader
        self.wire: WireFormat = get_format(config.format, config.strict)
        self.toolbox = Toolbox.from_config(config, policy.family.box_frame)
        native = config.format == "native"
        #: Writes what stands between turns, and the list of tools where the family has a form for it.
        self.chat: HasProcessor = agent_chat(policy, policy.family.model_type) if native else policy
        self.clock = LoopClock()

    # ------------------------------------------------------------------ prompts

    def prepare(self, prepared: Prepared) -> Prepared:
        """The prompt with what the model is told about its tools, as a system message."""
        if not self.config.tell:
            return prepared
        native = self.config.format == "native"
        told = self.wire.instructions(() if native else self.toolbox.specs, self.policy.family.coordinates)
        if self.config.keep_turns is not None:
            told = f"{told}\n{_FORGETTING}"
        messages = list(prepared.messages)
        if messages and messages[0]["role"] == "system":
            first = messages.pop(0)
            told = f"{_text_of(first)}\n\n{told}"
        if native:
            told = system_with_tools(self.chat, told, self.toolbox.schemas())
        return replace(prepared, messages=[{"role": "system", "content": told}, *messages])

    def prepare_all(self, prepared: Sequence[Prepared]) -> list[Prepared]:
        """`prepare` for each; the same prompt stays one object."""
        distinct = {id(item): item for item in prepared}
        told = {key: self.prepare(item) for key, item in distinct.items()}
        return [told[id(item)] for item in prepared]

    def pictures_of(self, row: Row) -> tuple[list[Image.Image], dict[str, Image.Image]]:
        """The pictures of a row, and those that its tools may bring up."""
        return self.policy.open_images(row, self.loader), self.policy.open_hidden(row, self.loader)

    def new_store(self, images: Sequence[Image.Image], hidden: Mapping[str, Image.Image]) -> ImageStore:
        """The pictures of an episode that begins."""
        return ImageStore(images, hidden)

    # ------------------------------------------------------------------ episodes

    def play(
        self,
        prepared: Sequence[Prepared],
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        listener: Listener | None = None,
        token_listener: TokenListener | None = None,
    ) -> list[Trajectory]:
        """Episodes of prompts that need not have been told of the tools; `temperature=0` is greedy.

        Args:
            prepared: the prompts; one that is there several times is read once.
            temperature, top_k, top_p: of sampling.
            listener: told what happens.
            token_listener: told what the model writes, as it writes.
        """
        policy = self.policy
        sharing = shared_or_refused(policy)
        ready = self.prepare_all(prepared)
        stops, banned = tuple(policy.stop_token_ids), tuple(policy.banned_token_ids)
        sampling = Sampling(self.max_tokens, temperature, top_k, top_p, stops, banned)
        was_training = policy.model.training
        policy.model.eval()
        try:
            store = PromptStore(policy)
            added = store.add(ready)

            def begin(prompts: Sequence[int], *, multi_turn: bool = False) -> Generation:
                return sharing.generation(policy.model, store, prompts, multi_turn=multi_turn)

            writer = self.writer(begin, store, added)
            return self.run(writer, store, added, ready, sampling, listener, token_listener)
        finally:
            policy.model.train(was_training)

    def writer(self, begin: Begin, store: PromptStore, prompts: Sequence[int]) -> Writer:
        """What writes the turns of rows that continue these prompts.

        Args:
            begin: makes a generation whose rows continue prompts of the store.
            store: the prompts.
            prompts: of each row.
        """
        if self.config.keep_turns is not None:
            return Evicting(begin, store, prompts, self.config.keep_turns)
        return begin(prompts, multi_turn=True)

    def run(
        self,
        generation: Writer,
        store: PromptStore,
        prompts: Sequence[int],
        prepared: Sequence[Prepared],
        sampling: Sampling,
        listener: Listener | None = None,
        token_listener: TokenListener | None = None,
    ) -> list[Trajectory]:
        """Let N episodes run to their ends.

        Args:
            generation: made by `writer`, one row for each of `prepared`, not yet sampled; or a script.
            store: its prompts and pictures; pictures of tools are added.
            prompts: index in the store of each row's prompt.
            prepared: the prompts.
            sampling: how turns are sampled; its limit of tokens holds for no turn (`agent.max_turn_tokens` does).
            listener: told what happens.
            token_listener: told what the model writes, as it writes.
        """
        # Opened once a prompt, however many episodes it has: no episode changes them.
        distinct = {id(item): item for item in prepared}
        pictures = {key: self.pictures_of(item.row) for key, item in distinct.items()}
        rows = [self._begin(index, item, pictures[id(item)], listener) for index, item in enumerate(prepared)]
        writing = list(range(len(rows)))
        while writing:
            texts = self._write(generation, rows, writing, sampling, token_listener)
            jobs: list[Job] = []
            waiting: list[tuple[int, int]] = []
            for index, (text, complete) in zip(writing, texts, strict=True):
                running = rows[index]
                calls = running.episode.take_turn(text, complete=complete)
                if running.episode.stop is None:
                    waiting.append((index, len(calls)))
                    jobs += [self._job(running, call) for call in calls]
            started = time.monotonic()
            outcomes = iter(self.toolbox.run(jobs))
            self.clock.tools_s += time.monotonic() - started
            self.clock.calls += len(jobs)
            started = time.monotonic()
            writing = [
                index
                for index, count in waiting
                if self._reply(generation, store, index, rows[index], [next(outcomes) for _ in range(count)])
            ]
            self.clock.observe_s += time.monotonic() - started
        contexts = generation.contexts if isinstance(generation, Evicting) else [[]] * len(rows)
        return [one.finished(prompt, own) for one, prompt, own in zip(rows, prompts, contexts, strict=True)]

    def _begin(
        self,
        index: int,
        prepared: Prepared,
        pictures: tuple[list[Image.Image], dict[str, Image.Image]],
        listener: Listener | None,
    ) -> _Running:
        row = prepared.row
        told = None if listener is None else (lambda event: listener(index, event))
        episode = Episode(row, self.new_store(*pictures), self.wire, self.config, self._size_of, told)
        running = _Running(episode)
        running.seen = dict(zip(episode.store.ids, prepared.geometry, strict=True))
        return running

    def geometry_of(self, size: tuple[int, int]) -> ImageGeometry:
        """How the model sees a picture of a tool of `size` (width, height)."""
        return self.policy.geometry_of(size, self.config.picture_max_pixels)

    def _size_of(self, picture: Picture) -> tuple[int, int]:
        """Width and height of a picture in the frame in which the model writes boxes."""
        seen = self.geometry_of(picture.size)
        width, height = self.policy.family.box_frame.extent(seen)
        return round(width), round(height)

    def _write(
        self,
        generation: Writer,
        rows: Sequence[_Running],
        writing: Sequence[int],
        sampling: Sampling,
        token_listener: TokenListener | None,
    ) -> list[tuple[str, bool]]:
        """One turn of each of these rows: its text, and whether it ended by itself."""
        room = [self._turn_room(rows[index]) for index in writing]
        started = time.monotonic()
        told = None if token_listener is None else _within(dict(zip(writing, room, strict=True)), token_listener)
        turns = generation.sample(replace(sampling, max_new_tokens=max(room)), writing, told)
        self.clock.generate_s += time.monotonic() - started
        self.clock.turns += len(turns)
        stops = set(sampling.stops)
        found = []
        for index, ids, most in zip(writing, turns, room, strict=True):
            kept = ids[:most]
            running = rows[index]
            running.ids += kept
            running.owner += [1] * len(kept)
            running.turn_ends.append(len(running.ids))
            complete = bool(kept) and kept[-1] in stops
            running.texts.append(self.policy.text_of(kept))
            found.append((running.texts[-1], complete))
        return found

    def _turn_room(self, running: _Running) -> int:
        left = self.max_tokens - len(running.ids)
        return left if self.config.max_turn_tokens is None else min(left, self.config.max_turn_tokens)

    def _job(self, running: _Running, call: Call) -> Job:
        return Job(call, running.episode.store, running.episode.row, running.seen)

    # ------------------------------------------------------------------ observations

    def _reply(
        self, generation: Writer, store: PromptStore, index: int, running: _Running, outcomes: Sequence[RawOutcome]
    ) -> bool:
        """Show a row what came of its calls; returns whether it goes on writing."""
        episode = running.episode
        reply: Reply | None = episode.observe([self._visible(one) for one in outcomes])
        if episode.stop is not None:
            return False
        assert reply is not None
        seen = self._seen(store, running, reply)
        if not self._fits(running, seen):
            reply = episode.take_back()
            if reply is None:
                return False
            seen = self._seen(store, running, reply)
            if not self._fits(running, seen):
                episode.no_room()
                return False
        generation.extend(index, seen.ids, seen.digests)
        running.ids += seen.ids
        running.owner += [0] * len(seen.ids)
        running.pictures += seen.digests
        running.geometry += seen.geometry.values()
        running.images += seen.images
        running.seen |= seen.geometry
        running.observed += len(seen.ids)
        return True

    def _visible(self, outcome: RawOutcome) -> RawOutcome:
        """The outcome, or, where the model could see one of its pictures at no size, one that says so."""
        try:
            for new in outcome.new:
                self.geometry_of(new.base.size)
        except ImageError as error:
            return replace(
                outcome, text=f"the picture cannot be shown: {error}", new=(), shown=(), error=CallError.tool_failed
            )
        return outcome

    def _fits(self, running: _Running, seen: _Observation) -> bool:
        total = len(running.ids) + len(seen.ids) + self.config.min_turn_tokens
        return total <= self.max_tokens and running.observed + len(seen.ids) <= self.config.max_observation_tokens

    def _seen(self, store: PromptStore, running: _Running, reply: Reply) -> _Observation:
        """Tokens of a reply, one placeholder for each token of a picture."""
        pictures = [running.episode.store[image_id] for image_id in reply.pictures]
        pairs = [self.policy.prepare_image(render(one), self.config.picture_max_pixels) for one in pictures]
        digests = store.add_pictures([image for image, _ in pairs])
        geometry = {one.id: seen for one, (_, seen) in zip(pictures, pairs, strict=True)}
        ids = observation_ids(self.chat, reply.messages)
        pad = self.policy.tokenizer.convert_tokens_to_ids(IMAGE_PAD)
        if ids.count(pad) != len(pairs):
            raise ModelError(
                f"the chat template shows {ids.count(pad)} of {len(pairs)} pictures of a tool: it cannot be used for agents "
                f"with agent.format={self.config.format}"
            )
        counts = iter([seen.num_tokens for seen in geometry.values()])
        expanded = [token for one in ids for token in ([one] * next(counts) if one == pad else [one])]
        return _Observation(expanded, digests, geometry, [image for image, _ in pairs])


def shared_or_refused(policy: Policy) -> Sharing:
    """How the model's prompts are shared; raises `ModelError` if they are not: later turns could not go on from earlier ones."""
    if policy.sharing is None:
        raise ModelError(
            "agent.tools needs shared prompts (policy.prompt_once=auto), and this model's are not shared: "
            "see the line above, or choose a Qwen2-VL, Qwen2.5-VL or Qwen3-VL model with model.attention=auto"
        )
    return policy.sharing


def build_agent(config: RunConfig, policy: Policy, loader: ImageLoader | None = None) -> AgentLoop | None:
    """The loop of a run whose model may call tools; None for one without.

    A model that learns native calls keeps a chat template that writes them, so that it can be served with it.

    Raises:
        ModelError: the model's prompts are not shared. The others of `AgentLoop`.
    """
    if not config.agent.enabled:
        return None
    shared_or_refused(policy)
    if config.agent.format == "native":
        set_agent_template(policy, policy.family.model_type)
    return AgentLoop(policy, config.agent, config.rollout.max_new_tokens, loader)


def _within(room: dict[int, int], listener: TokenListener) -> TokenListener:
    """Tells of each row no more tokens than it has room for: what is sampled beyond is not kept."""

    def told(row: int, tokens: Sequence[int]) -> None:
        kept = tokens[: room[row]]
        room[row] -= len(kept)
        if kept:
            listener(row, kept)

    return told


def _text_of(message: dict[str, Any]) -> str:
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")
