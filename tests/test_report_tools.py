"""Tool use on the run page: what a real run with tools logged is drawn in a group of its own; other runs have no such group."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from importlib import resources
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
from headless_browser import ask, errors, headless, started_browser, until
from report_runs import HOSTILE, make_run
from test_agent_loop import AGENT, agent_trainer
from test_report import data_of

from mmreason.config.compose import plain_dict
from mmreason.report.build import build_report
from mmreason.run_records import RunFolder, read_metrics, read_rollouts
from mmreason.train.alarms import AlarmBook
from mmreason.train.tool_metrics import tool_metrics

STEPS = 3
#: Metrics of a model that makes every mistake there is an alarm for.
COLLAPSED = {
    "tools/call_rate": 0.01,
    "tools/failure_rate": 0.9,
    "tools/full_looks": 0.9,
    "tools/failures/duplicate": 0.6,
    "tools/over_budget": 0.8,
}
#: Titles of the charts that each alarm is marked on.
MARKED = {
    "tools given up": "Episodes with a call",
    "calls fail": "Failed attempts, share",
    "calls repeated": "Repeated calls",
    "over budget": "Cut off before the answer",
    "full looks": "Area of crops and zooms",
}
CHART = 'document.querySelectorAll(".tools .chart")'


def in_browser(test: Any) -> Any:
    """Marked like the other tests that drive a browser."""
    for mark in headless:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def trained(config_in: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of three steps, with calls that succeed and calls that fail."""
    config = config_in(
        tmp_path_factory.mktemp("runs"),
        agent=AGENT,
        rollout={"prompts_per_step": 6, "group_size": 4, "max_new_tokens": 200},
        reward={"exact": {"weight": 1.0}, "correct": "exact > 0.5", "zero_alarm_steps": 1},
        trainer={"steps": STEPS},
    )
    agent_trainer(config).fit()
    folder = RunFolder(Path(config.out) / config.name)
    folder.write_config(plain_dict(config))
    return folder


def changed(trained: RunFolder, path: Path, *more: dict[str, Any]) -> RunFolder:
    """The metrics of the run with one step more for each of `more`, which change the last line."""
    folder = RunFolder(path).create()
    folder.write_config(trained.read_config())
    lines = list(read_metrics(trained.metrics))
    lines += [lines[-1] | values | {"step": STEPS + place} for place, values in enumerate(more, 1)]
    for line in lines:
        folder.append_metrics(line)
    return folder


def script() -> str:
    return resources.files("mmreason.report").joinpath("tools.js").read_text(encoding="utf-8")


# ---------------------------------------------------------------------- without a browser


def test_every_metric_of_tools_has_its_place() -> None:
    drawn = {f"tools/{name}" for name in re.findall(r'\["([a-z_/]+)", "', script())}
    logged = {name for name in tool_metrics([], []) if not name.startswith("tools/failures/")}
    assert drawn == logged | {"tools/failures/duplicate"}
    assert 'prefix: "tools/failures/"' in script()


def test_every_alarm_of_tools_has_its_place() -> None:
    placed = {key for keys in re.findall(r"alarms: \[([^\]]+)\]", script()) for key in re.findall('"([^"]+)"', keys)}
    found = AlarmBook([], zero_steps=1).alarms(1, {"tools/call_rate": 0.0})
    book = AlarmBook([], zero_steps=1)
    found += book.alarms(1, {"tools/call_rate": 0.9}) + book.alarms(2, COLLAPSED)
    assert placed == {alarm.key for alarm in found}
    assert placed - {"tools never called"} == set(MARKED)


def test_the_page_holds_what_the_run_logged(trained: RunFolder) -> None:
    lines = list(read_metrics(trained.metrics))
    series = data_of(build_report(trained.path))["series"]
    told = {name for line in lines for name, value in line.items() if name.startswith("tools/") and value is not None}
    assert {"tools/call_rate", "tools/failures/unknown_image", "tools/accuracy_with", "tools/look_area"} <= told
    assert {name for name in series if name.startswith("tools/")} == told
    for name in told:
        assert series[name] == {"x": [*range(1, STEPS + 1)], "y": [line[name] for line in lines]}


