"""Tool `search`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mmreason.agent.images import ImageStore, NewPicture
from mmreason.agent.page_texts import PageTexts
from mmreason.agent.tools import ToolError, ToolResult, tool
from mmreason.tools.page_index import index_of

#: Pages without a text that are named.
_MAX_NAMED = 8


# Its work is bounded by the texts, of which 50,000 characters a page are read, and sending all pages would cost more than it does.
# Pages without a text are read before it is called, in child processes with a deadline (`mmreason.agent.page_texts`).
@tool(isolated=False)
def search(
    query: Annotated[str, Field(min_length=1)],
    store: ImageStore,
    page_texts: PageTexts,
    count: Annotated[int, Field(ge=1, le=3)] = 1,
) -> ToolResult:
    """Search the pages of the question for words, and show the best page that has not been shown yet.

    Args:
        query: a few words of what is looked for.
        count: how many pages to show.
    """
    if not store.hidden:
        raise ToolError("search: this question has no pages to search; look at its pictures")
    texts = page_texts.texts
    if not texts:
        why = "; ".join(dict.fromkeys(page_texts.unread.values())).rstrip(".")
        raise ToolError(
            f"search: no page has a text: {why}. Look at the pictures that are there. For people: give the pages texts (the column "
            "`pages`, or a .txt of the same name as the picture), or install an engine that reads them"
        )
    ranked = [name for name, _ in index_of(tuple(texts.items())).search(query)]
    told = _left_out(page_texts)
    if not ranked:
        raise ToolError(f"search: no page has any of these words. {len(texts)} pages; try other words{told}")
    shown = {picture.name: picture.id for picture in store.pictures if picture.name and picture.parent is None}
    new = [name for name in ranked if name not in shown][:count]
    if not new:
        seen = ", ".join(f"{shown[name]} ({name})" for name in ranked[:_MAX_NAMED])
        raise ToolError(
            f"search: every page with these words has been shown: {seen}. Look there, or try other words{told}"
        )
    pictures = tuple(NewPicture(store.hidden[name], None, name=name) for name in new)
    return ToolResult(", ".join(new) + told, pictures, tuple(new))


def _left_out(page_texts: PageTexts) -> str:
    """Says which pages have no text to search, and briefly why; empty if all have one."""
    unread = page_texts.unread
    if not unread:
        return ""
    names = ", ".join(list(unread)[:_MAX_NAMED]) + (", …" if len(unread) > _MAX_NAMED else "")
    reasons = "; ".join(dict.fromkeys(reason.partition(". ")[0].rstrip(".") for reason in unread.values()))
    return f" (pages without a text, not searched: {names}: {reasons})"
