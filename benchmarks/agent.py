"""Turns per second of episodes with tools, ours beside TRL's own tool loop: `python -m benchmarks.agent`.

What enters: sizes (defaults: a random tiny Qwen3-VL, the family whose chat template both sides can use). What leaves: a Markdown table and a JSON
line: for each number of parallel episodes, turns per second by the clock and per CPU second, the seconds in generation, in tools and in everything
else, and how long episodes waited for others, added up over the episodes.

Both sides run the same episodes on the same weights: the model writes, and its tokens are overruled by a script while it does, so that every
forward pass is made and every call is real: pieces of a picture (`mmreason.tools.crop`), which come back as pictures. An episode has two to
four turns, whose thoughts differ by up to `--spread` words; those that have answered leave. TRL's side is stock `GRPOTrainer._generate` with our tools as methods of an
environment (`mmreason.agent.trl_bridge`); ours is `AgentLoop.play`, the preparation of the pictures included.

Both loops go in step: a turn of every episode that goes on, then the calls of all of them. `Waits` says what an episode waits for. Neither the
reading of tools' answers nor book-keeping is waiting: it is done for all, and is among `other`.

With `--tool-ms` the tool waits as long as that, as one that asks another machine would. CPU seconds are those of this process, without the
children in which ours runs such a tool.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import torch
import trl
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.utils import logging
from trl import GRPOConfig, GRPOTrainer

from mmreason.agent.calls import Call, RawOutcome
from mmreason.agent.formats import get_format
from mmreason.agent.loop import AgentLoop
from mmreason.agent.toolbox import Job, Toolbox
from mmreason.agent.trl_bridge import ToolEnvironment, trl_environment
from mmreason.config.agent_section import AgentConfig
from mmreason.config.schema import ModelConfig, PolicyConfig
from mmreason.policy.policy import Policy
from mmreason.policy.tiny import build_model, build_processor
from mmreason.prompt_once.generation import Generation, Sampling, TokenListener
from mmreason.prompt_once.prompts import PromptStore
from mmreason.records import Row

Name = Literal["ours", "stock"]
SIDES: tuple[Name, ...] = ("ours", "stock")
WAITS = ("writers", "callers", "done")
MAX_TURNS, MIN_TURNS = 4, 2
QUESTION = "What is on the sign?"
FRAME = "relative_1000"
MAX_PIXELS = 112**2

SLOW_TOOL = '''
import time
from mmreason.agent.images import NewPicture, Picture
from mmreason.agent.limits import Limits
from mmreason.agent.tools import Box, tool
from mmreason.tools.pieces import cut, whole_pixels

@tool()
def slow_crop(image: Picture, box: Box, limits: Limits) -> NewPicture:
    """Cut a piece out of a picture, to look at it alone.

    Args:
        image: where to cut.
        box: the piece; a very small one is widened.
    """
    time.sleep({seconds})
    return cut(image, whole_pixels(image, box, limits.min_side_px), 1.0, limits)
'''


def turns_of(episode: int) -> int:
    """How many turns an episode has: four, three, two, four, …"""
    return MAX_TURNS - episode % (MAX_TURNS - MIN_TURNS + 1)


@dataclass(frozen=True)
class Script:
    """What the model is made to write.

    Attributes:
        calls: tokens of the call of each turn, the end of the turn included, with a thought of each length there is.
        answers: those of the answer, with each of these thoughts. The k-th of all turns have one length.
        end: token that ends a turn, and fills rows that have ended.
    """

    calls: tuple[tuple[tuple[int, ...], ...], ...]
    answers: tuple[tuple[int, ...], ...]
    end: int

    @classmethod
    def of(cls, tokenizer: Any, tool: str, spread: int = 0) -> Script:
        """Turns whose thoughts have up to `spread` words more than the shortest.

        Raises:
            ValueError: the tokenizer does not make one token of each word, so that turns cannot be brought to one length.
        """
        wire = get_format("native", True)
        boxes = [[100 * turn, 100, 600 + 100 * turn, 700] for turn in range(MAX_TURNS - 1)]
        calls = [Call(tool, {"image": "img_0", "box": box}) for box in boxes]

        def encoded(call: Call | None, words: int) -> list[int]:
            thought = " ".join(["look"] * words)
            text = wire.write_answer(thought, "red") if call is None else wire.write_calls(thought, [call])
            ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
            return ids

        longest = max(len(encoded(call, 1)) for call in (*calls, None))
        padded = []
        for call in (*calls, None):
            words = 1 + longest - len(encoded(call, 1))
            wanted = [longest + more for more in _lengths(spread)]
            turns = [encoded(call, words + more) for more in _lengths(spread)]
            if [len(ids) for ids in turns] != wanted:
                raise ValueError("the turns cannot be brought to one length with this tokenizer")
            padded.append(tuple((*ids, tokenizer.eos_token_id) for ids in turns))
        return cls(tuple(padded[:-1]), padded[-1], tokenizer.eos_token_id)

    @property
    def turn_tokens(self) -> tuple[int, int]:
        """Of the shortest turns and the longest."""
        return len(self.answers[0]), max(map(len, self.answers))

    def tokens(self, episode: int, turn: int) -> tuple[int, ...]:
        """One turn; an episode's longer and shorter thoughts take turns, and so do those of episodes side by side."""
        ways = self.answers if turn == turns_of(episode) - 1 else self.calls[turn]
        return ways[(episode + turn) % len(ways)]

    def block(self, episodes: Sequence[int], turn: int) -> torch.Tensor:
        """`[episodes, tokens]` of one turn, shorter ones filled with the token that ends them."""
        turns = [self.tokens(episode, turn) for episode in episodes]
        longest = max(map(len, turns))
        return torch.tensor([[*ids, *[self.end] * (longest - len(ids))] for ids in turns])


