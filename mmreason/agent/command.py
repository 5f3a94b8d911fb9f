"""The command `mmreason agent`: ask a model with tools, watch it work, keep the trace; and play a trace again.

What enters: parsed words of the command line. What leaves: steps on the terminal, a trace, the exit code. torch is imported only once the words are
known to be right.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from mmreason.agent.hidden_files import open_picture, read_hidden, texts_beside
from mmreason.config.agent_section import AgentConfig
from mmreason.errors import ConfigError, DataError

if TYPE_CHECKING:
    from mmreason.agent.session import Question, Step
    from mmreason.agent.trace import SavedEpisode
    from mmreason.config.schema import RunConfig

#: Called unless --tools says otherwise; with pages or frames also the tools that find those.
DEFAULT_TOOLS = (
    "zoom", "crop", "rotate", "draw_box", "draw_line", "draw_point", "label", "horizontal_line", "vertical_line", "measure",
    "compare",
)  # fmt: skip
FINDING_TOOLS = ("search", "select_frames")


@dataclass(frozen=True)
class _Taught:
    """What a model was taught of tools, so that it need not be told.

    Attributes:
        format: in which it writes calls.
        pages_format: where there are pages to search.
    """

    format: str
    pages_format: str


#: Asked unless --model says otherwise.
DEFAULT_MODEL = "tiny_tools"
#: Of the embedded models.
_TAUGHT = {"tiny_tools": _Taught("deepeyes", "vrag"), "tiny": _Taught("deepeyes", "deepeyes")}
#: Tokens of an episode: of those, and of others.
_TAUGHT_TOKENS, _OTHER_TOKENS = 1200, 4096
#: Parts that are shown where the answer is known: right, and every turn written as it should be.
_REWARD = ("reward=scene_qa", "reward.format=null", "reward.turn_format.weight=0.2")
#: Options of an episode that stand in another section.
_ELSEWHERE = {"max_new_tokens": "rollout.max_new_tokens"}
#: Where traces go.
TRACES = Path("traces")


def agent_config(given: argparse.Namespace, *, more_may_come: bool = False) -> RunConfig:
    """The configuration that the words ask for, checked.

    Args:
        given: `model` (None = the default), `tools`, `format`, `file`, `hidden`, `seed`, `options` (`KEY=VALUE`).
        more_may_come: pages or frames may be added later, so that the tools that find those are there.

    Raises:
        ConfigError: with every problem found.
    """
    from mmreason.agent.formats import get_format
    from mmreason.config.compose import compose
    from mmreason.config.overrides import quote, trained_agent

    model = given.model or DEFAULT_MODEL
    trained = trained_agent(model)
    words = [*_REWARD, f"model={model}", *_of_model(model, trained, texts_beside(given.hidden)), f"seed={given.seed}"]
    words += [f"agent.format={given.format}"] if given.format else []
    tools = given.tools.split(",") if given.tools else trained.get("tools")
    if tools is None:
        named = next((word.partition("=")[2] for word in reversed(words) if word.startswith("agent.format=")), "native")
        writes = get_format(named).writes
        usual = [*DEFAULT_TOOLS, *(FINDING_TOOLS if given.hidden or more_may_come else ())]
        tools = [name for name in usual if writes is None or name in writes]
    words.append(f"agent.tools=[{','.join(quote(name.strip()) for name in tools if name.strip())}]")
    if given.file:
        words.append(f"agent.files=[{','.join(quote(str(path)) for path in given.file)}]")
    words += [_option(word) for word in given.options]
    config = compose("eval", words).config
    if not config.agent.enabled:
        raise ConfigError("--tools names no tool; `mmreason tool list` shows them. Without tools: mmreason eval")
    return config


def _of_model(model: str, trained: Mapping[str, Any], pages: Sequence[Path]) -> tuple[str, ...]:
    """The options that suit a model: those of the run that made it, or those of what it was taught."""
    from mmreason.config.overrides import quote

    if trained:
        told = (f"agent.format={quote(trained['format'])}", f"agent.tell={str(trained['tell']).lower()}")
        return (*told, f"rollout.max_new_tokens={trained['max_new_tokens']}")
    taught = _TAUGHT.get(model)
    if taught is None:
        return (f"rollout.max_new_tokens={_OTHER_TOKENS}",)
    wire = taught.pages_format if pages else taught.format
    return (f"agent.format={wire}", "agent.tell=false", f"rollout.max_new_tokens={_TAUGHT_TOKENS}")


def _option(word: str) -> str:
    """`max_turns=4` as the configuration knows it; dotted keys stay."""
    key, equals, value = word.partition("=")
    if not equals:
        raise ConfigError(f"{word}: expected KEY=VALUE, such as max_turns=4 (put the question in quotes, before it)")
    if "." in key or key in ("reward", "model"):
        return word
    if key in _ELSEWHERE:
        return f"{_ELSEWHERE[key]}={value}"
    if key not in AgentConfig.model_fields:
        from mmreason.registry import did_you_mean

        known = [*AgentConfig.model_fields, *_ELSEWHERE]
        raise ConfigError(f"{word}: there is no such option.{did_you_mean(key, known)} Known: {', '.join(known)}.")
    return f"agent.{key}={value}"


def run_agent(given: argparse.Namespace) -> int:
    """Ask, show, save; returns the exit code.

    Args:
        given: as for `agent_config`; `question`, `image`, `out`, `temperature`, `answer`.

    Raises:
        ConfigError, ImageError, ModelError, PluginError: what cannot be used, and what to do.
    """
    config = agent_config(given)
    _must_find(config, given.hidden)
    out = _free_place(given.out, given.image)
    question = read_question(given.question, given.image, given.hidden, given.answer)
    from mmreason.agent.session import Session
    from mmreason.agent.trace import write_trace

    session = Session(config)
    console = Console()
    with Screen(console, out) as screen:
        # Text that comes in pieces is of use where it can be erased when its turn has been read.
        erasable = console.is_terminal and not console.is_dumb_terminal
        reader = screen.write if erasable else None
        saved = session.ask(question, screen.show, reader=reader, temperature=given.temperature, seed=given.seed)
    write_trace(saved, out)
    screen.finish(saved)
    return 0


def _must_find(config: RunConfig, hidden: Sequence[Path]) -> None:
    """Refuse pages and frames that no tool could bring up."""
    from mmreason.agent.tools import TOOLS

    tools = config.agent.tools
    if hidden and not any(TOOLS.get(name).finds_hidden for name in tools):
        raise ConfigError(
            f"--hidden: none of the tools ({', '.join(tools)}) can bring up pages or frames: add search or select_frames to "
            "--tools, in a --format that writes them, or leave --hidden out"
        )


def read_question(text: str, images: Sequence[Path], hidden: Sequence[Path], answer: str | None) -> Question:
    """A question with its pictures; pages have their text in a `.txt` of the same name.

    Raises:
        ImageError: a picture is refused. ConfigError: pages cannot be told apart, or a text cannot be read.
    """
    from mmreason.agent.session import Question

    found = read_hidden(hidden, texts_beside(hidden))
    return Question(text, tuple(open_picture(path) for path in images), found.pictures, found.texts, answer)


def _free_place(out: Path | None, images: Sequence[Path]) -> Path:
    if out is not None:
        if out.exists():
            raise ConfigError(f"--out {out}: there is something already; a trace is a new folder, choose another name")
        return out
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", images[0].stem)[:60].lstrip(".") if images else ""
    number = 1
    while (TRACES / f"{stem or 'question'}-{number}").exists():
        number += 1
    return TRACES / f"{stem or 'question'}-{number}"


class Screen:
    """Shows steps as they happen, and turns as they are written.

    Leave it (`with`) to give the terminal back as it was.

    Args:
        console: where; pictures are drawn in it only if it is a terminal.
        folder: of the trace, whose pictures are told by their paths.
    """

    def __init__(self, console: Console, folder: Path) -> None:
        self.console, self.folder = console, folder
        self._turn = -1
        self._written = ""
        self._live: Live | None = None

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        self._erase()

    def write(self, turn: int, piece: str) -> None:
        """A piece of a turn (counted from 0); its text stands there until the turn's first step."""
        self._begin(turn)
        if self._live is None:
            self._written = ""
            self._live = Live(console=self.console, transient=True, auto_refresh=False)
            self._live.start()
        # What has left the screen is not needed again.
        room = max(1, self.console.height - _KEPT_LINES)
        self._written = (self._written + printable(piece))[-room * self.console.width :]
        lines = Text(self._written, style="dim").wrap(self.console, self.console.width)
        self._live.update(Text("\n").join(lines[-room:]), refresh=True)

    def _erase(self) -> None:
        """Take away the text of a turn that is being written."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _begin(self, turn: int) -> None:
        if turn != self._turn:
            self._turn = turn
            self._say(f"turn {turn + 1}", "bold")

    def show(self, step: Step) -> None:
        """One step."""
        from mmreason.agent.preview import block_text
        from mmreason.agent.rendering import render
        from mmreason.run_records import pixel_digest

        self._erase()
        event = step.event
        if event.kind != "stop":
            self._begin(event.turn)
        if event.kind == "call" and event.call is not None:
            arguments = json.dumps(dict(event.call.arguments), ensure_ascii=False, default=str)
            self._say(f"  call         {event.call.tool} {arguments}", "cyan")
        elif event.kind != "call" and (event.text or not step.pictures):
            label, style = _LABELS[event.kind]
            self._say(f"  {label:<12} {event.text}", style)
        for picture in step.pictures:
            image = render(picture)
            path = self.folder / "images" / f"{pixel_digest(image)}.png"
            self._say(f"  {picture.id:<12} {image.width} × {image.height} px, {path}", "magenta")
            if self.console.is_terminal and self.console.color_system == "truecolor":
                self.console.print(block_text(image, max_columns=min(64, self.console.width)), end="")

    def finish(self, saved: SavedEpisode) -> None:
        """The answer, the rewards, and where everything is."""
        trace = saved.trace
        if trace.answer is None:
            self._say(f"no answer: {_ENDS.get(trace.stop.value, trace.stop.value)}", "bold yellow")
        else:
            self._say(f"answer: {trace.answer}", "bold green")
        if trace.rewards:
            told = ", ".join(
                f"{name} {'–' if value is None else f'{value:g}'}" for name, value in trace.rewards.items()
            )
            self._say(f"reward: {told}", "")
        written = sum(count for owner, count in trace.owner if owner)
        self._say(f"{len(trace.texts)} turns, {written} tokens written, {len(trace.ids) - written} shown", "dim")
        self._say(f"trace: {self.folder} (play it again: mmreason agent replay {self.folder})", "dim")

    def _say(self, text: str, style: str) -> None:
        self.console.print(Text(printable(text), style=style), soft_wrap=True, highlight=False)


#: Lines of the terminal that stay free while a turn is written.
_KEPT_LINES = 3
_LABELS = {
    "think": ("thinks", ""),
    "call_error": ("error", "red"),
    "observation": ("result", "magenta"),
    "forced_answer": ("told", "yellow"),
    "taken_back": ("taken back", "yellow"),
    "answer": ("answers", "green"),
    "stop": ("ends", "dim"),
}
_ENDS = {
    "no_call": "the last turn held neither a call nor an answer",
    "length": "the tokens ran out inside a turn (max_new_tokens, max_turn_tokens)",
    "budget": "a budget was used up (max_turns, max_calls, max_errors)",
}


def printable(text: str) -> str:
    """Text without what a terminal would take for a command."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "·" for letter in text)


