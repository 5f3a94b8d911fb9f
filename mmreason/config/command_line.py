"""The training verbs `train`, `sft`, `collect`, `dpo` and `eval`: Hydra's flags, help, `--cfg job`, `-m` sweeps, the start.

What enters: the words after the verb. What leaves: the exit code. Help reads only the file names and first
comments of `conf/`, so it needs neither Hydra nor pydantic. Each job of a sweep is a process of its own: its
memory, threads and accelerator state are as if it had been started alone, and one failure does not stop the
others.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mmreason.errors import ConfigError

#: Exit code of a sweep that Ctrl-C or SIGTERM stopped while its job ended well.
INTERRUPTED = 130

if TYPE_CHECKING:
    from mmreason.config.compose import Composed, SweepJob
    from mmreason.stages import PlannedStage

_HEADS = {
    "train": "Train a policy with GRPO. Alone: the embedded tiny model learns grounding in minutes.",
    "sft": "Supervised training (cold start) on generated tasks or on your own rows.",
    "collect": "Rejection sampling: sample answers, keep those that pass the filters, as rows or preference pairs.",
    "dpo": "Preference training (DPO) on pairs of a chosen and a rejected answer.",
    "eval": "Score a policy on held-out rows, with confidence intervals.",
}

_EXAMPLES = {
    "train": [
        ("mmreason train", "the quickstart"),
        ("mmreason train task=scene_qa seed=1", "another task, another seed"),
        ("mmreason train model=qwen2_5_vl_3b data=my.jsonl", "a real model on your own rows"),
        ("mmreason train model=./my_checkpoint objective=dr_grpo", "any folder or hub id works as model="),
        ("mmreason train name=mine resume=auto", "continue a run exactly where it stopped"),
        (
            "mmreason train -m trainer.learning_rate=1e-5,3e-5 seed=0,1,2",
            "a sweep: six runs, one after the other",
        ),
        (
            "mmreason train name=mine recipe=NAME resume=auto",
            "a recipe of several stages: go on at the first unfinished one",
        ),
        ("mmreason train debug=smoke", "two steps: does it run at all?"),
        ("mmreason train --cfg job", "print the whole configuration, run nothing"),
    ],
    "sft": [
        ("mmreason sft recipe=tiny_vlm", "retrain the embedded tiny model"),
        ("mmreason sft model=qwen2_5_vl_3b data=my.jsonl", "a real model on your own rows"),
    ],
    "collect": [
        ("mmreason collect", "correct answers of the embedded tiny model to grounding, as rows.jsonl"),
        (
            "mmreason collect collect.prefer=shortest collect.min_pass_rate=0.2 collect.max_pass_rate=0.8",
            "the shortest correct answer to each question that is neither too easy nor too hard",
        ),
        (
            "mmreason collect model=runs/NAME data=my.jsonl collect.pairs=true",
            "also preference pairs, of your own rows",
        ),
    ],
    "dpo": [
        ("mmreason dpo data=runs/NAME/pairs.jsonl", "on the pairs of a collection"),
        (
            "mmreason dpo data=pairs.jsonl dpo.step_weights='{box: 0.5, answer: 0.5}'",
            "pairs of several steps, as VisRL",
        ),
    ],
    "eval": [
        ("mmreason eval", "the embedded tiny model on grounding"),
        (
            "mmreason eval model=runs/NAME task=scene_qa",
            "the final policy of a run, with the settings it had",
        ),
        (
            "mmreason eval model=runs/NAME eval.compare=tiny",
            "what the run gained: both on the same rows, paired",
        ),
        ("mmreason eval model=runs/NAME/checkpoint-100 data=my.jsonl", "a checkpoint, on your own rows"),
        ("mmreason eval model=runs/NAME eval.mask_probability=0.6", "with most of each picture blackened"),
    ],
}

_SHORT_FORMS = """\
  data=FILE.jsonl               your rows; short for data.path=FILE.jsonl. For text answers instead of
                                boxes, add reward=scene_qa
  model=FOLDER or model=ORG/NAME
                                picks the settings of the model's family, sets model.name; a run folder means
                                its final/; a run's weights keep their pixel budget and instruction,
                                and all commands but train ask for the form that they were trained for
  task=NAME                     also picks the rewards that fit; reward=NAME picks others
  reward.NAME.weight=0.5        adds a reward or changes its weight; reward.NAME=null drops it"""

_FLAGS = """\
  -h, --help                    this text
  --options [PREFIX]            every option: default, range, meaning
  --cfg job                     print the composed configuration and stop; -p SECTION prints a part
  --info defaults               print the files that make up the configuration and stop
  -m, --multirun                run one job for each combination of key=a,b,c values
  -cd, --config-dir DIR         also look for groups in DIR (also: hydra.searchpath=[DIR])
  -cn, --config-name NAME       start from NAME.yaml, such as a run's config.yaml: -cd runs/NAME -cn config"""


#: `  - task: grounding` and `  - override /rollout@_global_.rollout: tiny`.
_DEFAULTS_ENTRY = re.compile(r'  - (?:override /)?(?P<group>\w+)(?:@\S+)?: "?(?P<choice>[^"]+)"?')