def _lengths(spread: int) -> list[int]:
    """Words that thoughts have more than the shortest: none, all, half of them; 0 where all turns are as long."""
    return [0, spread, spread // 2] if spread else [0]


@dataclass
class Waits:
    """Seconds in which episodes had nothing to do, added up over the episodes.

    Attributes:
        writers: a turn was written, and others were still writing theirs.
        callers: the calls of others were made, before or after its own, or while its own was done.
        done: it was over, and others were not.
    """

    writers: float = 0.0
    callers: float = 0.0
    done: float = 0.0

    def called(self, spent: float, own: Sequence[float]) -> None:
        """Calls of one round, one an episode, took `spent` seconds in all, and these each by itself."""
        self.callers += sum(max(0.0, spent - seconds) for seconds in own)


@dataclass
class Clock:
    """Seconds of one run, and what was done; `cpu` are those of this process, which other work on the machine moves less.

    `ended` is when each episode's newest turn had been written: the last thing that happens to it.
    """

    total: float = 0.0
    generate: float = 0.0
    tools: float = 0.0
    cpu: float = 0.0
    turns: int = 0
    calls: int = 0
    pictures: int = 0
    prompt_tokens: int = 0
    waits: Waits = field(default_factory=Waits)
    ended: dict[int, float] = field(default_factory=dict)

    def wrote(self, last_token: Mapping[int, float]) -> None:
        """All of these episodes have written a turn by now; the last token of each came at that time."""
        now = time.perf_counter()
        self.waits.writers += sum(now - then for then in last_token.values())
        self.ended.update(dict.fromkeys(last_token, now))

    def finish(self, started: float, worked: float) -> None:
        """Everything is over that began at these times, by the clock and in CPU seconds."""
        now = time.perf_counter()
        self.total, self.cpu = now - started, time.process_time() - worked
        self.waits.done = sum(now - then for then in self.ended.values())

    @property
    def other(self) -> float:
        """Prompts, pictures and texts of the tools, book-keeping."""
        return self.total - self.generate - self.tools


@dataclass
class Setting:
    """What both sides run on."""

    folder: Path
    tool: str
    files: tuple[str, ...]
    workers: int
    group: int
    script: Script
    picture: Image.Image = field(repr=False, default_factory=lambda: Image.new("RGB", (112, 112)))


# ---------------------------------------------------------------------- ours


class Overruled(Generation):
    """Writes what the script says, after having computed what it would have written."""

    script: Script
    watch: Clock
    turn = -1

    def sample(
        self, sampling: Sampling, rows: Sequence[int] | None = None, listener: TokenListener | None = None
    ) -> list[list[int]]:
        self.turn += 1
        episodes = list(range(len(self.rows))) if rows is None else list(rows)
        self.block, self.place = self.script.block(episodes, self.turn).to(self.device), 0
        last_token: dict[int, float] = {}

        def told(row: int, tokens: Sequence[int]) -> None:
            last_token[row] = time.perf_counter()

        found = super().sample(sampling, rows, told)
        self.watch.wrote(last_token)
        return found

    def _draw(self, hidden: torch.Tensor, processors: LogitsProcessorList, temperature: float) -> torch.Tensor:
        super()._draw(hidden, processors, temperature)
        if len(hidden) < len(self.block):  # rows that had ended were dropped, all of them
            self.block = self.block[self.block[:, self.place - 1] != self.script.end]
        self.place += 1
        return self.block[:, self.place - 1]


class TimedTools(Toolbox):
    """Tools that note how long the calls of each episode waited for those of the others."""

    watch: Clock

    def run(self, jobs: Sequence[Job]) -> list[RawOutcome]:
        started = time.perf_counter()
        found = super().run(jobs)
        self.watch.waits.called(time.perf_counter() - started, [outcome.seconds for outcome in found])
        return found


class Ours:
    """`AgentLoop` on shared prompts."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        model = ModelConfig(name=str(setting.folder), max_pixels=MAX_PIXELS, min_pixels=3136)
        self.policy = Policy.load(model, device="cpu")
        self.policy.share_prompts(PolicyConfig(prompt_once="force"))
        agent = AgentConfig(
            tools=(setting.tool,),
            files=setting.files,
            format="native",
            workers=setting.workers,
            max_turns=MAX_TURNS + 1,
        )
        self.loop = AgentLoop(self.policy, agent, 4000)
        frame = self.policy.family.box_frame
        self.tools = TimedTools(agent.tools, frame, files=agent.files, workers=agent.workers)
        self.loop.toolbox = self.tools

    def run(self, episodes: int) -> Clock:
        sharing, policy, loop = self.policy.sharing, self.policy, self.loop
        assert sharing is not None
        loop.clock = type(loop.clock)()
        self.tools.watch = clock = Clock()
        content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
        started, worked = time.perf_counter(), time.process_time()
        prompts = []
        for place in range(-(-episodes // self.setting.group)):
            row = Row(f"r/{place}", ({"role": "user", "content": content},), (self.setting.picture,), {"answer": "red"})
            prompts.append(loop.prepare(policy.prepare(row)))
        ready = [prompts[episode // self.setting.group] for episode in range(episodes)]
        policy.model.eval()
        store = PromptStore(policy)
        added = store.add(ready)
        generation = Overruled(policy.model, store, added, sharing.tier.attend, sharing.token_budget, multi_turn=True)
        generation.script, generation.watch = self.setting.script, clock
        sampling = Sampling(4000, 1.0, stops=tuple(policy.stop_token_ids), banned=tuple(policy.banned_token_ids))
        played = loop.run(generation, store, added, ready, sampling)
        clock.finish(started, worked)
        clock.generate, clock.tools = loop.clock.generate_s, loop.clock.tools_s
        clock.turns, clock.calls = loop.clock.turns, loop.clock.calls
        clock.pictures = sum(len(one.pictures) for one in played)
        clock.prompt_tokens = sum(len(store.prompts[place].ids) for place in added)
        return clock


# ---------------------------------------------------------------------- TRL


class Force(LogitsProcessor):
    """Leaves one token possible for each row, at each step, and notes when."""

    block: torch.Tensor
    times: list[float]
    start = -1

    def begin(self, block: torch.Tensor) -> None:
        """A turn of these tokens `[rows, tokens]` comes next."""
        self.block, self.times, self.start = block, [], -1

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.start < 0:
            self.start = input_ids.shape[1]
        self.times.append(time.perf_counter())
        wanted = self.block[:, input_ids.shape[1] - self.start, None].to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter(1, wanted, 0.0)


class Stock(GRPOTrainer):  # type: ignore[misc]
    """TRL's own loop with a clock, its tokens overruled by the script."""

    script: Script
    force: Force
    clock: Clock
    calls: list[float]
    turn = 0
    num_episodes = 0

    def _generate(self, prompts: list[Any]) -> Any:
        self.turn, self.num_episodes, self.calls = 0, len(prompts), []
        started, worked = time.perf_counter(), time.process_time()
        found = super()._generate(prompts)
        self.clock.finish(started, worked)
        self.clock.prompt_tokens = sum(map(len, found[0]))
        self.clock.pictures = sum(map(len, found[-1]))
        return found

    def _generate_single_turn(self, prompt_ids: Any, *rest: Any, **named: Any) -> Any:
        episodes = [one for one in range(self.num_episodes) if turns_of(one) > self.turn]
        if len(episodes) != len(prompt_ids):
            raise RuntimeError(f"turn {self.turn}: {len(prompt_ids)} episodes go on, and {len(episodes)} should")
        # The calls of the round before were made one after the other.
        self.clock.waits.called(sum(self.calls), self.calls)
        self.calls = []
        self.force.begin(self.script.block(episodes, self.turn))
        lengths = [len(self.script.tokens(one, self.turn)) for one in episodes]
        self.turn += 1
        started = time.perf_counter()
        found = super()._generate_single_turn(prompt_ids, *rest, **named)
        self.clock.generate += time.perf_counter() - started
        self.clock.wrote({one: self.force.times[n - 1] for one, n in zip(episodes, lengths, strict=True)})
        self.clock.turns += len(episodes)
        return found

    def _send_telemetry(self) -> None:
        """A benchmark reports to nobody."""


class StockSide:
    """`GRPOTrainer` with the tool as an environment's method."""

    def __init__(self, setting: Setting) -> None:
        AcceleratorState._reset_state()
        GradientState._reset_state()
        self.setting = setting
        self.clock = Clock()
        policy = Policy.load(
            ModelConfig(name=str(setting.folder), max_pixels=MAX_PIXELS, min_pixels=3136), device="cpu"
        )
        base = trl_environment([setting.tool], FRAME, files=setting.files, workers=setting.workers)
        arguments = GRPOConfig(
            output_dir=str(setting.folder / "stock"), max_steps=1, per_device_train_batch_size=2, num_generations=2,
            max_completion_length=4000, report_to="none", use_cpu=True, save_strategy="no", bf16=False,
            gradient_checkpointing=False,
        )  # fmt: skip
        prompt = [{"role": "user", "content": QUESTION}]
        columns = {"prompt": [prompt] * 2, "images": [[setting.picture]] * 2}
        dataset = datasets.Dataset.from_dict(columns).cast_column("images", datasets.List(datasets.Image()))
        self.trainer = Stock(
            model=policy.model,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=arguments,
            train_dataset=dataset,
            processing_class=policy.processor,
            environment_factory=_timed(base, self),
        )
        self.trainer.script, self.trainer.force = setting.script, Force()
        forced = LogitsProcessorList([self.trainer.force])
        policy.model.generate = partial(policy.model.generate, logits_processor=forced)
        self.trainer.current_gradient_accumulation_steps = 1

    def run(self, episodes: int) -> Clock:
        trainer = self.trainer
        self.clock = trainer.clock = Clock()
        trainer.num_generations = episodes
        trainer.model.train()
        example = {"prompt": [{"role": "user", "content": QUESTION}], "images": [self.setting.picture]}
        with torch.no_grad():
            trainer._generate_and_score_completions([dict(example) for _ in range(episodes)])
        return self.clock


def _timed(base: type[ToolEnvironment], side: StockSide) -> Callable[[], ToolEnvironment]:
    """An environment whose calls are counted and timed."""

    class Timed(base):  # type: ignore[misc, valid-type]
        def _call(self, tool: str, arguments: Mapping[str, Any]) -> Any:
            started = time.perf_counter()
            try:
                return super()._call(tool, arguments)
            finally:
                side.trainer.calls.append(time.perf_counter() - started)
                side.clock.tools += side.trainer.calls[-1]
                side.clock.calls += 1

    return Timed


# ---------------------------------------------------------------------- the comparison


def set_up(folder: Path, hidden: int, layers: int, group: int, tool_ms: float, spread: int) -> Setting:
    """Write the model, and the slow tool if one is asked for."""
    processor: Any = build_processor("qwen3_vl", max_pixels=MAX_PIXELS)
    template = (Path(trl.__file__).parent / "chat_templates" / "qwen3_vl.jinja").read_text()
    processor.chat_template = processor.tokenizer.chat_template = template
    model = build_model("qwen3_vl", hidden_size=hidden, num_layers=layers, processor=processor)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    files: tuple[str, ...] = ()
    if tool_ms:
        (folder / "slow_crop.py").write_text(SLOW_TOOL.format(seconds=tool_ms / 1000))
        files = (str(folder / "slow_crop.py"),)
    tool = "slow_crop" if tool_ms else "crop"
    noise = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    workers = 8 if tool_ms else 0
    script = Script.of(processor.tokenizer, tool, spread)
    return Setting(folder / "model", tool, files, workers, group, script, Image.fromarray(noise))


def compare(setting: Setting, numbers: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """For each number of episodes, both sides in turn; the first run of each is not counted."""
    sides: dict[Name, Ours | StockSide] = {"stock": StockSide(setting), "ours": Ours(setting)}
    rows = []
    for episodes in numbers:
        runs: dict[Name, list[Clock]] = {name: [] for name in SIDES}
        for repeat in range(repeats + 1):
            for name in SIDES:
                clock = sides[name].run(episodes)
                if repeat:
                    runs[name].append(clock)
        done = {(one.turns, one.calls, one.pictures) for name in SIDES for one in runs[name]}
        if len(done) != 1:
            raise RuntimeError(f"the sides did not do the same: {done}")
        pairs = list(zip(runs["ours"], runs["stock"], strict=True))
        ratios, cpu_ratios = [b.total / a.total for a, b in pairs], [b.cpu / a.cpu for a, b in pairs]
        rows.append(
            {
                "episodes": episodes,
                "turns": runs["ours"][0].turns,
                "calls": runs["ours"][0].calls,
                **{name: _medians(runs[name]) for name in SIDES},
                "ratio": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)},
                "cpu_ratio": statistics.median(cpu_ratios),
            }
        )
    return rows


