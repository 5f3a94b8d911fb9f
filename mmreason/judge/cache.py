"""Replies of judges on disk: one small JSON file a key.

What enters: keys (`Question.key`) and replies. What leaves: the reply of a key, or `None`. Files appear in one rename, so
any number of processes may share a folder; an entry that is torn or altered is no entry, and is written anew. No torch.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

#: A larger file is not ours.
_MAX_ENTRY_BYTES = 8_000_000


class ReplyCache:
    """A folder of replies.

    Args:
        folder: made when something is first written.

    Attributes:
        num_bad: entries found that could not be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_bad = 0

    def path(self, key: str) -> Path:
        """Where the reply of a key lies."""
        return self.folder / key[:2] / f"{key}.json"

    def get(self, key: str) -> str | None:
        """The reply of a key; `None` if there is none that can be read."""
        path = self.path(key)
        try:
            if path.stat().st_size > _MAX_ENTRY_BYTES:
                raise ValueError("too large")
            entry = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError):
            self.num_bad += 1
            return None
        reply = entry.get("reply") if isinstance(entry, dict) and entry.get("key") == key else None
        if not isinstance(reply, str):
            self.num_bad += 1
            return None
        return reply

    def put(self, key: str, reply: str) -> None:
        """Keep a reply.

        Raises:
            OSError: the folder cannot be written.
        """
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{key}.{os.getpid()}.{threading.get_ident()}")
        temporary.write_text(json.dumps({"key": key, "reply": reply}), encoding="utf-8")
        temporary.replace(path)
