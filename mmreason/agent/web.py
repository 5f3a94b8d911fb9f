"""`mmreason agent --web`: a page on this machine to ask a model with tools, watch its steps, and call every tool by hand.

What enters: a validated configuration, and what stands on the page at first. What leaves: a page on the loopback address; traces that a person saves.
Needs gradio (extra `demo`).

Everything that a model or a tool wrote is shown as text, never as markup. Uploaded pictures go through the guarded loader.
"""

from __future__ import annotations

import html
import json
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from mmreason.agent.command import TRACES
from mmreason.agent.hidden_files import HiddenFiles, open_picture, read_hidden
from mmreason.agent.images import ImageStore
from mmreason.agent.page_start import MAX_HIDDEN, MAX_PICTURES, PageStart, checked_count
from mmreason.agent.playground import Playground, ToolField, arguments_of, fields_of
from mmreason.agent.rendering import render
from mmreason.agent.session import Question, Session, Step
from mmreason.agent.trace import SavedEpisode, write_trace
from mmreason.errors import ConfigError, MMReasonError

if TYPE_CHECKING:
    from mmreason.config.schema import RunConfig

#: The page is for the person at this machine.
HOST = "127.0.0.1"
MAX_UPLOAD = "50mb"
#: Of pictures; gradio's button for sharing would send them elsewhere.
_BUTTONS = ["download", "fullscreen"]
_CSS = """
.mm-steps { font: 14px/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.mm-steps .now { outline: 2px solid currentColor; outline-offset: 2px; border-radius: 4px; }
.mm-steps .error { color: #c2272d; } .mm-steps .writing { opacity: .7; } .mm-steps b { display: inline-block; min-width: 8em; }
"""


@dataclass(frozen=True, eq=False)
class ShownStep:
    """A step as the page keeps it: its picture drawn. Compared by identity: gradio hashes what it keeps, and pictures have no hash."""

    turn: int
    kind: str
    text: str
    picture: Image.Image | None
    picture_id: str

    @classmethod
    def of(cls, step: Step) -> ShownStep:
        """A step of a session; of several pictures the last."""
        event = step.event
        text = event.text
        if event.call is not None:
            call = f"{event.call.tool} {json.dumps(dict(event.call.arguments), ensure_ascii=False, default=str)}"
            text = call if event.kind == "call" else text
        newest = step.pictures[-1] if step.pictures else None
        picture = None if newest is None else render(newest)
        return cls(event.turn + 1, event.kind, text, picture, "" if newest is None else newest.id)


@dataclass(frozen=True)
class Writing:
    """A turn that is being written.

    Attributes:
        turn: counted from 1.
        text: so far.
    """

    turn: int
    text: str


@dataclass(frozen=True)
class _Piece:
    """What a turn (counted from 1) has grown by."""

    turn: int
    text: str


def open_page(config: RunConfig, port: int | None = None, start: PageStart | None = None) -> None:
    """Load the model, open the page, and stay until it is closed with Ctrl-C.

    Args:
        config: with `agent.tools`.
        port: None = a free one.
        start: what stands on the page at first.

    Raises:
        ConfigError: gradio is not installed, or the port is taken.
    """
    require_gradio()
    page = build_page(Session(config), start=start)
    try:
        launch(page, port, block=True)
    except OSError as error:
        raise ConfigError(f"--port {port}: {error}. Leave it out to take a free one.") from None


