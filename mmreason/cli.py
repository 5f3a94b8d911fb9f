"""The `mmreason` command: finds the subcommand, imports only what it needs, turns errors into messages.

What enters: `sys.argv`. What leaves: the exit code: 0 done, 1 failed, 2 wrong command line or configuration,
130 interrupted. `mmreason --help` imports neither Hydra nor pydantic nor torch. `MMREASON_DEBUG=1` shows
tracebacks.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmreason import __version__
from mmreason.command_words import Parser, add_tool_files, folder_names, must_be_file, near, parse, positive, seed, verb
from mmreason.errors import ConfigError, MMReasonError

INTERRUPTED = 130
_VERBS = ("train", "sft", "collect", "dpo", "eval")

USAGE = """\
mmreason teaches vision-language models to reason about images,
by reinforcement learning from rewards that can be checked.

usage: mmreason COMMAND [ARGUMENT …]

training and evaluation (Hydra: key=value, groups, -m sweeps; `mmreason train --help` lists them)
  train                         GRPO; writes a run folder
  sft                           supervised cold start on the same rows
  collect                       rejection sampling: correct answers as rows, or as preference pairs
  dpo                           preference training on such pairs
  eval                          held-out scores with confidence intervals

recipes
  recipe list                   every recipe: paper, parts; `recipe=NAME` runs it
  recipe show NAME              what differs from the paper; published values and the tiny model's

studies
  study NAME [KEY=VALUE …]      a method against a baseline over seeds: figure, intervals, verdict
  study --list                  every study: arms, what decides, paper

rewards
  reward list                   every reward, what it needs and its options
  reward new NAME               a working reward file and its test
  reward check NAME[,NAME…]     can it be trusted, can it be fooled; what each failure means
  reward score FILE --reward NAME[,NAME(option=value)…]
                                score saved rollouts; one JSON object a line

tools
  tool list                     every tool that a model may call, and its arguments
  tool new NAME                 a working tool file and its test
  tool try --image FILE NAME KEY=VALUE …
                                call a tool as a model would; writes the picture

agents
  agent --image FILE "question" [KEY=VALUE …]
                                a model answers with tools: every step, and a trace of it
  agent --web                   the same on a page, and every tool by hand
  agent replay TRACE            play a trace again with the real tools; what differs

data
  data list                     every task and its options
  data preview TASK             a picture of the first rows, answers drawn
  data check FILE               what is in a JSONL file, and every bad row by line

looking
  report RUN                    one HTML page: curves, rollouts, images, boxes
  doctor                        machine, versions, what is missing and how to get it

options
  -h, --help                    this text; also after every command
  --version                     version number

first steps
  mmreason train                                 minutes on a laptop, no download
  mmreason train model=qwen2_5_vl_3b data=my.jsonl
  mmreason report runs/NAME
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the process's exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except MMReasonError as error:
        return _explain(error, error.exit_code)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader went away (`mmreason reward list | head`): nothing is wrong, nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _explain(error, 1)


def _explain(error: Exception, code: int) -> int:
    if os.environ.get("MMREASON_DEBUG") == "1":
        raise error
    print(f"mmreason: {error}", file=sys.stderr)
    return code


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if words else ConfigError.exit_code
    if words[0] in ("--version", "-V"):
        print(f"mmreason {__version__}")
        return 0
    name, rest = words[0], words[1:]
    if name in _VERBS:
        from mmreason.config.command_line import run_verb

        return run_verb(name, rest)
    if name not in _COMMANDS:
        raise ConfigError(f"there is no command '{name}'.{near(name, [*_VERBS, *_COMMANDS])} See `mmreason --help`.")
    return _COMMANDS[name](rest)


def _reward(words: list[str]) -> int:
    verbs = {"list": _reward_list, "new": _reward_new, "check": _reward_check, "score": _reward_score}
    return verb("reward", verbs, words)


def _reward_list(words: list[str]) -> int:
    parser = Parser(prog="mmreason reward list", description="Every reward, what it needs and its options.")
    _add_reward_files(parser)
    given = parse(parser, words)
    if given is None:
        return 0
    from mmreason.reward_kit.commands import list_rewards

    list_rewards(given.file)
    return 0


