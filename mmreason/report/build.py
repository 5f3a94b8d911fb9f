"""Builds `report.html`: one file without any network access, opened from disk.

What enters: a run folder, finished, running or damaged in parts. What leaves: the page. Everything that a
model or a data file wrote reaches the page as escaped JSON and is put there as text nodes; a
Content-Security-Policy allows nothing but this page's own script and style (by hash) and `data:` pictures.

The page's script is one file per concern (`SCRIPTS`), joined here; each adds a property to `window.mmreason`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from mmreason.errors import DataError
from mmreason.report.collect import MAX_NAME_CHARS, collect_groups, collect_series
from mmreason.report.pictures import inline_pictures
from mmreason.report.reward_survey import LENGTH, TOTAL, RewardSurvey
from mmreason.report.texts import number, shorten
from mmreason.report.training_log import FailureLog, collect_alarms, first_errors
from mmreason.run_records import RunFolder, read_metrics, write_atomically

SCRIPTS = (
    "dom.js",
    "charts.js",
    "tools.js",
    "overlay.js",
    "rewards.js",
    "text.js",
    "trajectory.js",
    "filters.js",
    "rollouts.js",
    "main.js",
)
#: Bound on the sum of all inlined pictures of questions, and on that of tools.
PICTURE_BUDGET_BYTES = 24_000_000
#: Pictures of tools on one page: of some groups all, not of all groups some.
MAX_TOOL_PICTURES = 1_200
#: Bound on the data of a page, pictures included: groups are left out until it fits.
PAGE_BUDGET_BYTES = 64_000_000

#: Keys of `summary.json` that have a place of their own and are not repeated among the facts.
_SCORES = ("before", "after", "difference")
_ELSEWHERE = (*_SCORES, "first_reward_errors")
_FACT_LABELS = {
    "seconds": "time",
    "peak_memory_mb": "peak memory",
    "rows_skipped": "rows skipped",
    "rewards_failed": "reward calls failed",
    "run_dir": "run folder",
}

#: Metric of a reward: share of groups in which it is the same for every completion.
_SPREAD = "zero_variance_groups/"
#: Rewards that no rollout holds, such as those of a run that saves none.
_MAX_UNCOUNTED = 24

Json = dict[str, Any]


def build_report(run_dir: str | Path, max_groups: int = 200, image_root: str | Path | None = None) -> Path:
    """Write `RUN/report.html` and return its path.

    Args:
        run_dir: the run folder. Missing pieces (no summary, no metrics, no rollouts) are said on the page.
        max_groups: groups of rollouts on the page, spread evenly over the run.
        image_root: folder that pictures may be read from besides the run folder; default: none. What
            `config.yaml` says is not trusted: a stranger's run could name any folder of this machine.

    Raises:
        DataError: no such folder, or `max_groups` is below 1. A damaged file is reported on the page.
    """
    folder = RunFolder(run_dir)
    if not folder.path.is_dir():
        raise DataError(f"{folder.path}: no such run folder. `mmreason report RUN` takes the folder that a run wrote.")
    if max_groups < 1:
        raise DataError(f"max_groups={max_groups}: a report shows at least one group.")
    notes: list[str] = []
    config = _read(folder.read_config, notes) or {}
    summary = _read(folder.read_summary, notes) or {}
    series = _read(lambda: collect_series(read_metrics(folder.metrics)), notes) if folder.metrics.is_file() else {}
    survey = RewardSurvey()
    groups = (
        _read(
            lambda: collect_groups(
                folder.rollouts, max_groups, survey.measure, survey.count, trains_cut=trains_cut_off(config)
            ),
            notes,
        )
        if folder.rollouts.is_file()
        else {}
    )
    data: Json = {"series": series or {}, "groups": [], **(groups or {}), "rewards": {}, "alarms": []}
    if series or groups:
        _add_rewards(data, folder, survey.result() if groups else {}, config, summary)
    roots = [folder.path] if image_root is None else [folder.path, Path(image_root).expanduser()]
    pictures = inline_pictures(
        (image["path"] for group in data["groups"] for image in group["images"]),
        folder.path,
        roots,
        PICTURE_BUDGET_BYTES,
    )
    tools = inline_pictures(tool_pictures(data["groups"]), folder.path, roots, PICTURE_BUDGET_BYTES)
    data["pictures"] = {
        path: {"uri": found.uri, "missing": found.missing} for path, found in {**tools, **pictures}.items()
    }
    header = describe_header(folder.path, config, summary)
    away = sum(1 for path, found in pictures.items() if not found.uri and not _lies_in(path, folder.path))
    if away and image_root is None:
        notes.append(
            f"{away} picture(s) lie outside the run folder and are left out; "
            "`mmreason report RUN --image-root DIR` shows those in DIR."
        )
    if not summary:
        notes.append("No summary.json yet: the scores before and after appear when the run has finished.")
    _keep_to_budget(data, notes)
    write_atomically(folder.report, render(header, data, notes).encode("utf-8", "replace"))
    return folder.report


def describe_rewards(
    survey: Mapping[str, Any],
    failures: FailureLog,
    weights: Mapping[str, float | None],
    errors: Mapping[str, str],
    calls_a_step: float | None,
    series: Mapping[str, Json],
) -> Json:
    """The section on rewards: what was counted over the rollouts, with weights and failures.

    Args:
        survey: from `RewardSurvey.result`; empty if no rollouts were saved.
        failures: from the metrics.
        weights: of the configuration; `None` where it is no number.
        errors: reward -> first traceback.
        calls_a_step: completions of a step.
        series: curves of the metrics; they tell the groups without spread of a reward that no saved rollout holds.
    """
    counted = {reward["name"]: reward for reward in survey.get("rewards", ())}
    names = dict.fromkeys((*counted, *weights, *failures.rewards()))
    cards = []
    for name in list(names)[: len(counted) + _MAX_UNCOUNTED]:
        card: Json = {"name": shorten(name, 60), "weight": weights.get(name), "counted": counted.get(name)}
        if name not in counted:
            card["spread"] = series.get(shorten(f"{_SPREAD}{name}", MAX_NAME_CHARS))
        if name != TOTAL:
            card |= {"failures": failures.of(name, calls_a_step), "error": errors.get(name, "")}
        cards.append(card)
    told = {key: survey.get(key) for key in ("early", "late", "rollouts", "matrix", "left_out")}
    return {"cards": cards, "total": TOTAL, "length": LENGTH, **told}


def reward_weights(config: Mapping[str, Any]) -> dict[str, float | None]:
    """Reward -> weight, `None` where the configuration's is no number."""
    rewards = config.get("reward")
    return {
        str(name): number(options.get("weight", 1.0))
        for name, options in (rewards.items() if isinstance(rewards, Mapping) else ())
        if isinstance(options, Mapping) and name != "shapers"
    }


