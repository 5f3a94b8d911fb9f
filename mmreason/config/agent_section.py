"""Options of agents: which tools a model may call while it answers, how calls are written, and how much an episode may cost.

What enters: `agent.*` of the composed configuration. What leaves: an `AgentConfig`. No torch.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from mmreason.config.base import Section

FormatName = Literal["native", "vilasr", "vrag", "deepeyes"]
FORMAT_NAMES: tuple[str, ...] = get_args(FormatName)


class AgentConfig(Section):
    """Tools while answering; without `tools` the model answers in one turn.

    `rollout.max_new_tokens` bounds the whole completion: all turns, and what tools return.
    """

    tools: tuple[str, ...] = Field((), description="names of the tools (`mmreason tool list`); empty = no tools")
    files: tuple[str, ...] = Field((), description="Python files that register tools of your own")
    format: FormatName = Field(
        "native",
        description="how calls are written: as the family's chat template does, or as in ViLaSR, VRAG, DeepEyes",
    )
    strict: bool = Field(True, description="refuse JSON with single quotes or trailing commas instead of mending it")
    tell: bool = Field(True, description="say in the prompt which tools there are; false = the model was taught before")
    max_turns: PositiveInt = Field(6, description="turns of the model, the one that answers included")
    max_calls: PositiveInt = Field(8, description="calls of an episode, failed ones included")
    max_pictures: NonNegativeInt = Field(8, description="pictures that tools may add to an episode")
    max_turn_tokens: PositiveInt | None = Field(
        None, description="tokens of one turn; null = as many as rollout.max_new_tokens leaves"
    )
    max_observation_tokens: PositiveInt = Field(
        4096, description="tokens of all that tools return in an episode, pictures included"
    )
    min_turn_tokens: PositiveInt = Field(
        16, description="what must be left for the next turn; an observation that leaves less is taken back"
    )
    max_seconds: PositiveFloat | None = Field(
        None, description="wall clock of an episode; runs with such a limit cannot be repeated exactly"
    )
    max_errors: PositiveInt = Field(2, description="turns in a row that fail before the model is told to answer")
    force_answer: bool = Field(
        True,
        description="tell the model to answer when a budget is used up; false = it is not told, and a further call ends the episode",
    )
    over_budget: Literal["mask", "leave_out", "keep"] = Field(
        "mask",
        description="episodes that end without an answer because a budget is used up: no loss; no loss, and no part in "
        "the statistics of their group; or as all others",
    )
    picture_max_pixels: PositiveInt | None = Field(
        None, description="pixel budget of pictures from tools; null = model.max_pixels"
    )
    keep_turns: PositiveInt | None = Field(
        None,
        description="newest turns, with what tools returned to them, that stay in the context; older ones leave it, and the "
        "model keeps what it needs in a <summary>; null = all stay",
    )
    deadline_s: PositiveFloat = Field(10.0, description="seconds for one call")
    workers: Annotated[int, Field(ge=0, le=64)] | None = Field(
        None, description="processes that run tools; null = by the number of cores, 0 = in the training process"
    )

    @property
    def enabled(self) -> bool:
        """Whether there is any tool."""
        return bool(self.tools)

    @model_validator(mode="after")
    def _no_tool_twice(self) -> AgentConfig:
        twice = sorted({name for name in self.tools if self.tools.count(name) > 1})
        if twice:
            raise ValueError(f"agent.tools names {', '.join(twice)} more than once")
        if not self.tools and self.files:
            raise ValueError("agent.files are given, but agent.tools names no tool")
        return self