def run_replay(folder: Path, model: str | None, files: Sequence[str]) -> int:
    """Play a trace again and tell what differs; returns 1 if anything does.

    Raises:
        DataError: this is no trace. ConfigError: its model or its tools must be named by hand.
    """
    from mmreason.agent.trace import read_trace

    saved = read_trace(folder)
    from mmreason.agent.loop import AgentLoop
    from mmreason.agent.replay import replay, replay_settings
    from mmreason.policy.policy import Policy

    settings, agent = replay_settings(saved.trace, model, files)
    policy = Policy.load(settings)
    result = replay(saved, AgentLoop(policy, agent, saved.trace.max_new_tokens))
    console = Console()
    for difference in result.differences:
        console.print(Text(printable(difference), style="red"), soft_wrap=True, highlight=False)
    if result.differences:
        told = _changed_versions(saved.trace.made_with, result.again.trace.made_with)
        left_out = ", ".join(saved.trace.question.left_out)
        console.print(Text(f"{len(result.differences)} differences.{told}", style="bold"), soft_wrap=True)
        if left_out:
            console.print(f"The trace does not hold these columns of its row: {left_out}", markup=False)
        return 1
    calls = sum(event.kind == "call" for event in saved.trace.events)
    console.print(
        f"the same: {len(saved.trace.texts)} turns, {calls} calls, {len(saved.trace.pictures)} pictures, "
        f"{len(saved.trace.ids)} tokens"
    )
    return 0


