r"""The sentence that asks for the form which the run's rewards want: what `{form}` in `model.instruction` becomes.

What enters: the blocks that the reward `format` looks for (`reward.format.tags`), and the section `model`. What leaves: the text that stands
behind every question, and what contradicts what. One definition for the prompt and its check, so that a model which does as it is told earns
its form. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmreason.config.schema import ModelConfig, RunConfig

#: In `model.instruction`: the sentence about the form; how the model's family writes boxes.
FORM, BOX_HINT = "{form}", "{box_hint}"
#: What the reward `format` wants where the run does not say, and what is asked for where it is not in the run.
USUAL_TAGS = ("think", "answer")
#: Block -> what is asked for in it; any other is asked for by its name.
_ASKED = {
    "think": "think inside <think> </think>",
    "info": "describe what you see inside <info> </info>",
    "answer": "answer inside <answer> </answer>",
    "class": "give the class inside <class> </class>",
    "extension": "say what follows from it inside <extension> </extension>",
    "boxed": r"put the answer in \boxed{}",
}
_NAMED = re.compile(r"</?([A-Za-z][A-Za-z0-9_-]*)>|\\(boxed)\b")


def form_text(tags: Sequence[str]) -> str:
    """`First think inside <think> </think>, then answer inside <answer> </answer>.` for these blocks, in order."""
    asked = [_ASKED.get(tag, f"write the {tag} inside <{tag}> </{tag}>") for tag in tags]
    first = f"First {asked[0]}" if len(asked) > 1 else asked[0].capitalize()
    return ", then ".join([first, *asked[1:]]) + "."


def wanted_tags(reward: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The blocks that the reward `format` of a plain section `reward` wants; None where it is not in the run, or is no such list."""
    options = reward.get("format")
    tags = options.get("tags", USUAL_TAGS) if isinstance(options, Mapping) else None
    if not isinstance(tags, (list, tuple)) or not tags or not all(isinstance(tag, str) and tag for tag in tags):
        return None
    return tuple(tags)


def with_form(raw: dict[str, Any]) -> dict[str, Any]:
    """A plain configuration with `model.form` filled from its rewards, where the instruction has a place for it and nothing is set."""
    model, reward = raw.get("model"), raw.get("reward")
    if not isinstance(model, dict) or model.get("form") is not None or FORM not in str(model.get("instruction", "")):
        return raw
    tags = wanted_tags(reward) if isinstance(reward, Mapping) else None
    return {**raw, "model": {**model, "form": form_text(tags or USUAL_TAGS)}}


def instruction_text(model: ModelConfig, box_hint: str) -> str:
    """What is put after a question.

    Args:
        model: the section of the run.
        box_hint: how boxes are written; empty where the question wants none.
    """
    text = model.instruction.replace(FORM, model.form or form_text(USUAL_TAGS))
    return text.replace(BOX_HINT, box_hint).rstrip()


def form_problems(config: RunConfig) -> list[str]:
    """A form reward that wants blocks which the instruction does not ask for, though it asks for others.

    An instruction that names no block at all is no contradiction: the rows may describe the form, or training before may have taught it.
    """
    options = config.reward.active().get("format", {})
    tags = wanted_tags({"format": options})
    if "format" not in config.reward.active() or tags is None or not config.reward.weights()["format"] > 0:
        return []
    named = list(dict.fromkeys(one or other for one, other in _NAMED.findall(instruction_text(config.model, ""))))
    missing = [tag for tag in tags if tag not in named]
    if not named or not missing:
        return []
    return [
        f"reward.format.tags=[{', '.join(tags)}] wants {', '.join(missing)}, and the question asks for {', '.join(named)}: a model that "
        "does as it is told would never earn its form. Write {form} into model.instruction in place of the blocks and leave model.form out "
        "(it becomes what the run's reward.format.tags want, the same in all phases), or name the blocks there yourself"
    ]
