"""The bridge to TRL's reward functions, both ways: theirs as rewards of ours, and ours for the stock `GRPOTrainer`.

What enters: a function of TRL's form, `f(prompts, completions, completion_ids, **columns) -> list[float | None]`, or the
name of a registered reward. What leaves: a registered reward, or a function of TRL's form. Neither side is changed, and
neither TRL nor torch is imported here.

    from mmreason.reward_kit.trl_bridge import as_trl, from_trl

    from_trl(name="overlong", range=(-1.0, 0.0))(get_soft_overlong_punishment(512, 64))   # in a reward file
    GRPOTrainer(model, reward_funcs=[as_trl("iou", policy=policy)], ...)                  # in a script on stock TRL

Shapes: N completions of a batch, G of a group.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mmreason.boxes import Frame
from mmreason.config.schema import RewardConfig
from mmreason.errors import ConfigError, PluginError
from mmreason.prompt_boxes import with_boxes_written
from mmreason.records import ImageGeometry, Message, Rollout, Row
from mmreason.reward_kit.spec import (
    COMMON_OPTIONS,
    REWARDS,
    Per,
    RewardResult,
    batch_reward,
    group_reward,
    load_reward_files,
    reward,
)
from mmreason.scoring import Exchange, RewardRunner, ScoreTable
from mmreason.text import extract_answer

if TYPE_CHECKING:
    from mmreason.policy.policy import Policy

#: What TRL passes beside the dataset's columns.
_NO_COLUMNS = frozenset(
    {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"}
)
#: Columns in which TRL keeps pictures.
_PICTURES = ("images", "image")
#: Without a policy nothing tells patch and merge size; only rewards that count image tokens use them.
_PATCH_SIZE, _MERGE_SIZE = 14, 2


_DECORATORS: Mapping[Per, Callable[..., Any]] = {"rollout": reward, "group": group_reward, "batch": batch_reward}


# ---------------------------------------------------------------------- theirs as ours


def from_trl(
    name: str | None = None,
    range: tuple[float, float] = (-math.inf, math.inf),
    source: str = "",
    *,
    per: Per = "rollout",
    columns: Mapping[str, str] | None = None,
    conversational: bool = True,
    isolated: bool = False,
    deadline_s: float | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a TRL reward function, unchanged, as a reward; on a function of your own it is a decorator.

    The function is called as TRL calls it, with lists: of one completion, or of the completions of one prompt. It gets
    `prompts`, `completions`, `completion_ids`, every entry of the row's columns and target as a list, `trainer_state`
    with `global_step` and `max_steps`, `log_metric` (what it logs becomes a part of the reward) and `log_extra` (taken
    and dropped). It may be async.

    Args:
        name: registered name; default is the function's.
        range: `(lowest, highest)` value it can return; a value outside counts as a failure. Default: any.
        source: the paper or page of its formula.
        per: what one call gets: one `rollout`, a `group` (all completions of a prompt) or a `batch` (all that all
            processes sampled), for functions that compare them. TRL itself promises that only on a single process.
        columns: column that the function reads -> entry of our target or columns, e.g. `{"solution": "answer"}`.
        conversational: completions as `[{"role": "assistant", "content": text}]`; false: as text, prompts too.
        isolated, deadline_s: as for `reward`.

    Raises:
        PluginError: the name is missing or taken, or the settings contradict each other.
    """
    # Its home is the module that asks for it: that is what a child process imports, and what names it.
    home = sys._getframe(1).f_globals.get("__name__", "__main__")
    renamed = dict(columns or {})

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        own_name = name or getattr(function, "__name__", None)
        if own_name is None:
            raise PluginError(f"from_trl: {function!r:.100} has no name of its own; give from_trl(name=...)")
        wrapper = _wrapper(function, per, renamed, conversational)
        wrapper.__module__, wrapper.__name__, wrapper.__qualname__ = home, own_name, own_name
        wrapper.__doc__ = inspect.getdoc(function)
        _DECORATORS[per](own_name, range, source, isolated=isolated, deadline_s=deadline_s)(wrapper)
        return function

    return register


def _wrapper(
    function: Callable[..., Any], per: Per, renamed: Mapping[str, str], conversational: bool
) -> Callable[..., Any]:
    """The function in our form: it names what it needs, and returns one value or a list of them."""
    call = function if inspect.isroutine(function) else type(function).__call__
    if inspect.iscoroutinefunction(call):

        async def wait_for(rollout: Any, progress: float) -> Any:
            metrics: dict[str, float] = {}
            rollouts = [rollout] if per == "rollout" else rollout
            returned = await function(**_trl_arguments(rollouts, progress, renamed, conversational, metrics))
            return _ours(returned, per, metrics)

        return wait_for

    def score(rollout: Any, progress: float) -> Any:
        metrics: dict[str, float] = {}
        rollouts = [rollout] if per == "rollout" else rollout
        return _ours(function(**_trl_arguments(rollouts, progress, renamed, conversational, metrics)), per, metrics)

    return score