def _changed_versions(before: dict[str, str], after: dict[str, str]) -> str:
    changed = [f"{name} {before[name]} → {now}" for name, now in after.items() if before.get(name, now) != now]
    return f" Versions changed since: {', '.join(changed)}." if changed else ""


def run_web(given: argparse.Namespace) -> int:
    """Open the page with what was given on it; returns when it is closed.

    Args:
        given: as for `agent_config`; `question`, `image`, `temperature`, `answer`, `port`.

    Raises:
        ConfigError, ImageError, ModelError, PluginError: what cannot be used, and what to do.
    """
    from mmreason.agent.page_start import PageStart

    config = agent_config(given, more_may_come=True)
    _must_find(config, given.hidden)
    hidden = (*given.hidden, *texts_beside(given.hidden))
    start = PageStart(
        given.question or "", tuple(given.image), hidden, given.answer or "", given.temperature, given.seed
    )
    start.check()
    from mmreason.agent.web import open_page

    open_page(config, given.port, start)
    return 0


def must_be_trace(path: Path) -> None:
    """Refuse a path that is no folder of a trace before anything is loaded."""
    if not path.is_dir():
        near: list[Any] = sorted(path.parent.glob("*/trace.json")) if path.parent.is_dir() else []
        known = f" Traces there: {', '.join(str(one.parent) for one in near[:5])}." if near else ""
        raise DataError(f"{path}: no such folder.{known} `mmreason agent` writes traces.")
