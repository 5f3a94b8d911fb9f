"""The words of `mmreason agent` and `mmreason agent replay`.

What enters: words of the command line. What leaves: the exit code. Help and refusals need no torch.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from mmreason.command_words import Parser, add_tool_files, must_be_file, parse, positive, seed, temperature
from mmreason.errors import ConfigError

#: How an option begins; a question does not.
_OPTION = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,200}=")


def agent(words: list[str]) -> int:
    if words and words[0] == "replay":
        return _agent_replay(words[1:])
    parser = _agent_parser()
    given = parse(parser, words)
    if given is None:
        return 0
    from mmreason.agent import command

    for path in (*given.image, *given.hidden):
        must_be_file(path)
    if given.web:
        if given.out is not None:
            raise ConfigError(
                "--out: the page saves a trace where its button is pressed, as traces/web-1, -2, …; leave it out"
            )
        # On the page a question may be written later: what stands in its place may be an option.
        if given.question is not None and _OPTION.match(given.question):
            given.question, given.options = None, [given.question, *given.options]
        return command.run_web(given)
    if given.port is not None:
        raise ConfigError("--port: is of the page; add --web, or leave it out")
    if given.question is None:
        raise ConfigError(f'which question? mmreason agent --image FILE "question"\n{parser.format_usage().strip()}')
    return command.run_agent(given)


def _agent_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="mmreason agent",
        description="Let a model answer with tools: shows every thought, call and picture, and writes a trace.",
        epilog="examples: mmreason agent --image photo.png 'What does the sign say?' --tools crop,zoom max_turns=4 · mmreason agent "
        "--web · mmreason agent replay traces/photo-1",
    )
    parser.add_argument("question", nargs="?", metavar="QUESTION", help="in quotes")
    parser.add_argument(
        "options", nargs="*", metavar="KEY=VALUE", help="budgets, such as max_turns=4 max_calls=6 max_pictures=3 "
        "max_new_tokens=800; or any option of `mmreason eval --options`"
    )  # fmt: skip
    add = parser.add_argument
    add("--image", action="append", default=[], type=Path, metavar="FILE", help="img_0; once more: img_1, …")
    add(
        "--hidden",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="a frame, or a page: its text in a .txt of the same name, or read by an engine",
    )
    add("--model", metavar="NAME", help="an embedded model (default: the one for tools), a folder, a run, a hub id")
    add("--tools", metavar="NAME,NAME", help="see `mmreason tool list`; default: those for looking and drawing")
    add(
        "--format",
        choices=("native", "vilasr", "vrag", "deepeyes"),
        help="how calls are written; default: as the model was taught, or as its family does",
    )
    add("--out", type=Path, metavar="TRACE", help="folder of the trace; default: traces/IMAGE-1, -2, …")
    add("--answer", metavar="TEXT", help="the right answer: shows the reward")
    add("--temperature", type=temperature, default=0.0, metavar="T", help="of sampling; 0 (default) is greedy")
    add("--seed", type=seed, default=0, metavar="N", help="of sampling (default 0)")
    add(
        "--web",
        action="store_true",
        help="open a page on this machine instead, with all that was given but --out (needs the extra 'demo')",
    )
    add("--port", type=positive, metavar="N", help="of the page; default: a free one from 7860")
    add_tool_files(parser)
    return parser


def _agent_replay(words: list[str]) -> int:
    parser = Parser(
        prog="mmreason agent replay",
        description="Make the calls of a saved episode again with the real tools and compare pictures, texts and tokens. Exit "
        "code 1 if anything differs.",
    )
    parser.add_argument("trace", type=Path, metavar="TRACE", help="folder that `mmreason agent` wrote")
    parser.add_argument("--model", metavar="NAME", help="needed unless it was the embedded one")
    add_tool_files(parser)
    given = parse(parser, words)
    if given is None:
        return 0
    from mmreason.agent.command import must_be_trace, run_replay

    must_be_trace(given.trace)
    return run_replay(given.trace, given.model, given.file)