def _reward_new(words: list[str]) -> int:
    parser = Parser(
        prog="mmreason reward new",
        description="Write a working reward, NAME.py, and its test, test_NAME.py, to be changed into your own.",
    )
    parser.add_argument("name", metavar="NAME", help="of the reward, the function and the file")
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="folder of the files; default: here")
    given = parse(parser, words)
    if given is None:
        return 0
    from mmreason.reward_kit.new import next_commands, write_new_reward

    reward_file, test_file = write_new_reward(given.name, given.out)
    print(f"Wrote {reward_file} and {test_file}. Next:\n{next_commands(given.name, reward_file, test_file)}", end="")
    return 0


def _reward_check(words: list[str]) -> int:
    parser = Parser(
        prog="mmreason reward check",
        description="Try rewards on questions with known answers, on hostile text, and on attempts to be paid for "
        "nothing. Exit code 1 if a check fails.",
        epilog="example: mmreason reward check 'mine,iou(threshold=0.5)' --file mine.py",
    )
    parser.add_argument("reward", metavar="NAME[,NAME(option=value)…]", help="see `mmreason reward list`")
    _add_reward_files(parser)
    _add_correct(parser)
    given = parse(parser, words)
    if given is None:
        return 0
    from mmreason.reward_kit.commands import check_rewards

    return 0 if check_rewards(given.reward, given.file, given.correct) else 1


def _reward_score(words: list[str]) -> int:
    parser = Parser(
        prog="mmreason reward score",
        description="Score saved rollouts again; one JSON object a line: the record's id and its rewards.",
        epilog="example: mmreason reward score runs/NAME/rollouts.jsonl --reward 'iou,format'",
    )
    parser.add_argument("records", metavar="FILE", type=Path, help="rollout records, such as a run's rollouts.jsonl")
    parser.add_argument("--reward", required=True, metavar="SPEC", help="NAME[,NAME(option=value)…]")
    parser.add_argument(
        "--summary", action="store_true", help="histograms and correlation with the stored rewards, on stderr"
    )
    _add_reward_files(parser)
    _add_correct(parser)
    given = parse(parser, words)
    if given is None:
        return 0
    must_be_file(given.records)
    from mmreason.reward_kit.commands import score_file

    score_file(str(given.records), given.reward, sys.stdout, given.file, correct=given.correct, summary=given.summary)
    return 0


def _add_reward_files(parser: argparse.ArgumentParser) -> None:
    text = "Python file with rewards of your own; may be given more than once"
    parser.add_argument("--file", "--files", action="append", default=[], metavar="FILE.py", help=text)


def _add_correct(parser: argparse.ArgumentParser) -> None:
    text = "what counts as correct, such as 'exact > 0.5', for group rewards that ask"
    parser.add_argument("--correct", metavar="CONDITION", help=text)


def _data(words: list[str]) -> int:
    return verb("data", {"list": _data_list, "preview": _data_preview, "check": _data_check}, words)


def _data_list(words: list[str]) -> int:
    parser = Parser(prog="mmreason data list", description="Every task and its options.")
    if parse(parser, words) is None:
        return 0
    from mmreason.config.explain import options
    from mmreason.data.base import TASKS

    for name, task in TASKS:
        summary = (task.__doc__ or "").strip().splitlines()
        print(f"{name}: {summary[0] if summary else 'no description'}")
        for option in options(task.options_model()):
            meaning = f"  {option.meaning}" if option.meaning else ""
            print(f"    task.{option.key}={option.default}  ({option.expected}){meaning}")
    for name, reason in sorted(TASKS.broken.items()):
        print(f"plug-in '{name}' failed to load: {reason}", file=sys.stderr)
    return 0