def _trl_arguments(
    rollouts: Sequence[Rollout],
    progress: float,
    renamed: Mapping[str, str],
    conversational: bool,
    metrics: dict[str, float],
) -> dict[str, Any]:
    """What TRL would pass for these rollouts."""
    entries = [{**rollout.row.columns, **rollout.row.target} for rollout in rollouts]
    names = list(dict.fromkeys(name for entry in entries for name in entry))
    columns = {name: [entry.get(name) for entry in entries] for name in names if name not in _NO_COLUMNS}
    for theirs, ours in renamed.items():
        if ours not in columns:
            raise KeyError(f"the row has no '{ours}' (from_trl columns={{'{theirs}': '{ours}'}}); it has {names}")
        columns[theirs] = columns[ours]
    step = max(0, rollouts[0].step - 1)
    # Before the first step nobody knows how many there will be; their ratio is the progress in any case.
    state = SimpleNamespace(global_step=step, max_steps=round(step / progress) if progress > 0 else sys.maxsize)
    prompts: list[Any] = [with_boxes_written(r.row.messages, r.geometry, r.box_frame) for r in rollouts]
    completions: list[Any] = [[{"role": "assistant", "content": rollout.text}] for rollout in rollouts]
    if not conversational:
        prompts = ["\n".join(map(_text_of, messages)) for messages in prompts]
        completions = [rollout.text for rollout in rollouts]
    return {
        **columns,
        "prompts": prompts,
        "completions": completions,
        "completion_ids": [list(rollout.token_ids) for rollout in rollouts],
        "trainer_state": state,
        "log_metric": metrics.__setitem__,
        "log_extra": lambda column, values: None,
    }


def _ours(returned: Any, per: Per, metrics: Mapping[str, float]) -> Any:
    if per != "rollout":
        return returned
    if not isinstance(returned, (list, tuple)) or len(returned) != 1:
        raise ValueError(f"a TRL reward function returns a list with one reward a completion, not {returned!r:.200}")
    return RewardResult(returned[0], dict(metrics))


def _text_of(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in content or () if isinstance(part, Mapping))


# ---------------------------------------------------------------------- ours as theirs


