"""What rewards and shapers may name as parameters, and what they then receive.

What enters: nothing. What leaves: a table for each of the decorators of `mmreason.reward_kit.spec`, name -> what it is. How each
thing is worked out from a rollout, a group or a batch is in `mmreason.reward_kit.groups`.

Shapes: G completions of a group, N of a batch over all processes, R rewards.
"""

from __future__ import annotations

from collections.abc import Mapping

#: What a reward may name as a parameter, and what it then receives.
NEEDS: Mapping[str, str] = {
    "rollout": "Rollout: everything about the completion",
    "completion": "str: all text the model wrote",
    "answer": "str | None: the last complete answer block, or else boxed text, outside the thinking",
    "target": "Mapping[str, Any]: what is right, see Row.target",
    "geometry": "tuple[ImageGeometry, ...]: how the model sees each image",
    "box_frame": "Frame: the frame in which the model writes boxes",
    "boxes": "Boxes: boxes in the answer, in box_frame; empty if there are none",
    "columns": "Mapping[str, Any]: the row's other columns",
    "num_tokens": "int: number of sampled tokens",
    "turns": "tuple[Turn, ...]: turns with their tool calls; empty where there were no tools",
    "progress": "float: share of the training that is done, 0..1",
    "judge": "RowJudge: `await judge.ask(...)`, for async rewards of runs with a section judge",
}
_NO_LISTS = ("progress", "judge")
#: What a group reward may name: the same, each (but `progress` and `judge`) as a list over the group's G completions, and more.
GROUP_NEEDS: Mapping[str, str] = {
    **{name: text if name in _NO_LISTS else f"list of G × {text}" for name, text in NEEDS.items()},
    "rewards": "Mapping[str, list[float | None]]: values of every reward of single rollouts in the run",
    "correct": "list[bool | None]: whether reward.correct holds; None where its reward does not apply",
}
_STATE = "dict[str, Any]: what it noted in earlier batches, to read and change; what JSON can hold, kept in checkpoints"
#: What a batch reward may name: the same over the batch's N completions, and more.
BATCH_NEEDS: Mapping[str, str] = {
    **{name: text.replace("list of G", "list of N") for name, text in GROUP_NEEDS.items()},
    "group": "list of N × int: number of each completion's group, from 0",
    "dataset": "list of N × str: name of the row's task or file",
    "judge": f"list of N × {NEEDS['judge']}",
    "state": _STATE,
}
#: What a shaper may name; N rollouts are those of the whole batch, over all processes.
SHAPER_NEEDS: Mapping[str, str] = {
    "values": "float64 array [N, R]: the reward matrix, NaN = does not apply; a copy, to change and return",
    "names": "tuple[str, ...]: the reward of each of the R columns",
    "group": "int array [N]: number of each rollout's group, from 0",
    "num_tokens": "int array [N]: number of sampled tokens",
    "correct": "float64 array [N]: 1 where reward.correct holds, 0 where not, NaN where it cannot be told",
    "completion": "list of N × str: all text the model wrote",
    "answer": "list of N × (str | None): the last complete answer block, or else boxed text, outside the thinking",
    "target": "list of N × Mapping[str, Any]: what is right, see Row.target",
    "columns": "list of N × Mapping[str, Any]: the rows' other columns",
    "row_id": "list of N × str: id of the row, the same at every step",
    "progress": "float: share of the training that is done, 0..1",
    "state": _STATE,
}
#: The same, by what one call scores.
NEEDS_PER: Mapping[str, Mapping[str, str]] = {"rollout": NEEDS, "group": GROUP_NEEDS, "batch": BATCH_NEEDS}
