"""`mmreason study NAME`: plan, run, compare, write.

What enters: parsed words of the command line. What leaves: the exit code: 0 done, 1 a run failed, 130 interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from mmreason.errors import ConfigError
from mmreason.study.page import evaluate_study, write_report
from mmreason.study.planning import Plan, plan_study
from mmreason.study.reading import read_numbers
from mmreason.study.records import is_finished, refuse_other_study, write_session
from mmreason.study.running import Runner
from mmreason.study.screen import Screen
from mmreason.study.settings import find_study, read_study, study_files

INTERRUPTED = 130


def list_studies() -> None:
    """Print every study of the package."""
    for name, file in study_files().items():
        study = read_study(file)
        arms = " against ".join(arm.label for arm in reversed(study.arms.values()))
        print(f"{name}: {study.title}\n    {arms}; decides: {study.primary.label}; {study.source}")


def parse_seeds(text: str) -> tuple[int, ...]:
    """`0,1,2` as numbers; raises `ConfigError`."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and word.isascii() for word in words):
        raise ConfigError(f"--seeds {text}: expected whole numbers with commas between, such as 0,1,2")
    seeds = tuple(int(word) for word in words)
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds {text}: a seed is there twice; equal runs would be counted as two")
    return seeds


def run_study(
    name: str,
    overrides: Sequence[str] = (),
    *,
    seeds: str | None = None,
    jobs: int = 2,
    out: Path | None = None,
    docs: Path | None = None,
    report_only: bool = False,
) -> int:
    """Run what is not finished of a study, and write its page.

    Args:
        name: of a study of the package, or a YAML file.
        overrides: options that change its runs.
        seeds: instead of the file's, as `0,1,2`.
        jobs: processes at once.
        out: folder of everything; default `runs/study-NAME`.
        docs: folder that also gets page and figure, as NAME.md and NAME.svg.
        report_only: run nothing.

    Raises:
        ConfigError: nothing has started. DataError: a run folder is damaged.
    """
    label, file = find_study(name)
    study = read_study(file)
    plan = plan_study(
        label,
        study,
        study.seeds if seeds is None else parse_seeds(seeds),
        out or Path("runs") / f"study-{label}",
        overrides,
    )
    refuse_other_study(plan)
    if report_only:
        if not any(is_finished(plan, job) for job in plan.jobs if job.command == "train"):
            raise ConfigError(f"no run of {plan.out} is finished with these options: nothing to report")
        return _report(plan, docs)
    print(f"{study.title}\n{len(plan.jobs)} jobs, {jobs} at once -> {plan.out}", flush=True)
    with Screen() as screen:
        runner = Runner(plan, jobs, screen)
        started = time.monotonic()
        runner.run()
        ran = sum(state.stage in ("finished", "failed", "stopped") for state in runner.states.values() if state.started)
        write_session(plan, time.monotonic() - started, jobs, ran)
    code = 1 if runner.failed else 0
    if any(is_finished(plan, job) for job in plan.jobs if job.command == "train"):
        # Half a study is no documentation.
        whole = not runner.signals and not runner.failed
        _report(plan, docs if whole else None)
        if docs is not None and not whole:
            print(f"{docs} is left as it was: not all jobs are done")
    if runner.signals:
        print("stopped; the same command continues")
        return INTERRUPTED
    return code


def _report(plan: Plan, docs: Path | None) -> int:
    numbers = read_numbers(plan)
    result = evaluate_study(plan, numbers)
    page = write_report(plan, numbers, result, docs)
    for decision in result.decisions:
        print(decision.text.replace("**", ""))
    print(f"page: {page}" + (f", also in {docs}" if docs is not None else ""))
    return 0
