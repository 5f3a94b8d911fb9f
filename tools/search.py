"""Tool `search`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from mmreason.agent.images import ImageStore, NewPicture
from mmreason.agent.tools import ToolError, ToolResult, tool
from mmreason.records import Row
from mmreason.tools.page_index import PageIndex


@tool(isolated=False)  # its work is bounded by the texts of the row, and sending all pages would cost more
def search(
    query: Annotated[str, Field(min_length=1)],
    store: ImageStore,
    row: Row,
    count: Annotated[int, Field(ge=1, le=3)] = 1,
) -> ToolResult:
    """Search the pages of the question for words, and show the best page that has not been shown yet.

    Args:
        query: a few words of what is looked for.
        count: how many pages to show.
    """
    texts = row.columns.get("pages")
    if not isinstance(texts, Mapping) or not texts:
        raise ToolError("search: this question has no pages to search; look at its pictures")
    known = {name: str(text) for name, text in texts.items() if name in store.hidden}
    ranked = [name for name, _ in PageIndex(known).search(query)]
    if not ranked:
        raise ToolError(f"search: no page has any of these words. {len(known)} pages; try other words")
    shown = {picture.name: picture.id for picture in store.pictures if picture.name and picture.parent is None}
    new = [name for name in ranked if name not in shown][:count]
    if not new:
        seen = ", ".join(f"{shown[name]} ({name})" for name in ranked[:8])
        raise ToolError(f"search: every page with these words has been shown: {seen}. Look there, or try other words")
    pictures = tuple(NewPicture(store.hidden[name], None, name=name) for name in new)
    return ToolResult(", ".join(new), pictures, tuple(new))
