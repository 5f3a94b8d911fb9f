"""A session whose model says what a script says: real tools, real loop, real tokens, for tests of the screen and the page."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from PIL import Image

from mmreason.agent.loop import Listener, Trajectory
from mmreason.agent.scripted import play_script
from mmreason.agent.session import Question, Session, Watcher
from mmreason.agent.trace import SavedEpisode
from mmreason.prompt_once.generation import TokenListener

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

    def play(
        self, prepared: Any, temperature: float, listener: Listener, token_listener: TokenListener | None
    ) -> Trajectory:
        return play_script(self.loop, [prepared], [TURNS], listener, token_listener)[0]

    def ask_about(self, image: Image.Image, watcher: Watcher | None = None, answer: str | None = None) -> SavedEpisode:
        """One question about one picture."""
        return self.ask(Question("What colour?", (image.convert("RGB"),), answer=answer), watcher)


class HeldSession(ScriptedSession):
    """Says `TURNS` token by token, and stops inside the first turn until it is told to go on."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.go_on = threading.Event()
        first = self.policy.tokenizer(TURNS[0], add_special_tokens=False)["input_ids"]
        self._held_after = len(first) // 2
        self.held_text = self.policy.text_of(first[: self._held_after])

    def play(
        self, prepared: Any, temperature: float, listener: Listener, token_listener: TokenListener | None
    ) -> Trajectory:
        assert token_listener is not None
        told = 0

        def slowly(row: int, tokens: Sequence[int]) -> None:
            nonlocal told
            for token in tokens:
                token_listener(row, [token])
                told += 1
                if told == self._held_after:
                    assert self.go_on.wait(120)

        return super().play(prepared, temperature, listener, slowly)
