"""The live table: the plain line, the table on a terminal, time left, change since the start."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from mmreason.train.live import LiveTable, show, show_time
from mmreason.train.tool_metrics import tool_metrics

METRICS = {
    "reward": 0.53,
    "rewards/iou": 0.41,
    "rewards/format": 0.98,
    "completion_length": 31.4,
    "zero_variance_groups": 0.12,
    "truncated": 0.0,
    "step_seconds": 2.1,
}

TOOLS = {"tools/call_rate": 0.6, "tools/failure_rate": 0.125, "tools/over_budget": 0.05}
TOOL_ROWS = ("episodes with a call", "calls that fail", "episodes cut off")


def plain(**options: object) -> tuple[LiveTable, io.StringIO]:
    out = io.StringIO()
    return LiveTable(80, ["iou", "format"], Console(file=out, force_terminal=False, width=60)), out


def terminal(total: int = 80) -> tuple[LiveTable, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, height=40, _environ={"TERM": "xterm"})
    return LiveTable(total, ["iou", "format"], console), out


def text_of(table: LiveTable, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(table.render())
    return console.export_text()


def test_without_a_terminal_each_step_is_one_line() -> None:
    table, out = plain()
    with table:
        table.update(12, METRICS)
    assert out.getvalue() == (
        "step 12/80  reward 0.53 (iou 0.41, format 0.98)  len 31  zero-var 0.12  trunc 0.00  2.1 s/step  eta 2m23s\n"
    )


def test_metrics_that_are_missing_are_left_out_and_held_out_scores_come_with_them() -> None:
    table, out = plain()
    table.update(80, {"reward": 1.0, "eval/accuracy": 0.615, "parse_failures": 0.25})
    assert out.getvalue() == "step 80/80  reward 1.00  unparsed 0.25  eval/accuracy 0.61\n"


def test_a_run_with_tools_says_how_they_are_used() -> None:
    table, out = plain()
    table.update(80, {"reward": 0.5, **TOOLS, "eval/accuracy": 0.5})
    table.update(80, {"reward": 0.5, **TOOLS, "tools/failure_rate": math.nan})
    assert out.getvalue() == (
        "step 80/80  reward 0.50  tools called 0.60, failed 0.12, cut off 0.05  eval/accuracy 0.50\n"
        "step 80/80  reward 0.50  tools called 0.60, cut off 0.05\n"
    )
    assert TOOLS.keys() <= tool_metrics([]).keys(), "the names are those that are logged"


def test_the_table_has_rows_of_tools_only_where_there_are_tools() -> None:
    table, _ = terminal()
    table.update(1, METRICS)
    assert not [name for name in TOOL_ROWS if name in text_of(table)]
    for step in range(2, 22):
        table.update(step, {**METRICS, **TOOLS, "tools/failure_rate": 0.5 if step <= 6 else 0.25})
    rows = {name: line.split() for line in text_of(table).splitlines() for name in TOOL_ROWS if name in line}
    assert [rows[name][-3:] for name in TOOL_ROWS] == [
        ["0.60", "+0", "share"],
        ["0.25", "-0.25", "share"],
        ["0.05", "+0", "share"],
    ]
    # No call, no share of calls that fail: there is nothing to show, and no zero is made up.
    table, _ = terminal()
    table.update(1, {**METRICS, **TOOLS, "tools/failure_rate": math.nan})
    assert [name for name in TOOL_ROWS if name in text_of(table)] == [TOOL_ROWS[0], TOOL_ROWS[2]]


@pytest.mark.parametrize("width", [20, 30, 45, 60])
def test_rows_of_tools_fit_where_the_others_do(width: int) -> None:
    table, _ = terminal()
    table.update(1, METRICS)
    without = text_of(table, width)
    table.update(2, TOOLS)
    shown = text_of(table, width)
    assert max(map(len, shown.splitlines())) <= width
    if width >= 45:
        assert [line for line in shown.splitlines() if "0.60" in line], "the numbers are not cut off"
        assert len(shown.splitlines()) <= len(without.splitlines()) + 2 * len(TOOLS)


def test_text_in_brackets_is_never_taken_for_markup() -> None:
    table, out = plain()
    table.alarm("answer [bold]12[/bold] [/]")
    assert out.getvalue() == "ALARM answer [bold]12[/bold] [/]\n"
    table, _ = terminal()
    table.alarm("answer [bold]12[/bold] [/]")
    assert "answer [bold]12[/bold] [/]" in text_of(table)


def test_the_table_shows_means_and_the_change_since_the_start() -> None:
    table, out = terminal()
    with table:
        for step in range(1, 21):
            table.update(step, {**METRICS, "rewards/iou": 0.2 if step <= 10 else 0.6, "eval/accuracy": step / 20})
        shown = text_of(table)
    assert out.getvalue(), "it drew on the terminal"
    rows = {line.split("  ")[0].strip() or line.split()[0]: line for line in shown.splitlines() if line.strip()}
    iou = next(line for line in shown.splitlines() if line.strip().startswith("iou"))
    assert "0.60" in iou
    assert "+0.4" in iou
    assert "+0.95" in rows["held-out accuracy"]
    assert "step 20/80" in shown
    assert "2m06s left" in shown
    assert "nan" not in shown


def test_non_finite_values_do_not_spoil_the_table() -> None:
    table, _ = plain()
    table.update(1, {"reward": math.nan, "completion_length": math.inf, "loss": 0.5})
    table.update(2, {"reward": 0.5})
    shown = text_of(table)
    assert "nan" not in shown
    assert "inf" not in shown


def test_time_left_of_a_resumed_run_counts_only_its_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("mmreason.train.live.time.monotonic", lambda: now)
    table, _ = plain()
    with table:
        assert table.seconds_left() is None
        now = 1010.0
        table.update(61, {"reward": 0.1})
        assert table.seconds_left() == pytest.approx(19 * 10.0)


def test_an_exception_leaves_the_terminal_usable() -> None:
    table, _ = terminal()
    with pytest.raises(RuntimeError, match="boom"), table:
        raise RuntimeError("boom")
    assert not table.console._live_stack
    table.update(1, METRICS)


def test_only_the_latest_alarms_stay() -> None:
    table, _ = terminal()
    for number in range(9):
        table.alarm(f"alarm number {number}")
    shown = text_of(table)
    assert "alarm number 8" in shown
    assert "alarm number 4" not in shown


def test_short_forms() -> None:
    assert [show(value) for value in (0.123, -12.34, 123.4)] == ["0.12", "-12.3", "123"]
    assert [show_time(value) for value in (0, 59.4, 140, 3599.6, 11_100)] == [
        "0s",
        "59s",
        "2m20s",
        "1h00m",
        "3h05m",
    ]