def test_hostile_names_stay_inside_their_strings(trained: RunFolder, tmp_path: Path) -> None:
    name = f"tools/failures/{HOSTILE}".encode("ascii", "ignore").decode()
    page = build_report(changed(trained, tmp_path, {name: 0.5}).path)
    text = page.read_text(encoding="utf-8")
    assert (text.count("<script"), text.count("</script"), text.count("<img")) == (2, 2, 0)
    assert any(known.startswith("tools/failures/</script><script>") for known in data_of(page)["series"])


@pytest.mark.parametrize("mask_truncated", [False, True])
def test_the_page_shows_what_was_in_the_loss(
    make_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, mask_truncated: bool
) -> None:
    """Episodes that were cut off are kept, but those cut inside a turn are masked where `objective.mask_truncated` says so."""
    config = make_config(
        agent=AGENT | {"over_budget": "keep"},
        objective={"mask_truncated": mask_truncated},
        rollout={"prompts_per_step": 6, "group_size": 4, "max_new_tokens": 200},
        trainer={"steps": 1},
    )
    trainer = agent_trainer(config)
    masks: list[list[int]] = []
    record = trainer._record
    monkeypatch.setattr(
        trainer, "_record", lambda output: (masks.extend(trainer.loss_mask(output).tolist()), record(output))
    )
    trainer.fit()
    folder = RunFolder(Path(config.out) / config.name)
    folder.write_config(plain_dict(config))
    kinds: set[tuple[str, bool]] = set()
    for one, mask in zip(read_rollouts(folder.rollouts), masks, strict=True):
        starts = list(accumulate((span[1] for span in one["spans"]), initial=0))
        counts = [sum(mask[start:end]) for start, end in pairwise(starts)]
        assert one["trained"] == counts
        kinds.add((one["stop_reason"], sum(counts) > 0))
    assert {("budget", True), ("length", not mask_truncated), ("stop", True)} <= kinds
    told = [record["trained"] for record in read_rollouts(folder.rollouts)]
    groups = data_of(build_report(folder.path, max_groups=100))["groups"]
    shown = [[span["trained"] for span in rollout["trajectory"]["spans"]] for g in groups for rollout in g["rollouts"]]
    assert sorted(shown) == sorted(told)


# ---------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from started_browser(tmp_path_factory.mktemp("profile"))


def opened(browser: Any, folder: RunFolder) -> Any:
    browser.get(build_report(folder.path).as_uri())
    return browser


def titles(browser: Any) -> list[str]:
    found: list[str] = ask(browser, f'[...{CHART}].map(c => c.querySelector("strong").textContent)')
    return found


def keys(browser: Any, title: str) -> dict[str, str]:
    """What stands beside each colour of a chart -> the value beside it."""
    found: list[tuple[str, str]] = ask(
        browser,
        f"[...[...{CHART}].find(c => c.querySelector('strong').textContent === {json.dumps(title)})"
        ".querySelectorAll('.key')].map(k => [k.childNodes[1].textContent, k.querySelector('b').textContent])",
    )
    return dict(found)


@in_browser
def test_a_run_with_tools_has_a_group_of_charts(browser: Any, trained: RunFolder) -> None:
    opened(browser, trained)
    last = [*read_metrics(trained.metrics)][-1]
    assert ask(browser, 'document.querySelector(".tools h3").textContent') == "Tools"
    assert titles(browser)[:4] == [
        "Episodes with a call",
        "Calls per episode",
        "Failed attempts, share",
        "Repeated calls",
    ]
    assert keys(browser, "Episodes with a call")["share of episodes"] == f"{last['tools/call_rate']:.2f}".replace(
        "1.00", "1"
    )
    assert list(keys(browser, "Calls per episode")) == ["all", "answer right", "answer wrong"]
    assert list(keys(browser, "Accuracy with and without")) == ["with a tool", "without"]
    assert list(keys(browser, "Cut off before the answer")) == ["share of episodes", "told to answer"]
    # One line for each kind of failure that has happened.
    lines = [*read_metrics(trained.metrics)]
    kinds = {name for line in lines for name, value in line.items() if name.startswith("tools/failures/") and value}
    assert set(keys(browser, "Failed attempts, share")) == {"all"} | {
        name.removeprefix("tools/failures/") for name in kinds
    }
    assert {"tools/failures/unknown_image", "tools/failures/malformed"} <= kinds
    assert "tools/failures/deadline" in lines[0].keys() - kinds
    drawn = f"[...{CHART}].every(c => [...c.querySelectorAll('path, line, circle')].every(n => ![...n.attributes].some(a => /NaN|undef|Infinity/.test(a.value))))"
    assert ask(browser, drawn)
    assert errors(browser) == []