class _VerbParser(argparse.ArgumentParser):
    """Hydra's flags; refusals become `ConfigError`."""

    def __init__(self, verb: str) -> None:
        super().__init__(prog=f"mmreason {verb}", add_help=False, allow_abbrev=False)
        self.add_argument("-h", "--help", action="store_true")
        self.add_argument("--options", nargs="?", const="", metavar="PREFIX")
        self.add_argument("-c", "--cfg", choices=["job"])
        self.add_argument("-p", "--package", metavar="SECTION", default="")
        # Hydra users add it to --cfg job; what is printed is always resolved.
        self.add_argument("--resolve", action="store_true")
        self.add_argument("--info", choices=["defaults"])
        self.add_argument("-m", "--multirun", action="store_true")
        self.add_argument("-cd", "--config-dir", action="append", default=[], metavar="DIR")
        self.add_argument("-cn", "--config-name", metavar="NAME")
        self.add_argument("overrides", nargs="*", metavar="KEY=VALUE")

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. See `{self.prog} --help`.")


def run_verb(verb: str, words: Sequence[str]) -> int:
    """Run `mmreason <verb> <words>`; returns the exit code.

    Raises:
        ConfigError: the words or the configuration are refused; nothing was started.
    """
    given = _VerbParser(verb).parse_intermixed_args(list(words))
    if given.help:
        print(verb_help(verb))
        return 0
    if given.options is not None:
        print(option_list(given.options))
        return 0
    from mmreason.config.compose import compose, compose_sweep, defaults_list

    if given.info:
        for file, package in defaults_list(verb, given.overrides, given.config_dir):
            print(f"{file:<24} {package}")
        return 0
    printing = given.cfg is not None
    where: dict[str, Any] = {"config_dirs": given.config_dir, "config_name": given.config_name}
    if given.multirun:
        jobs = compose_sweep(verb, given.overrides, **where, check_files=not printing)
        chains = [_planned(job.composed, where, not printing) for job in jobs]
        if printing:
            parts = [_parts(job.composed, stages, given.package) for job, stages in zip(jobs, chains, strict=True)]
            print("---\n".join(parts), end="")
            return 0
        return run_sweep(verb, jobs, _where_words(given))
    composed = compose(verb, given.overrides, **where, check_files=not printing)
    stages = _planned(composed, where, not printing)
    if printing:
        print(_parts(composed, stages, given.package), end="")
        return 0
    if stages:
        from mmreason.stages import run_chain

        return run_chain(composed, stages, _where_words(given))
    return start(verb, composed)


def start(verb: str, composed: Composed) -> int:
    """Set what must be set before torch is imported, then hand the configuration to the engine."""
    threads = composed.config.trainer.num_threads
    if threads > 0:
        # OpenMP reads these once, when torch is imported.
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    if verb == "train":
        from mmreason.train.run import run_train

        run_train(composed.config, composed.plain)
    elif verb == "sft":
        from mmreason.train.sft import run_sft

        run_sft(composed.config, composed.plain)
    elif verb == "collect":
        from mmreason.train.collect import run_collect

        run_collect(composed.config, composed.plain)
    elif verb == "dpo":
        from mmreason.train.dpo import run_dpo

        run_dpo(composed.config, composed.plain)
    else:
        from mmreason.evaluate import run_eval

        run_eval(composed.config, composed.plain)
    return 0


def run_sweep(verb: str, jobs: Sequence[SweepJob], where: Sequence[str] = ()) -> int:
    """Run the jobs one after the other, each in its own process; returns the first exit code other than 0.

    Ctrl-C and SIGTERM reach the running job, which saves and ends in its own time; no further job starts.
    """
    codes: list[int] = []
    stopped = False
    for number, job in enumerate(jobs, start=1):
        changes = " ".join(job.varied) or "(nothing varies)"
        print(f"[job {number} of {len(jobs)}] {changes} -> {job.composed.run_dir}", flush=True)
        command = [sys.executable, "-m", "mmreason", verb, *where, *job.overrides]
        code, stopped = run_job(command)
        codes.append(code)
        if stopped:
            break
    print(f"\nsweep {'stopped' if stopped else 'finished'}: {codes.count(0)} of {len(jobs)} jobs succeeded")
    for number, job in enumerate(jobs):
        code_here = codes[number] if number < len(codes) else None
        outcome = "not started" if code_here is None else "ok" if code_here == 0 else f"exit code {code_here}"
        print(f"  {outcome:<14} {job.composed.run_dir}  {' '.join(job.varied)}")
    return next((code for code in codes if code != 0), INTERRUPTED if stopped else 0)


def run_job(command: Sequence[str]) -> tuple[int, bool]:
    """Run one process to its end; returns its exit code and whether Ctrl-C or SIGTERM came meanwhile.

    A terminal sends Ctrl-C to the job as well, so the job is only waited for; SIGTERM goes to this process
    alone and is passed on.
    """
    stopped = False
    process = subprocess.Popen(command)  # noqa: S603 - this program, no shell

    def pass_on(number: int, _frame: object) -> None:
        nonlocal stopped
        stopped = True
        process.send_signal(number)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        while True:
            try:
                return process.wait(), stopped
            except KeyboardInterrupt:
                stopped = True
                print("\nwaiting for the running job to save and end; no further job starts", file=sys.stderr)
    finally:
        signal.signal(signal.SIGTERM, before)