def _data_preview(words: list[str]) -> int:
    parser = Parser(
        prog="mmreason data preview",
        description="Write one picture with the first rows of a task, their questions and answers drawn.",
        epilog="example: mmreason data preview grounding --count 20 difficulty=3 'objects=[5,5]'",
    )
    parser.add_argument("task", metavar="TASK", help="see `mmreason data list`")
    parser.add_argument("options", nargs="*", metavar="OPTION=VALUE", help="options of the task")
    parser.add_argument("--out", type=Path, metavar="FILE", help="picture to write; default: TASK.png here")
    parser.add_argument("--count", type=positive, default=20, metavar="N", help="rows to show (default 20)")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of the rows (default 0)")
    given = parse(parser, words)
    if given is None:
        return 0
    import yaml

    from mmreason.config.schema import TaskConfig
    from mmreason.data.base import validate_task_config

    options: dict[str, Any] = {}
    for word in given.options:
        key, equals, value = word.removeprefix("task.").partition("=")
        if not equals:
            raise ConfigError(f"{word}: expected OPTION=VALUE, such as difficulty=3")
        if key == "name":
            raise ConfigError(f"{word}: the task is the first word: mmreason data preview {value or 'TASK'}")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"{word}: the value cannot be read; quote it") from None
    validate_task_config(TaskConfig(name=given.task, **options))
    from mmreason.data.preview import write_contact_sheet

    out = given.out or Path(given.task.replace("/", "-") + ".png")
    write_contact_sheet(given.task, out, given.count, given.seed, options)
    print(out)
    return 0


def _data_check(words: list[str]) -> int:
    parser = Parser(
        prog="mmreason data check",
        description="Read every row and image of a JSONL file as training would; list what is wrong by line.",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="JSONL file, as for data=FILE")
    parser.add_argument(
        "--image-root", type=Path, metavar="DIR", help="folder of the images; default: the file's folder"
    )
    parser.add_argument(
        "options", nargs="*", metavar="data.OPTION=VALUE", help="as for train, such as data.max_image_pixels=100000000"
    )
    given = parse(parser, words)
    if given is None:
        return 0
    must_be_file(given.file)
    from rich.console import Console

    from mmreason.data.doctor import check_file, data_config

    options = dict(word.removeprefix("data.").partition("=")[::2] for word in given.options)
    if given.image_root is not None:
        options["image_root"] = str(given.image_root)
    report = check_file(data_config(given.file, options))
    Console().print(report)
    return 0 if report.ok else 1


def _report(words: list[str]) -> int:
    parser = Parser(prog="mmreason report", description="Write one self-contained HTML page about a run.")
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder, such as runs/NAME")
    parser.add_argument("--max-groups", type=positive, default=200, metavar="N", help="groups shown (default 200)")
    parser.add_argument("--image-root", type=Path, metavar="DIR", help="where the images are now, if they moved")
    given = parse(parser, words)
    if given is None:
        return 0
    if not given.run.is_dir():
        raise ConfigError(f"{given.run}: no such run folder.{near(given.run.name, folder_names(given.run.parent))}")
    from mmreason.report.build import build_report

    print(build_report(given.run, max_groups=given.max_groups, image_root=given.image_root))
    return 0


def _agent(words: list[str]) -> int:
    from mmreason.agent.words import agent

    return agent(words)


def _tool(words: list[str]) -> int:
    return verb("tool", {"list": _tool_list, "new": _tool_new, "try": _tool_try}, words)


def _tool_list(words: list[str]) -> int:
    parser = Parser(prog="mmreason tool list", description="Every tool that a model may call, and its arguments.")
    add_tool_files(parser)
    given = parse(parser, words)
    if given is None:
        return 0
    from mmreason.agent.commands import list_tools

    list_tools(given.file)
    return 0


def _tool_new(words: list[str]) -> int:
    parser = Parser(
        prog="mmreason tool new",
        description="Write a working tool, NAME.py, and its test, test_NAME.py, to be changed into your own.",
    )
    parser.add_argument("name", metavar="NAME", help="of the tool, the function and the file")
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="folder of the files; default: here")
    given = parse(parser, words)
    if given is None:
        return 0
    from mmreason.agent.new import next_commands, write_new_tool

    tool_file, test_file = write_new_tool(given.name, given.out)
    print(f"Wrote {tool_file} and {test_file}. Next:\n{next_commands(given.name, tool_file, test_file)}", end="")
    return 0