@in_browser
def test_the_charts_of_tools_share_the_cursor_and_leave_nothing_over(browser: Any, trained: RunFolder) -> None:
    opened(browser, trained)
    browser.execute_script(
        """
        const plot = document.querySelector(".tools .plot"), area = plot.getBoundingClientRect();
        plot.dispatchEvent(new PointerEvent("pointermove", {clientX: area.left + 1, clientY: area.top + 50}));
        """
    )
    assert set(ask(browser, '[...document.querySelectorAll("#curves > .charts .at, .tools .at")].map(a => a.textContent)')) == {
        "step 1"
    }  # fmt: skip
    first = next(read_metrics(trained.metrics))
    assert float(keys(browser, "Calls per episode")["all"]) == pytest.approx(first["tools/calls"], abs=0.01)
    browser.execute_script('document.querySelector("#curves > details.more").open = true')
    rest: list[str] = until(
        lambda: ask(browser, "[...document.querySelectorAll('#curves > details.more strong')].map(s => s.textContent)")
    )
    assert not [title for title in rest if title.startswith("tools/")]


@in_browser
def test_a_run_without_tools_has_no_such_group(browser: Any, tmp_path: Path) -> None:
    opened(browser, make_run(tmp_path, steps=2, groups=1, group_size=2, hostile=False))
    assert ask(browser, 'document.querySelectorAll(".tools").length') == 0
    assert "Tools" not in ask(browser, 'document.getElementById("curves").textContent')
    assert ask(browser, 'document.querySelectorAll("#curves .chart").length') > 5
    assert errors(browser) == []


@in_browser
def test_alarms_are_marked_on_the_chart_they_are_about(browser: Any, trained: RunFolder, tmp_path: Path) -> None:
    busy = dict.fromkeys(COLLAPSED, 0.0) | {"tools/call_rate": 0.9}
    folder = changed(trained, tmp_path, busy, COLLAPSED)
    opened(browser, folder)
    told = {alarm["key"]: alarm["step"] for alarm in data_of(folder.report)["alarms"] if alarm["key"] in MARKED}
    assert told.keys() == MARKED.keys()
    assert told["tools given up"] == STEPS + 2
    marks: list[list[str]] = ask(
        browser,
        f"[...{CHART}].flatMap(c => [...c.querySelectorAll('.mark title')].map(t => [c.querySelector('strong').textContent, t.textContent]))",
    )
    assert sorted(marks) == sorted([MARKED[key], f"alarm at step {step}: {key}"] for key, step in told.items())
    assert ask(browser, 'document.querySelectorAll("#curves > .charts .mark").length') == 0
    assert errors(browser) == []


@in_browser
def test_values_without_neighbours_and_hostile_kinds_are_drawn(
    browser: Any, trained: RunFolder, tmp_path: Path
) -> None:
    hostile = "tools/failures/</script><script>alert(1)</script>"
    more = [
        {"tools/gain_in_groups": None},
        {"tools/gain_in_groups": -0.5, hostile: 0.5},
        {"tools/gain_in_groups": None},
    ]
    opened(browser, changed(trained, tmp_path, *more))
    gain = "[...document.querySelectorAll('.tools .chart')].find(c => c.querySelector('strong').textContent.includes('accuracy with'))"
    circles = ask(browser, f"[...{gain}.querySelectorAll('circle')].map(n => parseFloat(n.getAttribute('cy')))")
    zero = ask(browser, f"parseFloat({gain}.querySelector('.axis').getAttribute('y1'))")
    assert circles, "a value alone has no line to be seen by"
    assert max(circles) > zero, "below zero lies below the line of zero"
    assert "</script><script>alert(1)</script>" in keys(browser, "Failed attempts, share")
    assert ask(browser, "document.scripts.length") == 2
    assert errors(browser) == []


@in_browser
def test_the_group_fits_a_phone(browser: Any, trained: RunFolder) -> None:
    opened(browser, trained)
    browser.set_window_size(500, 900)
    try:
        assert ask(browser, "document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    finally:
        browser.set_window_size(1300, 1000)