def _medians(clocks: Sequence[Clock]) -> dict[str, float]:
    found = {
        name: statistics.median(getattr(one, name) for one in clocks)
        for name in ("total", "generate", "tools", "other", "cpu")
    }
    waits = {f"waits_{name}": statistics.median(getattr(one.waits, name) for one in clocks) for name in WAITS}
    rate = statistics.median(one.turns / one.total for one in clocks)
    cpu_rate = statistics.median(one.turns / one.cpu for one in clocks)
    return {
        **found,
        **waits,
        "turns_per_second": rate,
        "turns_per_cpu_second": cpu_rate,
        "prompt_tokens": clocks[0].prompt_tokens,
    }


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table for a person; `docs/performance.md` shows it as it is."""
    heads = (
        "episodes", "turns", "turns per second: ours", "TRL", "×", "turns per CPU second: ours", "TRL", "×",
        "ours: writing, tools, other (s)", "TRL", "ours: waits for writers, for callers, when done (episode-seconds)", "TRL",
    )  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "| ---: " * len(heads) + "|"]
    for row in rows:
        ours, stock, ratio = row["ours"], row["stock"], row["ratio"]
        cells = [str(row["episodes"]), str(row["turns"])]
        cells += [f"{side['turns_per_second']:.1f}" for side in (ours, stock)]
        cells += [f"{ratio['median']:.2f} ({ratio['low']:.2f} … {ratio['high']:.2f})"]
        cells += [f"{side['turns_per_cpu_second']:.1f}" for side in (ours, stock)]
        cells += [f"{row['cpu_ratio']:.2f}"]
        for parts in (("generate", "tools", "other"), tuple(f"waits_{name}" for name in WAITS)):
            cells += [", ".join(f"{side[part]:.2f}" for part in parts) for side in (ours, stock)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agent", description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, nargs="+", default=[1, 4, 16, 64], help="numbers of parallel episodes")
    parser.add_argument("--group", type=int, default=8, help="episodes of one prompt")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side; one before them is not counted")
    parser.add_argument("--hidden", type=int, default=128, help="width of the language model")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument(
        "--spread", type=int, default=16, help="words by which thoughts differ; 0 = all turns are as long"
    )
    parser.add_argument("--tool-ms", type=float, default=0.0, help="the tool waits as long as this")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    given = parser.parse_args(words)
    if min(given.repeats, given.group, *given.episodes) < 1:
        parser.error("--repeats, --group and --episodes must be at least 1")
    if given.spread < 0:
        parser.error("--spread must be at least 0")
    return given


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    given = arguments(words)
    torch.set_num_threads(given.threads)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        setting = set_up(Path(folder), given.hidden, given.layers, given.group, given.tool_ms, given.spread)
        rows = compare(setting, given.episodes, given.repeats)
    tokens = setting.script.turn_tokens
    print(
        f"random Qwen3-VL, {given.layers} layers of {given.hidden}, turns of {tokens[0]} to {tokens[1]} tokens, {MIN_TURNS} to {MAX_TURNS} an episode, "
        f"prompts shared by {given.group}, tool '{setting.tool}', trl {trl.__version__}, {given.threads} CPU thread(s), "
        f"medians of {given.repeats}\n"
    )
    print(markdown(rows))
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(given).items()}
    result = json.dumps({"settings": settings, "turn_tokens": tokens, "rows": rows})
    print(f"\n{result}")
    if given.json:
        given.json.write_text(result + "\n")


if __name__ == "__main__":
    main()