def trains_cut_off(config: Mapping[str, Any]) -> bool:
    """Whether episodes that a budget cut off count in the loss; true for runs without tools."""
    return not _option(config, "agent", "tools") or _option(config, "agent", "over_budget") == "keep"


def tool_pictures(groups: Sequence[Json], most: int | None = MAX_TOOL_PICTURES) -> list[str]:
    """Paths of the pictures that tools made, of whole groups spread evenly over the run, at most `most`."""
    of_groups = [
        list(dict.fromkeys(one["path"] for rollout in group["rollouts"] for one in _shown(rollout))) for group in groups
    ]
    total = sum(map(len, of_groups))
    every = 1 if most is None else max(1, -(-total // most))
    return [path for paths in of_groups[::every] for path in paths][:most]


def _shown(rollout: Json) -> list[Json]:
    trajectory = rollout["trajectory"]
    return list(trajectory["pictures"].values()) if trajectory else []


def render(header: Mapping[str, Any], data: Mapping[str, Any], notes: Sequence[str]) -> str:
    """The page as text.

    Args:
        header: from `describe_header`.
        data: `series`, `groups`, `pictures` and counts, as the scripts expect them.
        notes: remarks about missing or damaged pieces.
    """
    files = resources.files("mmreason.report")
    style = files.joinpath("page.css").read_text(encoding="utf-8")
    script = "\n".join(files.joinpath(name).read_text(encoding="utf-8") for name in SCRIPTS)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files.joinpath("page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        header=header,
        notes=notes,
        style=style,
        script=script,
        data=embed_json(data),
        data_alarms=data.get("alarms", ()),
        has_rewards=bool(data.get("rewards")),
        policy=(
            "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
            f"style-src '{_hash(style)}'; script-src '{_hash(script)}'"
        ),
    )


def embed_json(value: object) -> str:
    """JSON that is safe inside a `<script>` element: ASCII only, without `<`, `>` and `&`."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def describe_header(run_dir: Path, config: Mapping[str, Any], summary: Mapping[str, Any]) -> Json:
    """Name, facts and scores at the top of the page, as far as configuration and summary exist."""
    data_path = _option(config, "data", "path")
    weights = reward_weights(config)
    facts = {
        "model": _option(config, "model", "name"),
        "data" if data_path else "task": data_path or _option(config, "task", "name"),
        "rewards": " + ".join(
            name if weight == 1 else f"{'?' if weight is None else f'{weight:g}'} × {name}"
            for name, weight in weights.items()
        ),
        "steps": _option(config, "trainer", "steps"),
        "batch": _batch(config),
        "seed": config.get("seed"),
        "source": config.get("source"),
    }
    for key, value in summary.items():
        if key not in _ELSEWHERE:
            facts[_FACT_LABELS.get(key, key.replace("_", " "))] = _fact(key, value)
    name = config.get("name") or run_dir.resolve().name
    return {
        "name": shorten(str(name), 120),
        "facts": {key: shorten(str(value), 300) for key, value in facts.items() if value not in (None, "", {})},
        "scores": score_rows(summary),
    }


def score_rows(summary: Mapping[str, Any]) -> list[Json]:
    """Rows of the table of held-out scores: name, `before`, `after` and `difference`.

    Each of the three is `None` or `{"mean", "low", "high", "n"}`, any of which but `mean` may be `None`;
    `verdict` says whether the difference's interval stays clear of zero (`"up"`, `"down"` or `""`).
    """
    sections = {key: summary.get(key) for key in _SCORES}
    tables = {key: value if isinstance(value, Mapping) else {} for key, value in sections.items()}
    rows = []
    for name in dict.fromkeys(name for table in tables.values() for name in table):
        cells = {key: _interval(table.get(name)) for key, table in tables.items()}
        if not any(cells.values()):
            continue
        row: Json = {"name": shorten(str(name), 60), **cells, "verdict": ""}
        difference = cells["difference"]
        if difference and difference["low"] is not None and difference["high"] is not None:
            row["verdict"] = "up" if difference["low"] > 0 else "down" if difference["high"] < 0 else ""
        elif difference is None and cells["before"] and cells["after"]:
            change = cells["after"]["mean"] - cells["before"]["mean"]
            row["difference"] = {"mean": change, "low": None, "high": None, "n": None}
        rows.append(row)
    return rows


def _read(reader: Any, notes: list[str]) -> Any:
    """Run a reader; a damaged file becomes a note on the page instead of the end of the report."""
    try:
        return reader()
    except DataError as error:
        notes.append(str(error))
        return None


def _add_rewards(
    data: Json, folder: RunFolder, survey: Mapping[str, Any], config: Mapping[str, Any], summary: Mapping[str, Any]
) -> None:
    """Put `rewards` and `alarms` into the data of a page; metrics that cannot be read have been noted already."""
    weights = reward_weights(config)
    metrics = folder.metrics if data["series"] else None
    failures = FailureLog().read(read_metrics(metrics) if metrics else ())
    calls = _completions_a_step(config) or survey.get("rollouts_a_step")
    data["rewards"] = describe_rewards(survey, failures, weights, first_errors(summary), calls, data["series"])
    if metrics:
        zero_steps = number(_option(config, "reward", "zero_alarm_steps"))
        frame = data["groups"][0]["frame"] if data["groups"] else ""
        trained = [name for name, weight in weights.items() if weight != 0]
        found = collect_alarms(read_metrics(metrics), trained, frame, max(1, int(zero_steps or 5)))
        data["alarms"] = sorted(found, key=lambda alarm: alarm["step"])


def _keep_to_budget(data: Json, notes: list[str]) -> None:
    """Leave out every second group until the page is small enough to open."""
    groups = len(data["groups"])
    while len(embed_json(data)) > PAGE_BUDGET_BYTES and data["groups"]:
        data["groups"] = data["groups"][::2] if len(data["groups"]) > 1 else []
        paths = {image["path"] for group in data["groups"] for image in group["images"]}
        paths |= set(tool_pictures(data["groups"], None))
        data["pictures"] = {path: found for path, found in data["pictures"].items() if path in paths}
        data["shown_rollouts"] = sum(len(group["rollouts"]) for group in data["groups"])
    if len(data["groups"]) < groups:
        notes.append(
            f"{groups - len(data['groups'])} of {groups} chosen groups are left out to keep this page below "
            f"{PAGE_BUDGET_BYTES // 1_000_000} MB; `mmreason report RUN` takes a smaller --max-groups."
        )


def _completions_a_step(config: Mapping[str, Any]) -> float | None:
    prompts = number(_option(config, "rollout", "prompts_per_step"))
    size = number(_option(config, "rollout", "group_size"))
    return prompts * size if prompts and size and prompts > 0 and size > 0 else None


def _interval(value: object) -> Json | None:
    if isinstance(value, Mapping):
        mean = number(value.get("mean"))
        if mean is None:
            return None
        return {"mean": mean, **{key: number(value.get(key)) for key in ("low", "high", "n")}}
    mean = number(value)
    return None if mean is None else {"mean": mean, "low": None, "high": None, "n": None}


def _fact(key: str, value: object) -> object:
    amount = number(value)
    if key == "seconds" and amount is not None:
        minutes, seconds = divmod(round(amount), 60)
        return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    if key == "peak_memory_mb" and amount is not None:
        return f"{amount:,.0f} MB"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {count}" for name, count in value.items()) or "none"
    return value


def _option(config: Mapping[str, Any], section: str, key: str) -> Any:
    options = config.get(section)
    return options.get(key) if isinstance(options, Mapping) else None


def _batch(config: Mapping[str, Any]) -> str:
    prompts, size = _option(config, "rollout", "prompts_per_step"), _option(config, "rollout", "group_size")
    return f"{prompts} prompts × {size} completions" if prompts and size else ""


def _lies_in(path: str, run_dir: Path) -> bool:
    """Whether a path of the records stays inside the run folder, by its words alone."""
    return Path(os.path.abspath(run_dir / path)).is_relative_to(os.path.abspath(run_dir))


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