def verb_help(verb: str) -> str:
    """Help text of one verb: examples, groups with their choices, short forms, flags."""
    lines = [
        _HEADS[verb],
        "",
        f"usage: mmreason {verb} [FLAG …] [GROUP=CHOICE …] [KEY=VALUE …]",
        "",
        "examples",
    ]
    width = max(len(example) for example, _ in _EXAMPLES[verb])
    lines += [f"  {example:<{width}}   {meaning}" for example, meaning in _EXAMPLES[verb]]
    lines += ["", "groups (a choice is a file in conf/GROUP; * = default)"]
    defaults = _default_choices(verb)
    groups = config_groups()
    for group in sorted(groups, key=[*defaults, *groups].index):
        choices = groups[group]
        lines.append(f"  {group}")
        for choice, meaning in choices.items():
            mark = "*" if defaults.get(group) == choice else " "
            text = textwrap.shorten(meaning, 92, placeholder=" …")
            lines.append(f"   {mark}{choice:<16} {text}")
    lines += ["", "short forms", _SHORT_FORMS, "", "flags", _FLAGS]
    lines += [
        "",
        "The run folder is OUT/NAME: out=runs, and name is made of recipe, model, task, seed if not given.",
    ]
    return "\n".join(lines)


def option_list(prefix: str = "") -> str:
    """Every option that starts with `prefix`: default, what it may be, meaning.

    Raises:
        ConfigError: no option starts with `prefix`.
    """
    from mmreason.config.explain import known_keys, options, suggest

    chosen = [option for option in options() if option.key.startswith(prefix)]
    if not chosen:
        raise ConfigError(f"no option starts with '{prefix}'.{suggest(prefix, known_keys())}")
    lines = []
    for option in chosen:
        lines.append(f"{option.key}={option.default}")
        lines.append(f"    {option.expected}{'; ' + option.meaning if option.meaning else ''}")
    if not prefix:
        lines.append("Options of a task: mmreason data list. Options of a reward: mmreason reward list.")
    return "\n".join(lines)


def config_groups() -> dict[str, dict[str, str]]:
    """Config group -> choice -> first comment of its file."""
    groups: dict[str, dict[str, str]] = {}
    # Studies are made of several runs; they are no part of one (`mmreason.study`).
    for folder in sorted(path for path in _conf_folder().iterdir() if path.is_dir() and path.name != "study"):
        choices = {file.stem: _first_comment(file) for file in sorted(folder.glob("*.yaml"))}
        if choices:
            groups[folder.name] = choices
    return groups


def _conf_folder() -> Path:
    import mmreason.conf

    return Path(str(mmreason.conf.__file__)).parent


def _first_comment(file: Path) -> str:
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @package"):
            return line.lstrip("# ").rstrip()
    return ""


def _default_choices(verb: str) -> dict[str, str]:
    """Group -> default choice, from the primary file's defaults list and the default model's own choices."""
    chosen = _defaults_entries(_conf_folder() / f"{verb}.yaml")
    chosen |= _defaults_entries(_conf_folder() / "model" / f"{chosen.get('model', 'tiny')}.yaml")
    return {group: choice.replace("${task}", chosen.get("task", "")) for group, choice in chosen.items()}


def _defaults_entries(file: Path) -> dict[str, str]:
    """Group -> choice in a file's defaults list; these lists are too plain to need a YAML reader."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    found = (_DEFAULTS_ENTRY.fullmatch(line) for line in lines)
    return {match["group"]: match["choice"] for match in found if match}


def _part(composed: Composed, section: str) -> str:
    from mmreason.config.compose import to_yaml
    from mmreason.config.explain import suggest

    part: Any = composed.plain
    for name in section.split(".") if section else ():
        if not isinstance(part, dict) or not isinstance(part.get(name), dict):
            raise ConfigError(f"--package {section}: there is no such section.{suggest(section)}")
        part = part[name]
    return to_yaml(part)


def _planned(composed: Composed, where: Mapping[str, Any], check_files: bool) -> list[PlannedStage]:
    """The checked stages of a chain; none for a single run."""
    if not composed.config.is_chain:
        return []
    from mmreason.stages import plan_chain

    return plan_chain(composed, **where, check_files=check_files)


def _parts(composed: Composed, stages: Sequence[PlannedStage], section: str) -> str:
    """The configuration, and that of each stage, as YAML documents."""
    parts = [_part(composed, section)]
    for one in stages:
        title = f"# stage {one.number} of {len(stages)}: {one.stage.name}, mmreason {one.stage.command}\n"
        parts.append(title + _part(one.composed, section))
    return "---\n".join(parts)


def _where_words(given: argparse.Namespace) -> list[str]:
    words = [word for place in given.config_dir for word in ("--config-dir", str(place))]
    return [*words, "--config-name", given.config_name] if given.config_name else words