def as_trl(
    name: str,
    *,
    policy: Policy | None = None,
    box_frame: Frame | str | None = None,
    target: Mapping[str, str] | None = None,
    group_size: int | None = None,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> Callable[..., list[float | None]]:
    """A registered reward as a reward function for stock `GRPOTrainer`.

    A call that fails is a `None` for TRL, which leaves that completion out; past `max_failure_share` the function
    raises `RewardFailure`. Parts of the reward and the number of failures are logged through TRL's `log_metric`.

    Args:
        name: registered name.
        policy: tells how the model sees images and writes boxes. For rewards on boxes either this or `box_frame`.
        box_frame: the frame of the model's boxes (`mmreason.boxes.Frame`); without a policy not `resized_px`.
        target: key of the target -> column of the dataset, e.g. `{"answer": "solution"}`. Default: the column
            `target`, a mapping (entries that are null are left out: Arrow adds them).
        group_size: completions of a prompt (`num_generations`), for group and batch rewards; each process must hold
            whole groups. A batch reward is told what all processes hold; what it notes is in none of TRL's checkpoints.
        settings: more of a section `reward`: files, `correct`, deadlines, rewards that this one is told the values of.
        options: the reward's own. Weights belong into `GRPOConfig.reward_weights`.

    Returns:
        `f(prompts, completions, completion_ids=..., **columns) -> list`, `[N]`, called `name`.

    Raises:
        ConfigError: an option is wrong, or what the reward needs is not given.
        PluginError: no such reward.
    """
    load_reward_files((settings or {}).get("files", ()))
    spec = REWARDS.get(name)
    if common := [option for option in options if option in COMMON_OPTIONS - {"deadline_s"}]:
        raise ConfigError(
            f"as_trl('{name}', {common[0]}=...): TRL makes the total; use GRPOConfig.reward_weights instead"
        )
    if policy is None and {"boxes", "box_frame"} & set(spec.needs):
        if box_frame is None:
            raise ConfigError(f"as_trl('{name}'): it reads boxes: give policy=..., or box_frame='relative_1000'")
        if Frame.of(box_frame) is Frame.resized_px:
            raise ConfigError(
                f"as_trl('{name}'): boxes in resized_px depend on the model's image sizes: give policy=..."
            )
    if spec.per != "rollout" and group_size is None:
        raise ConfigError(f"as_trl('{name}'): it scores groups: give group_size=num_generations")
    if "turns" in spec.needs:
        raise ConfigError(f"as_trl('{name}'): it judges tool calls, and TRL does not tell reward functions of them")
    runner = RewardRunner(RewardConfig.model_validate({**(settings or {}), name: options}))
    needs = {need for needed in runner.needs.values() for need in needed}
    reader = _Reader(policy, box_frame, target, group_size or 1, "target" in needs)

    def score(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        rollouts = reader.rollouts(prompts, completions, columns)
        state = columns.get("trainer_state")
        progress = state.global_step / state.max_steps if state is not None and state.max_steps > 0 else 0.0
        exchange = None
        if spec.per == "batch":
            exchange = _all_processes()
            rollouts = _numbered_apart(rollouts, exchange)
        table = runner.score(rollouts, progress, exchange)
        if "log_metric" in columns:
            _log(table, columns["log_metric"])
        return table.as_lists()[name]

    score.__name__ = score.__qualname__ = name
    score.__doc__ = inspect.getdoc(spec.function)
    return score


def _all_processes() -> Exchange:
    """The exchange between TRL's processes; only here is torch needed."""
    from mmreason.train.gathering import AllProcesses

    return AllProcesses()


def _numbered_apart(rollouts: list[Rollout], exchange: Exchange) -> list[Rollout]:
    """Each process counts its groups from 0: number those of all of them, by rank."""
    counts = exchange.gather(len({rollout.group for rollout in rollouts}))
    first = sum(counts[: exchange.rank])
    return [replace(rollout, group=first + rollout.group) for rollout in rollouts]


def _log(table: ScoreTable, log_metric: Callable[[str, float], None]) -> None:
    for part, values in table.parts.items():
        log_metric(part, float(np.nanmean(values)))
    for (name, kind), count in table.failures.items():
        log_metric(f"{name}/failures/{kind}", float(count))


class _Reader:
    """Makes rollouts of what TRL passes to a reward function."""

    def __init__(
        self,
        policy: Policy | None,
        box_frame: Frame | str | None,
        target: Mapping[str, str] | None,
        group_size: int,
        needs_target: bool,
    ) -> None:
        self.policy = policy
        frame = box_frame or (policy.family.box_frame if policy is not None else Frame.original_px)
        self.box_frame = Frame.of(frame).value
        self.target = target
        self.group_size = group_size
        self.needs_target = needs_target

    def rollouts(self, prompts: Sequence[Any], completions: Sequence[Any], given: Mapping[str, Any]) -> list[Rollout]:
        """One rollout a completion, in order; raises `ConfigError` if the dataset lacks what is needed."""
        if len(prompts) % self.group_size:
            raise ConfigError(
                f"{len(prompts)} completions are no whole groups of {self.group_size}: let group_size be "
                "num_generations, and per_device_train_batch_size × steps_per_generation a multiple of it"
            )
        ids = given.get("completion_ids") or [[]] * len(prompts)
        columns = {name: values for name, values in given.items() if name not in _NO_COLUMNS}
        result = []
        for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            mine = {name: values[index] for name, values in columns.items()}
            pictures = _pictures(mine)
            text = completion if isinstance(completion, str) else "".join(map(_text_of, completion))
            row = Row(
                id=str(mine.get("id", index // self.group_size)),
                messages=tuple(({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt),
                images=tuple(pictures),
                target=self._target(mine),
                columns=mine,
            )
            result.append(
                Rollout(
                    row=row,
                    group=index // self.group_size,
                    token_ids=tuple(ids[index]),
                    text=text,
                    answer=extract_answer(text),
                    num_tokens=len(ids[index]),
                    stop_reason="stop",
                    geometry=tuple(self._geometry(picture) for picture in pictures),
                    box_frame=self.box_frame,
                )
            )
        return result

    def _target(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        if self.target is not None:
            missing = [name for name in self.target.values() if name not in columns]
            if missing:
                raise ConfigError(f"as_trl(target=...): no column '{missing[0]}'. Columns: {', '.join(columns)}")
            return {key: columns[name] for key, name in self.target.items()}
        found = columns.get("target")
        if isinstance(found, Mapping):
            return {key: value for key, value in found.items() if value is not None}
        if self.needs_target:
            raise ConfigError(
                "the reward compares with a target, and the dataset has no column 'target' with a mapping: give "
                f"as_trl(target={{'answer': COLUMN}}). Columns: {', '.join(columns)}"
            )
        return {}

    def _geometry(self, picture: Image.Image) -> ImageGeometry:
        if self.policy is not None:
            return self.policy.geometry_of(picture.size)
        return ImageGeometry(picture.size, picture.size, _PATCH_SIZE, _MERGE_SIZE)


def _pictures(columns: Mapping[str, Any]) -> list[Image.Image]:
    """The pictures of a row, as TRL's datasets hold them."""
    for name in _PICTURES:
        found = columns.get(name)
        if found is not None:
            return list(found) if isinstance(found, (list, tuple)) else [found]
    return []