def _tool_try(words: list[str]) -> int:
    parser = Parser(
        prog="mmreason tool try",
        description="Call a tool as a model would: print what the model would read, write the pictures. Exit code 1 if the "
        "call fails.",
        epilog="example: mmreason tool try --image photo.png crop 'box=[10,20,120,90]'",
    )
    parser.add_argument("name", metavar="NAME", help="see `mmreason tool list`")
    parser.add_argument(
        "arguments", nargs="*", metavar="KEY=VALUE", help="arguments; `image` is img_0 if it is left out"
    )
    parser.add_argument("--image", action="append", default=[], type=Path, metavar="FILE", help="img_0, img_1, …")
    parser.add_argument(
        "--hidden",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="a frame, or a page with its text in a .txt of the same name, for tools that select or search",
    )
    parser.add_argument(
        "--frame",
        default="original_px",
        choices=("original_px", "relative_1000", "relative_1"),
        help="what the numbers of boxes and points count (default: pixels)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="picture to write; default: NAME.png here")
    add_tool_files(parser)
    given = parse(parser, words)
    if given is None:
        return 0
    from mmreason.agent.commands import try_tool

    return 0 if try_tool(given) else 1


def _recipe(words: list[str]) -> int:
    return verb("recipe", {"list": _recipe_list, "show": _recipe_show, "table": _recipe_table}, words)


def _recipe_list(words: list[str]) -> int:
    parser = Parser(prog="mmreason recipe list", description="All recipes: name, source, what they are made of.")
    if parse(parser, words) is None:
        return 0
    from mmreason.recipes import recipes

    for one in recipes():
        print(f"{one.name:<18} {one.source}\n{'':<18} {one.made_of or one.summary}")
    return 0


def _recipe_show(words: list[str]) -> int:
    parser = Parser(
        prog="mmreason recipe show",
        description="One recipe: parts, deviations from its source, published values beside those for the tiny model.",
    )
    parser.add_argument("name", metavar="NAME")
    given = parse(parser, words)
    if given is None:
        return 0
    from mmreason.recipes import as_text, recipe

    print(as_text(recipe(given.name)))
    return 0


def _recipe_table(words: list[str]) -> int:
    from mmreason.recipes import TABLE, as_table, recipes

    parser = Parser(prog="mmreason recipe table", description="Write the page of all recipes from their files.")
    parser.add_argument("--out", type=Path, metavar="FILE", default=TABLE, help=f"default: {TABLE}")
    given = parse(parser, words)
    if given is None:
        return 0
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(as_table(recipes()), encoding="utf-8")
    print(given.out)
    return 0


def _study(words: list[str]) -> int:
    parser = Parser(
        prog="mmreason study",
        description="Run a method against a baseline over several seeds with equal compute; write figure, table and verdict. "
        "The same command continues what was stopped. Exit code 1 if a run failed.",
        epilog="example: mmreason study papo --seeds 0,1 trainer.steps=20 --out runs/short",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="see --list; or a .yaml file of your own")
    parser.add_argument("options", nargs="*", metavar="KEY=VALUE", help="options of the runs; sft.… are the warm-up's")
    parser.add_argument("--list", action="store_true", help="every study: arms, what decides, paper")
    parser.add_argument("--seeds", metavar="N,N,…", help="instead of the study's own")
    parser.add_argument("--jobs", type=positive, default=2, metavar="N", help="processes, a core each (default 2)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of everything; default: runs/study-NAME")
    parser.add_argument("--docs", type=Path, metavar="DIR", help="also write DIR/NAME.md and DIR/NAME.svg")
    parser.add_argument("--report-only", action="store_true", help="run nothing, write the page of what is finished")
    given = parse(parser, words)
    if given is None:
        return 0
    from mmreason.study.command import list_studies, run_study

    if given.list:
        list_studies()
        return 0
    if given.name is None or "=" in given.name:
        raise ConfigError(f"which study? `mmreason study --list` shows them.\n{parser.format_usage().strip()}")
    return run_study(
        given.name,
        given.options,
        seeds=given.seeds,
        jobs=given.jobs,
        out=given.out,
        docs=given.docs,
        report_only=given.report_only,
    )


def _doctor(words: list[str]) -> int:
    parser = Parser(prog="mmreason doctor", description="Machine, versions, what is missing and how to get it.")
    if parse(parser, words) is None:
        return 0
    from mmreason.doctor import run_doctor

    return run_doctor()


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "reward": _reward,
    "tool": _tool,
    "agent": _agent,
    "data": _data,
    "recipe": _recipe,
    "study": _study,
    "report": _report,
    "doctor": _doctor,
}
