"""A session whose model says what a script says: real tools, real loop, real tokens, for tests of the screen and the page."""

from __future__ import annotations

from typing import Any

from PIL import Image

from mmreason.agent.loop import Listener, Trajectory
from mmreason.agent.scripted import play_script
from mmreason.agent.session import Question, Session, Watcher
from mmreason.agent.trace import SavedEpisode

#: Calls that succeed, one that fails, and the answer.
TURNS = (
    '<think>closer</think>\n<tool_call>{"name": "zoom", "arguments": {"image": "img_0", "box": [0, 0, 60, 60]}}</tool_call>',
    '<think>there</think>\n<tool_call>{"name": "draw_box", "arguments": {"image": "img_1", "box": [10, 10, 50, 40], "label": "a"}}'
    "</tool_call>",
    '<tool_call>{"name": "zoom", "arguments": {"image": "img_9", "box": [0, 0, 60, 60]}}</tool_call>',
    "<think>now</think><answer>red</answer>",
)
AGENT: dict[str, Any] = {"tools": ("zoom", "draw_box"), "format": "deepeyes", "tell": False, "workers": 0}


class ScriptedSession(Session):
    """Says `TURNS`."""

    def play(self, prepared: Any, temperature: float, listener: Listener | None) -> Trajectory:
        return play_script(self.loop, [prepared], [TURNS], listener)[0]

    def ask_about(self, image: Image.Image, watcher: Watcher | None = None, answer: str | None = None) -> SavedEpisode:
        """One question about one picture."""
        return self.ask(Question("What colour?", (image.convert("RGB"),), answer=answer), watcher)
