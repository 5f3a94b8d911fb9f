"""The commands `mmreason reward list`, `check` and `score`.

What enters: names and options as typed on the command line, and a file of saved rollouts. What leaves: tables on the
terminal, or one JSON object a line. No torch.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from mmreason.config.schema import RewardConfig
from mmreason.errors import ConfigError, DataError, PluginError, RewardFailure
from mmreason.records import Rollout
from mmreason.rescoring import rollout_from_record
from mmreason.reward_kit.spec import REWARDS, SHAPERS, Per, RewardSpec, ShaperSpec, load_reward_files
from mmreason.reward_kit.summary import ScoreSummary
from mmreason.run_records import read_objects
from mmreason.scoring import RewardRunner, ScoreTable

if TYPE_CHECKING:
    from mmreason.reward_kit.check import Report

_EXAMPLE = "Write NAME[,NAME(option=value,...)], e.g. --reward 'iou(threshold=0.5),format'."
#: A name of a reward (`iou`, `package/name`) or an option.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*(?:/[A-Za-z_][A-Za-z0-9_]*)?")
_BARE = re.compile(r"[^\s,()\[\]=]+")
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}\Z")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]{1,18}\.?[0-9]{0,18}|\.[0-9]{1,18})(?:[eE][+-]?[0-9]{1,3})?\Z")
_WORDS: Mapping[str, bool | None] = {"true": True, "false": False, "null": None, "none": None}


def list_rewards(files: Sequence[str] = ()) -> None:
    """Print every reward: range, what it scores at once, its needs, options and source; then shapers and broken plug-ins.

    Args:
        files: Python files with rewards of your own.
    """
    load_reward_files(files)
    table = Table(title="Rewards", title_justify="left", show_lines=True)
    for heading in ("name", "range", "needs", "options", "what it is"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("name", "range"))
    for _, spec in REWARDS:
        low, high = spec.range
        about = [spec.summary] + ([f"Source: {spec.source}"] if spec.source else [])
        cells = (
            spec.name,
            f"{low:g}..{high:g}" + _SCOPES[spec.per],
            "\n".join(spec.needs),
            _describe_options(spec),
            "\n".join(about),
        )
        table.add_row(*(escape(cell) for cell in cells))
    console = Console()
    console.print(table)
    console.print("Every reward also takes weight=1.0. Set options with reward.NAME.OPTION=VALUE.", highlight=False)
    _list_shapers(console)
    for name, reason in sorted(REWARDS.broken.items()):
        console.print(f"[red]plug-in that failed to load:[/red] {escape(name)}: {escape(reason)}", highlight=False)


_SCOPES: Mapping[Per, str] = {"rollout": "", "group": "\nof a group", "batch": "\nof a batch"}


def _list_shapers(console: Console) -> None:
    """Print every shaper, if there are any."""
    table = Table(title="Shapers: reward.shapers.NAME={}", title_justify="left", show_lines=True)
    for heading in ("name", "needs", "options", "what it is"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "name")
    for _, spec in SHAPERS:
        about = [spec.summary] + ([f"Source: {spec.source}"] if spec.source else [])
        cells = (spec.name, "\n".join(spec.needs), _describe_options(spec), "\n".join(about))
        table.add_row(*(escape(cell) for cell in cells))
    if table.row_count:
        console.print(table)


def check_rewards(spec: str, files: Sequence[str] = (), correct: str | None = None) -> bool:
    """Check rewards and print a table for each, with what every failure means.

    Args:
        spec: rewards with options, as `parse_reward_spec` reads them.
        files: Python files with rewards of your own.
        correct: what counts as correct, for group rewards that ask.

    Returns:
        Whether all checks of all of them passed.

    Raises:
        ConfigError: a reward, an option or a file cannot be used.
    """
    from mmreason.reward_kit.check import check_reward

    asked = parse_reward_spec(spec)
    _no_settings(asked)
    try:
        load_reward_files(files)
        for name in asked:
            if name not in SHAPERS:
                REWARDS.get(name)
    except PluginError as error:  # exit code 1 is for rewards that fail a check
        raise ConfigError(str(error)) from None
    console = Console()
    failed: list[str] = []
    for name, options in asked.items():
        with Console(stderr=True).status(f"checking {name}"):
            report = check_reward(name, options, correct)
        _print_report(console, report)
        failed += [name] * bool(report.failures)
    if len(asked) > 1:
        console.print(f"{len(asked) - len(failed)} of {len(asked)} rewards passed." + _named(failed), highlight=False)
    return not failed


def _named(failed: Sequence[str]) -> str:
    return f" Failed: {', '.join(failed)}." if failed else ""


_COLOURS = {"ok": "green", "FAIL": "bold red", "not applicable": "dim"}


def _print_report(console: Console, report: Report) -> None:
    count = len(report.failures)
    verdict = (
        f"[bold red]{count} check{'s' * (count > 1)} failed[/bold red]" if count else "[green]all checks passed[/green]"
    )
    table = Table(title=f"{escape(report.name)}: {verdict}, {report.num_scored:,} completions", title_justify="left")
    for heading in ("check", "verdict", "seen"):
        table.add_column(heading, overflow="fold", no_wrap=heading != "seen")
    for finding in report.findings:
        colour = _COLOURS[finding.verdict]
        table.add_row(finding.title, f"[{colour}]{finding.verdict}[/{colour}]", escape(finding.seen))
    console.print(table)
    for finding in report.failures:
        console.print(f"\n[bold red]FAIL[/bold red] [bold]{finding.title}[/bold]", highlight=False)
        for text in (finding.problem, finding.meaning):
            console.print(Padding(escape(text), (0, 0, 0, 2)), highlight=False)


def score_file(
    path: str,
    spec: str,
    stream: TextIO,
    files: Sequence[str] = (),
    *,
    correct: str | None = None,
    summary: bool = False,
) -> None:
    """Score saved rollouts again; write lines of JSON, `{"id": ..., "rewards": {name: number or null}}`.

    Lines come in the order of the input. A rollout's numbers depend on its own record alone; those of a group reward on
    all records of the same step and group, those of a batch reward on all of the same step, and where it keeps a state on
    those of the steps before. A failed call is written as null, and what failed is told on stderr at the end.

    Args:
        path: `rollouts.jsonl` of a run, or records of your own (see `rollout_from_record`).
        spec: rewards, as `parse_reward_spec` reads them.
        stream: where the lines go.
        files: Python files with rewards of your own.
        correct: what counts as correct, such as `exact > 0.5`, for group rewards that ask.
        summary: print a histogram of each reward, and its correlation with what is stored, on stderr.

    Raises:
        ConfigError: the spec is wrong.
        DataError: a record cannot be used; names file and line.
        RewardFailure: after the last line, if a reward failed in a larger share of the records than a run
        allows.
    """
    load_reward_files(files)
    rewards = parse_reward_spec(spec)
    _no_settings(rewards)
    asking = [name for name in rewards if name in REWARDS and "correct" in REWARDS.get(name).needs]
    if asking and correct is None:
        raise ConfigError(
            f"'{asking[0]}' needs to know what is correct: score another reward beside it and say when, "
            f"e.g. --reward 'exact,{asking[0]}' --correct 'exact > 0.5'"
        )
    # A broken reward stops nothing half-way here; the share of failures is judged at the end.
    runner = RewardRunner(RewardConfig.model_validate({**rewards, "correct": correct, "max_failure_share": 1.0}))
    collected = ScoreSummary() if summary else None
    for name, record, scores in _scored(path, runner):
        stream.write(json.dumps({"id": name, "rewards": scores}) + "\n")
        if collected is not None:
            collected.add(scores, record)
    stream.flush()
    if collected is not None:
        print("\n".join(collected.lines()), file=sys.stderr)
    _report_failures(runner)


_Scored = tuple[Any, Mapping[str, Any], dict[str, float | None]]


def _no_settings(rewards: Mapping[str, Any]) -> None:
    if settings := [name for name in rewards if name in RewardConfig.model_fields]:
        raise ConfigError(f"--reward: '{settings[0]}' is a setting of a run and not a reward. {_EXAMPLE}")


def _scored(path: str, runner: RewardRunner) -> Iterator[_Scored]:
    """Id, record and rewards of every record, in file order."""
    read = _read(path, runner)
    if not runner.needs_groups:
        for name, record, rollout in read:
            yield name, record, _rewards_of(runner.score([rollout]))[0]
        return
    # Groups may be told apart by their number within one step only.
    everything = list(read)
    steps: dict[int, list[int]] = {}
    for index, (_, _, rollout) in enumerate(everything):
        steps.setdefault(rollout.step, []).append(index)
    scores: dict[int, dict[str, float | None]] = {}
    # In the order of training: a reward may have noted something of the steps before.
    for _, members in sorted(steps.items()):
        table = runner.score([everything[index][2] for index in members])
        scores.update(zip(members, _rewards_of(table), strict=True))
    for index, (name, record, _) in enumerate(everything):
        yield name, record, scores[index]


def _rewards_of(table: ScoreTable) -> list[dict[str, float | None]]:
    columns = table.as_lists()
    return [{name: values[row] for name, values in columns.items()} for row in range(len(table))]


def _read(path: str, runner: RewardRunner) -> Iterator[tuple[Any, Mapping[str, Any], Rollout]]:
    needs = frozenset(need for needed in runner.needs.values() for need in needed)
    for where, record in read_objects(Path(path), "raise"):
        try:
            yield record.get("id", where), record, rollout_from_record(record, needs)
        except DataError as error:
            raise DataError(f"{where}: {error}. Rewards asked for: {', '.join(runner.names)}.") from None


def parse_reward_spec(text: str) -> dict[str, dict[str, Any]]:
    """Read `iou(threshold=0.5),format(tags=[think,answer])` into `{"iou": {"threshold": 0.5}, ...}`.

    Values are numbers, `true`, `false`, `null`, bare words, or lists `[a,b]` of these.

    Raises:
        ConfigError: naming the place in the text.
    """
    return _SpecReader(text).read()


class _SpecReader:
    """Reads a reward spec from left to right."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def read(self) -> dict[str, dict[str, Any]]:
        rewards: dict[str, dict[str, Any]] = {}
        while True:
            name = self._token(_NAME, "the name of a reward")
            if name in rewards:
                raise ConfigError(f"--reward names '{name}' twice; score the file once for each set of options.")
            rewards[name] = self._options() if self._take("(") else {}
            if not self._take(","):
                break
        if self.position < len(self.text):
            raise self._error("',' or the end")
        return rewards

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if self._take(")"):
            return options
        while True:
            key = self._token(_NAME, "the name of an option")
            self._expect("=")
            options[key] = self._list() if self._take("[") else self._literal()
            if self._take(")"):
                return options
            self._expect(",", "',' or ')'")

    def _list(self) -> list[Any]:
        items: list[Any] = []
        if self._take("]"):
            return items
        while True:
            items.append(self._literal())
            if self._take("]"):
                return items
            self._expect(",", "',' or ']'")

    def _literal(self) -> Any:
        word = self._token(_BARE, "a value")
        if word.lower() in _WORDS:
            return _WORDS[word.lower()]
        if _INTEGER.match(word):
            return int(word)
        return float(word) if _DECIMAL.match(word) else word

    def _skip_space(self) -> None:
        while self.position < len(self.text) and self.text[self.position].isspace():
            self.position += 1

    def _token(self, pattern: re.Pattern[str], what: str) -> str:
        self._skip_space()
        match = pattern.match(self.text, self.position)
        if match is None:
            raise self._error(what)
        self.position = match.end()
        self._skip_space()
        return match[0]

    def _take(self, mark: str) -> bool:
        self._skip_space()
        if not self.text.startswith(mark, self.position):
            return False
        self.position += len(mark)
        self._skip_space()
        return True

    def _expect(self, mark: str, what: str | None = None) -> None:
        if not self._take(mark):
            raise self._error(what or f"'{mark}'")

    def _error(self, expected: str) -> ConfigError:
        rest = self.text[self.position : self.position + 20]
        found = f"'{rest}'" if rest else "the end"
        return ConfigError(
            f"--reward {self.text[:200]!r}: expected {expected} at character {self.position + 1}, "
            f"found {found}. {_EXAMPLE}"
        )


def _describe_options(spec: RewardSpec | ShaperSpec) -> str:
    lines = []
    for name in spec.option_names:
        default = spec.options_model.model_fields[name].default
        value = f"[{','.join(map(str, default))}]" if isinstance(default, tuple) else str(default)
        lines.append(f"{name}={value}")
    return "\n".join(lines)


def _report_failures(runner: RewardRunner) -> None:
    """Tell failures on stderr; raise if they are more than a run with default settings would bear."""
    if not runner.failures:
        return
    total: dict[str, int] = {}
    for (name, kind), count in sorted(runner.failures.items()):
        total[name] = total.get(name, 0) + count
        print(f"reward '{name}': {count} of {runner.calls} calls failed ({kind})", file=sys.stderr)
    for name, text in sorted(runner.first_traceback.items()):
        print(f"first failure of '{name}': {text.rstrip()}", file=sys.stderr)
    allowed = float(RewardConfig.model_fields["max_failure_share"].default)
    worst = max(total, key=lambda name: total[name])
    if total[worst] > allowed * runner.calls:
        raise RewardFailure(
            f"reward '{worst}' failed in {total[worst]} of {runner.calls} records (written as null), more "
            f"than the {allowed:.0%} that a run allows by default. See the first failure above."
        )
