"""Tool `select_frames`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mmreason.agent.images import ImageStore, NewPicture
from mmreason.agent.tools import ToolError, ToolResult, tool


@tool(isolated=False)  # frames that are there already
def select_frames(frames: Annotated[list[int], Field(min_length=1, max_length=8)], store: ImageStore) -> ToolResult:
    """Show frames of the image sequence by their numbers, the first is 1.

    Args:
        frames: numbers of one to eight frames, such as [1, 4, 7].
    """
    names = list(store.hidden)
    if not names:
        raise ToolError("select_frames: this question has no sequence of frames; look at its pictures")
    if wrong := [number for number in frames if not 1 <= number <= len(names)]:
        raise ToolError(f"select_frames: there is no frame {wrong[0]}: numbers go from 1 to {len(names)}")
    chosen = [names[number - 1] for number in dict.fromkeys(frames)]
    return ToolResult(
        ", ".join(chosen), tuple(NewPicture(store.hidden[name], None, name=name) for name in chosen), tuple(chosen)
    )