def require_gradio() -> Any:
    """gradio, without its telemetry; raises `ConfigError` that says how to get it."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise ConfigError(
            f"the page needs gradio ({error}): pip install -c constraints.txt -e '.[demo]', or pip install 'mmreason[demo]'. "
            'Without it: mmreason agent --image FILE "question"'
        ) from None
    return gradio


def launch(page: Any, port: int | None = None, *, block: bool = False) -> str:
    """Serve the page on the loopback address; returns its URL."""
    _, url, _ = page.launch(
        server_name=HOST,
        server_port=port,
        share=False,
        ssr_mode=False,
        mcp_server=False,
        quiet=not block,
        prevent_thread_lock=not block,
        max_file_size=MAX_UPLOAD,
        footer_links=[],
        css=_CSS,
    )
    return str(url)


def build_page(session: Session, traces: Path = TRACES, start: PageStart | None = None) -> Any:
    """The page, not yet served.

    Args:
        session: the loaded model with its tools.
        traces: folder in which traces are saved.
        start: what stands on the page at first; None = nothing.
    """
    gr = require_gradio()
    start = start or PageStart()
    agent = session.config.agent
    with gr.Blocks(title="mmreason agent", analytics_enabled=False) as page:
        gr.Markdown("# mmreason agent")
        told = f"Model {session.config.model.name}, format {agent.format}, tools {', '.join(agent.tools)}."
        gr.HTML(f"<p>{html.escape(told)}</p>")
        with gr.Accordion("Pages and frames for tools to bring up", open=bool(start.hidden), elem_id="hidden"):
            gr.Markdown(
                "`search` looks for words in pages, `select_frames` shows frames by their numbers; the model sees none of them "
                f"before. Up to {MAX_HIDDEN} pictures. The text of a page is a .txt of the same name, or what an engine reads on it."
            )
            hidden = gr.File(
                [str(path) for path in start.hidden] or None,
                label="Pictures, and .txt files of the same names",
                elem_id="hidden-files",
                file_count="multiple",
                file_types=["image", ".txt"],
                height=140,
            )
        with gr.Tab("Ask", elem_id="tab-ask"):
            _ask_tab(gr, session, traces, hidden, start)
        with gr.Tab("Tools by hand", elem_id="tab-tools"):
            begin, inputs, outputs = _tools_tab(gr, Playground(agent.files, agent.workers), hidden, start)
        if start.images or start.hidden:
            page.load(begin, inputs, outputs)
    return page


def hidden_files(gr: Any, paths: Sequence[str] | None) -> HiddenFiles:
    """Uploaded pages and frames, through the guarded loader; a refusal is shown on the page."""
    try:
        return read_hidden(*checked_count(tuple(Path(path) for path in paths or ())))
    except MMReasonError as error:
        raise gr.Error(html.escape(str(error))) from None


# ---------------------------------------------------------------------- asking


def _ask_tab(gr: Any, session: Session, traces: Path, hidden: Any, start: PageStart) -> None:
    steps, place, episode = gr.State([]), gr.State(0), gr.State(None)
    with gr.Row():
        with gr.Column():
            upload = gr.Gallery(
                [str(path) for path in start.images] or None,
                label="Pictures, img_0 first",
                elem_id="ask-image",
                type="filepath",
                file_types=["image"],
                sources=["upload", "clipboard"],
                interactive=True,
                buttons=_BUTTONS,
                columns=3,
                height=240,
            )
            question = gr.Textbox(start.question, label="Question", elem_id="ask-question", lines=2)
            answer = gr.Textbox(
                start.answer, label="Right answer, if you know it (shows the reward)", elem_id="ask-answer"
            )
            with gr.Row():
                temperature = gr.Number(
                    start.temperature, label="Temperature", minimum=0, maximum=10, step=0.1, elem_id="ask-temperature"
                )
                seed = gr.Number(start.seed, label="Seed", minimum=0, precision=0, elem_id="ask-seed")
            run = gr.Button("Run", variant="primary", elem_id="ask-run")
        with gr.Column():
            with gr.Row():
                back = gr.Button("◀ step back", elem_id="ask-back")
                forth = gr.Button("step forth ▶", elem_id="ask-forth")
            where = gr.Textbox(label="Step", interactive=False, elem_id="ask-where")
            said = gr.Textbox(label="What happened", interactive=False, lines=4, elem_id="ask-said")
            picture = gr.Image(
                label="Picture at this step", interactive=False, elem_id="ask-picture", format="png", buttons=_BUTTONS
            )
            result = gr.Textbox(label="Answer", interactive=False, elem_id="ask-result")
            rewards = gr.Dataframe(
                headers=["reward", "value"], label="Reward", interactive=False, elem_id="ask-rewards"
            )
    everything = gr.HTML(label="All steps", elem_id="ask-steps")
    with gr.Row():
        save = gr.Button("Save the trace", elem_id="ask-save")
        saved = gr.Textbox(label="Trace", interactive=False, elem_id="ask-saved")
    view = [where, said, picture, everything]

    def ask(
        uploaded: Sequence[tuple[str, str | None]] | None,
        files: Sequence[str] | None,
        text: str,
        right: str,
        heat: float,
        number: int,
    ) -> Iterator[tuple[Any, ...]]:
        asked = _question(gr, uploaded, hidden_files(gr, files), text, right)
        if asked.hidden and not any(spec.finds_hidden for spec in session.loop.toolbox.specs):
            tools = html.escape(", ".join(session.config.agent.tools))
            raise gr.Error(
                f"None of this session's tools ({tools}) can bring up pages or frames: take those away, or start with "
                "--tools …,search,select_frames"
            )
        yield from _answered(gr, session, asked, float(heat or 0), int(number or 0))

    def step(found: list[ShownStep], at: int, by: int) -> tuple[Any, ...]:
        at = min(max(at + by, 0), max(0, len(found) - 1))
        return (at, *_view(found, at))

    def keep(item: SavedEpisode | None) -> str:
        if item is None:
            raise gr.Error("Run a question first.")
        number = 1
        while (traces / f"web-{number}").exists():
            number += 1
        return f"{write_trace(item, traces / f'web-{number}')}"

    run.click(
        ask,
        [upload, hidden, question, answer, temperature, seed],
        [steps, place, episode, *view, result, rewards],
        concurrency_id="model",
        concurrency_limit=1,
    )
    back.click(lambda found, at: step(found, at, -1), [steps, place], [place, *view])
    forth.click(lambda found, at: step(found, at, 1), [steps, place], [place, *view])
    save.click(keep, [episode], [saved])


def _question(
    gr: Any, uploaded: Sequence[tuple[str, str | None]] | None, hidden: HiddenFiles, text: str, right: str
) -> Question:
    """What was asked on the page; a refusal is shown there."""
    if not text or not text.strip():
        raise gr.Error("Write a question first.")
    paths = [path for path, _ in uploaded or ()]
    if len(paths) > MAX_PICTURES:
        raise gr.Error(f"{len(paths)} pictures: a question may have {MAX_PICTURES}.")
    images = tuple(opened(gr, path) for path in paths)
    return Question(text, images, hidden.pictures, hidden.texts, right.strip() or None)


def _answered(
    gr: Any, session: Session, question: Question, temperature: float, seed: int
) -> Iterator[tuple[Any, ...]]:
    """What the page shows while the model answers: steps, place, episode, where, what was said, picture, all steps, answer, rewards."""
    found: list[ShownStep] = []
    same = gr.skip()
    yield (found, 0, None, *_view(found, 0), "", [])
    for item in streamed(session, question, temperature, seed):
        if isinstance(item, MMReasonError):
            raise gr.Error(html.escape(str(item)))
        if isinstance(item, Writing):
            where = f"turn {item.turn}, being written"
            yield (same, same, same, where, item.text, same, _list(found, -1, item), same, same)
        elif isinstance(item, ShownStep):
            found = [*found, item]
            yield (found, len(found) - 1, None, *_view(found, len(found) - 1), "", [])
        else:
            trace = item.trace
            parts = [[name, "–" if value is None else f"{value:g}"] for name, value in trace.rewards.items()]
            told = trace.answer if trace.answer is not None else f"no answer: ended by {trace.stop.value}"
            yield (found, len(found) - 1, item, *_view(found, len(found) - 1), told, parts)


def opened(gr: Any, path: str) -> Image.Image:
    """An uploaded picture, through the guarded loader; a refusal is shown on the page."""
    try:
        return open_picture(Path(path))
    except MMReasonError as error:
        raise gr.Error(html.escape(str(error))) from None


def streamed(
    session: Session, question: Question, temperature: float, seed: int
) -> Iterator[Writing | ShownStep | SavedEpisode | MMReasonError]:
    """Turns as they are written and steps as they happen, then the finished episode, or why there is none."""
    told: queue.Queue[_Piece | ShownStep | SavedEpisode | MMReasonError | None] = queue.Queue()

    def work() -> None:
        try:
            told.put(
                session.ask(
                    question,
                    lambda step: told.put(ShownStep.of(step)),
                    reader=lambda turn, piece: told.put(_Piece(turn + 1, piece)),
                    temperature=temperature,
                    seed=seed,
                )
            )
        except MMReasonError as error:
            told.put(error)
        finally:
            told.put(None)

    threading.Thread(target=work, daemon=True).start()
    written = Writing(0, "")
    while (item := told.get()) is not None:
        if not isinstance(item, _Piece):
            yield item
            continue
        written = Writing(item.turn, (written.text if item.turn == written.turn else "") + item.text)
        # A model may write faster than a page is sent: what is overtaken is left out.
        if told.empty():
            yield written


def _view(steps: Sequence[ShownStep], at: int) -> tuple[str, str, Image.Image | None, str]:
    """Place, text and picture of a step, and the list of all. The picture is the newest one there was at this step."""
    if not steps:
        return "", "", None, ""
    now = steps[at]
    seen = [step for step in steps[: at + 1] if step.picture is not None]
    picture = seen[-1].picture if seen else None
    shown = f", {seen[-1].picture_id}" if seen else ""
    where = f"{at + 1} of {len(steps)}: turn {now.turn}, {now.kind.replace('_', ' ')}{shown}"
    return where, now.text, picture, _list(steps, at)


def _list(steps: Sequence[ShownStep], at: int, writing: Writing | None = None) -> str:
    """All steps as markup, that at place `at` marked; below them the turn that is being written."""
    lines = []
    for number, step in enumerate(steps):
        kind = "error" if step.kind in ("call_error", "taken_back") else ""
        mark = " now" if number == at else ""
        name = f" {step.picture_id}" if step.picture_id else ""
        text = html.escape(f"{step.text}{name}")
        lines.append(
            f'<div class="{kind}{mark}"><b>{step.turn}. {html.escape(step.kind.replace("_", " "))}</b> {text}</div>'
        )
    if writing is not None:
        lines.append(f'<div class="writing now"><b>{writing.turn}. writes</b> {html.escape(writing.text)}</div>')
    return f'<div class="mm-steps">{"".join(lines)}</div>'


# ---------------------------------------------------------------------- tools by hand


def _tools_tab(
    gr: Any, playground: Playground, hidden: Any, start: PageStart
) -> tuple[Callable[..., tuple[Any, ...]], list[Any], list[Any]]:
    """The tab; returns what begins anew with other pictures, and what that reads and writes."""
    store, texts = gr.State(None), gr.State({})
    #: Changes whenever the store has other pictures: forms are drawn anew.
    version = gr.State(0)
    with gr.Row():
        upload = gr.Image(
            str(start.images[0]) if start.images else None,
            type="filepath",
            image_mode=None,  # the file as it is
            label="Picture",
            elem_id="tool-image",
            sources=["upload", "clipboard"],
        )
        with gr.Column():
            first = "zoom" if "zoom" in playground.names else playground.names[0]
            tool = gr.Dropdown(playground.names, value=first, label="Tool", elem_id="tool-name")
            about = gr.Textbox(playground.spec(first).description, label="What it does", interactive=False, lines=2)
    with gr.Row():
        before = gr.Image(label="Before", interactive=False, elem_id="tool-before", format="png", buttons=_BUTTONS)
        after = gr.Image(label="After", interactive=False, elem_id="tool-after", format="png", buttons=_BUTTONS)
    told = gr.Textbox(label="What a model would read", interactive=False, elem_id="tool-text", lines=2)
    written = gr.Textbox(label="The call as a model would write it, in pixels", interactive=False, elem_id="tool-call")

    def begin(path: str | None, files: Sequence[str] | None, number: int) -> tuple[Any, ...]:
        found = hidden_files(gr, files)
        images = [] if path is None else [opened(gr, path)]
        kept = ImageStore(images, found.pictures) if images or found.pictures else None
        return kept, dict(found.texts), number + 1, images[0] if images else None, None, "", ""

    inputs, outputs = [upload, hidden, version], [store, texts, version, before, after, told, written]
    for given in (upload, hidden):
        given.change(begin, inputs, outputs)
    tool.change(lambda name: playground.spec(name).description, [tool], [about])

    @gr.render(inputs=[store, tool, version])  # type: ignore[untyped-decorator, unused-ignore]
    def form(pictures: ImageStore | None, name: str, _version: int) -> None:
        if pictures is None or (not len(pictures) and playground.spec(name).needs_picture):
            gr.Markdown("Upload a picture: the fields of the tool appear here. Boxes and points are in its pixels.")
            return
        size = pictures[pictures.ids[-1]].size if len(pictures) else (1, 1)
        fields = fields_of(playground.spec(name), pictures.ids, size)
        with gr.Row():
            drawn = [_drawn(gr, one) for one in fields]
        call = gr.Button("Call the tool", variant="primary", elem_id="tool-run")

        def run(kept: ImageStore, pages: dict[str, str], number: int, *values: Any) -> tuple[Any, ...]:
            try:
                found = playground.call(kept, name, arguments_of(fields, values), pages)
            except ConfigError as error:
                raise gr.Error(html.escape(str(error))) from None
            text = found.text if found.error is None else f"{found.error.value}: {found.text}"
            ids = f"new: {', '.join(found.new_ids)}. " if found.new_ids else ""
            wrote = f"{name} {json.dumps(dict(found.call.arguments), ensure_ascii=False)}"
            return kept, number + len(found.new_ids), found.before, found.after, f"{ids}{text}".strip(), wrote

        call.click(run, [store, texts, version, *drawn], [store, version, before, after, told, written])

    return begin, inputs, outputs


def _drawn(gr: Any, one: ToolField) -> Any:
    """The component of a field."""
    common = {
        "label": one.label,
        "elem_id": f"arg-{one.argument}{'-' + one.part if one.part else ''}",
        "interactive": True,
    }
    if one.kind == "choice":
        return gr.Dropdown(list(one.choices), value=one.value, info=one.about, **common)
    if one.kind == "choices":
        return gr.Dropdown(list(one.choices), value=one.value, multiselect=True, info=one.about, **common)
    if one.kind == "flag":
        return gr.Checkbox(one.value, info=one.about, **common)
    if one.kind == "number":
        bounds = {"minimum": one.low, "maximum": one.high, "precision": 0 if one.whole else None}
        return gr.Number(one.value, info=one.about, min_width=120, **bounds, **common)
    return gr.Textbox(one.value or "", info=one.about, **common)
