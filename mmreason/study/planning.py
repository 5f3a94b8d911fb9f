"""From a study to its runs: every configuration composed and checked, compute compared, before anything starts.

What enters: a `StudyConfig`, seeds, a folder, and the words typed. What leaves: a `Plan` of `Job`s, each with its resolved configuration and the
jobs that come first. No torch.

An arm is composed for the model that it is meant for (`model=tiny`, say), and only then is the warmed-up model put in its place: what a
recipe says by model size would not know a folder. So every job starts from a whole configuration file, which is also the record of it.

    OUT/warm-up-<hash>/            `mmreason sft`, for all arms          OUT/configs/<job>.yaml   what a job runs
    OUT/<arm>-seed<k>/             `mmreason train`                      OUT/logs/<job>.log       what it said
    OUT/<arm>-seed<k>-<eval>/      `mmreason eval` of its final/
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmreason.config.compose import Composed, compose, plain_dict
from mmreason.config.explain import suggest_word
from mmreason.config.overrides import quote
from mmreason.config.schema import RunConfig
from mmreason.errors import ConfigError
from mmreason.study.settings import Measure, StudyConfig

#: Words that the study decides itself.
_OWN_KEYS = frozenset({"command", "name", "out", "resume", "seed", "stages", "hydra.searchpath"})
#: Takes the training run out of a recipe that is a chain.
_NO_CHAIN = "stages=[]"
#: Cores are shared by jobs, not by threads: one each, so that results do not depend on `--jobs`.
_THREADS = "trainer.num_threads=1"
#: What arms must share for equal compute, with its name in tables.
COMPUTE = {
    "trainer.steps": "steps",
    "rollout.prompts_per_step": "prompts a step",
    "rollout.group_size": "completions a prompt",
    "rollout.max_new_tokens": "token limit",
    "rollout.refill_rounds": "refill rounds",
    "rollout.replay_groups": "replayed groups",
    "objective.num_iterations": "passes over a batch",
}
#: What else arms must share to be comparable.
_SAME_QUESTIONS = ("task", "data.path", "model.name", "trainer.eval_rows")


@dataclass(frozen=True)
class Job:
    """One process.

    Attributes:
        name: of its folder.
        command: `sft`, `train` or `eval`.
        config: as resolved, what the process is given.
        arm: name of the arm; empty for a warm-up.
        seed: of the run.
        evaluation: name of the evaluation, for `eval`.
        after: names of the jobs whose model it starts from.
    """

    name: str
    command: str
    config: RunConfig
    arm: str = ""
    seed: int = 0
    evaluation: str = ""
    after: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return Path(self.config.out) / self.name

    @property
    def steps(self) -> int:
        """Optimizer steps; 0 for an evaluation."""
        return 0 if self.command == "eval" else self.config.total_steps

    @property
    def start(self) -> Path:
        """Folder, or name, of the model that it starts from."""
        return Path(self.config.model.name)


@dataclass(frozen=True)
class Plan:
    """A study ready to run.

    Attributes:
        name: of the study.
        study: as read.
        seeds: one run of every arm for each.
        out: folder of everything.
        typed: words of the command line that change the runs.
        jobs: in the order in which they start.
        differences: option -> arm -> value, for compute that the arms do not share.
    """

    name: str
    study: StudyConfig
    seeds: tuple[int, ...]
    out: Path
    typed: tuple[str, ...]
    jobs: tuple[Job, ...]
    differences: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def job(self, arm: str, seed: int, evaluation: str = "") -> Job:
        """The training run of an arm at a seed, or one of its evaluations."""
        return next(
            one for one in self.jobs if (one.arm, one.seed, one.evaluation) == (arm, seed, evaluation) and one.arm
        )


def plan_study(name: str, study: StudyConfig, seeds: Sequence[int], out: Path, typed: Sequence[str] = ()) -> Plan:
    """Compose and check every run.

    Args:
        name: of the study.
        study: as read.
        seeds: one run of every arm for each.
        out: folder of everything.
        typed: options that change the study: `sft.…` those of the warm-up, `model…` and `trainer.num_threads` all,
            others the arms.

    Raises:
        ConfigError: with the problems of all runs; nothing has started.
    """
    problems = [f"{word}: the study decides this; leave it out" for word in typed if _key(word) in _OWN_KEYS]
    problems += [f"{word}: not an option; expected KEY=VALUE" for word in typed if "=" not in word]
    warm: dict[int, Job] = {}
    jobs: list[Job] = []
    for seed in seeds if not problems else ():
        try:
            if study.warm_up is not None:
                warm[seed] = _warm_up(study, seed, out, typed)
                jobs += [warm[seed]] if warm[seed].name not in {job.name for job in jobs} else []
            for arm in study.arms:
                jobs += _arm_jobs(study, arm, seed, out, typed, warm.get(seed))
        except ConfigError as error:
            # The other seeds would say the same.
            problems.append(str(error))
            break
    if not problems:
        problems += [line for job in jobs for line in _unknown_scores(study, job)]
        problems += _other_questions(study, jobs)
    if problems:
        lines = "\n".join("  - " + line.replace("\n", "\n    ") for line in dict.fromkeys(problems))
        raise ConfigError(f"study '{name}' is refused, nothing was started:\n{lines}")
    return Plan(name, study, tuple(seeds), out, tuple(typed), tuple(jobs), _unequal_compute(study, jobs))


# ---------------------------------------------------------------------- one job


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _last_wins(words: Sequence[str]) -> list[str]:
    """Each key once, with its last value; Hydra refuses a group that is named twice."""
    return list({_key(word): word for word in words}.values())


def _composed(what: str, command: str, words: Sequence[str]) -> Composed:
    try:
        composed = compose(command, _last_wins(words), check_files=True)
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from None
    if composed.config.stages:
        raise ConfigError(
            f"{what}: the recipe is a chain of stages; a study compares single training runs, after a warm_up: "
            f"{_NO_CHAIN} leaves the chain out"
        )
    return composed


def _job(composed: Composed, name: str, out: Path, model: Path | None, **fields: Any) -> Job:
    """A job under its own name, from the model of an earlier job if there is one."""
    plain = plain_dict(composed.config)
    plain |= {"name": name, "out": str(out), "resume": "none" if composed.config.command == "eval" else "auto"}
    if model is not None:
        plain["model"] = {**plain["model"], "name": str(model)}
    return Job(name, composed.config.command, RunConfig.model_validate(plain), **fields)


def _warm_up(study: StudyConfig, seed: int, out: Path, typed: Sequence[str]) -> Job:
    assert study.warm_up is not None
    seed = seed if study.warm_up.each_seed else 0
    ours = [word for word in typed if _key(word).startswith("sft.") or _for_all(word)]
    # Its held-out scores are those of the arms before training.
    words = [_THREADS, "trainer.eval_rows=0", *study.warm_up.overrides, *ours, f"seed={seed}"]
    composed = _composed("warm_up", "sft", words)
    plain = {key: value for key, value in plain_dict(composed.config).items() if key not in ("name", "out", "resume")}
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]
    return _job(composed, f"warm-up-{digest}", out, None, seed=seed)


def _for_all(word: str) -> bool:
    key = _key(word)
    return key == "trainer.num_threads" or key == "model" or key.startswith("model.")


def _arm_jobs(study: StudyConfig, arm: str, seed: int, out: Path, typed: Sequence[str], warm: Job | None) -> list[Job]:
    """The training run of an arm at a seed, and its evaluations."""
    ours = [word for word in typed if not _key(word).startswith("sft.")]
    words = [_THREADS, *study.common, *study.arms[arm].overrides, *ours, f"seed={seed}", f"out={quote(str(out))}"]
    own = [word for word in words if _key(word) in _OWN_KEYS - {"seed", "out"} and word != _NO_CHAIN]
    if own:
        raise ConfigError(f"arms.{arm}: {own[0]}: the study decides this; leave it out")
    name = f"{arm}-seed{seed}"
    run = _job(
        _composed(f"arms.{arm}", "train", words),
        name,
        out,
        warm.folder / "final" if warm else None,
        arm=arm,
        seed=seed,
        after=(warm.name,) if warm else (),
    )
    jobs = [run]
    for label, evaluation in study.evals.items():
        # Pictures are changed in training only.
        kept = [word for word in words if not _key(word).startswith(("augment", "curriculum"))]
        composed = _composed(f"evals.{label} of arms.{arm}", "eval", [*kept, *evaluation.overrides])
        jobs.append(
            _job(
                composed,
                f"{name}-{label}",
                out,
                run.folder / "final",
                arm=arm,
                seed=seed,
                evaluation=label,
                after=(name,),
            )
        )
    return jobs


# ---------------------------------------------------------------------- all jobs


def _unknown_scores(study: StudyConfig, job: Job) -> list[str]:
    """Measures of scores that a run does not have."""
    if job.command == "sft":
        return []
    problems = []
    known = _scores(job)
    for measure in study.measures:
        if measure.score is None or measure.score in known or not _reads(measure, job):
            continue
        near = suggest_word(measure.score, known)
        problems.append(
            f"measures.{measure.name}.score: '{measure.score}' is no score of arms.{job.arm}"
            f"{f' in evals.{job.evaluation}' if job.evaluation else ''}.{near} There are {', '.join(known)}. "
            "A reward of weight 0 is measured and not trained on: reward.NAME.weight=0"
        )
    return problems


def _reads(measure: Measure, job: Job) -> bool:
    if job.command == "train":
        return measure.kind in ("score", "gain", "drop")
    return measure.kind in ("eval", "drop") and measure.eval == job.evaluation


def _scores(job: Job) -> list[str]:
    from mmreason.data.base import TASKS
    from mmreason.evaluate import MEASURES

    names = [*job.config.reward.active(), "completion_length"]
    task = TASKS.get(job.config.task.name)
    if job.config.data.path is not None or task.metric in names:
        names.append("accuracy")
    return [*names, *(MEASURES if job.command == "eval" else ())]


def _value(config: RunConfig, key: str) -> Any:
    value: Any = plain_dict(config)
    for part in key.split("."):
        value = value[part]
    return value


def _by_arm(study: StudyConfig, jobs: Sequence[Job], key: str) -> dict[str, Any]:
    return {arm: _value(next(job for job in jobs if job.arm == arm).config, key) for arm in study.arms}


def _other_questions(study: StudyConfig, jobs: Sequence[Job]) -> list[str]:
    problems = []
    for key in _SAME_QUESTIONS:
        values = _by_arm(study, jobs, key)
        if any(value != next(iter(values.values())) for value in values.values()):
            shown = ", ".join(f"{value} in arms.{arm}" for arm, value in values.items())
            problems.append(
                f"{key} differs: {shown}. Arms must answer the same questions from the same weights: set it in common."
            )
    return problems


def _unequal_compute(study: StudyConfig, jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
    found = {key: _by_arm(study, jobs, key) for key in COMPUTE}
    return {key: values for key, values in found.items() if len(set(values.values())) > 1}
