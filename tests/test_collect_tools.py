"""Rejection sampling of episodes with tools: what counts as a revision, and rows that `mmreason sft` plays again exactly."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tool_calls import halved, numbered, store_of

from mmreason.agent.calls import Call
from mmreason.agent.images import ImageStore
from mmreason.agent.loop import AgentLoop, Trajectory
from mmreason.agent.scripted import plan_texts, planned_turns, play_script, turn_text
from mmreason.agent.toolbox import Job, Toolbox, seen_by
from mmreason.config.compose import compose, plain_dict
from mmreason.config.schema import CollectConfig, DataConfig, RunConfig
from mmreason.data.base import build_task
from mmreason.data.readers import image_loader, read_rows
from mmreason.errors import ConfigError, DataError
from mmreason.policy.policy import Policy, Prepared
from mmreason.records import Row
from mmreason.train.collect import run_collect
from mmreason.train.collect_filters import Candidate, Filters, revises
from mmreason.train.demonstrations import IGNORE, Collator, RowsDataset, replaying_agent

TOOLBOX = Toolbox(["crop", "zoom", "draw_box", "draw_point", "rotate"], "original_px", workers=0)
BOX, OTHER = [10, 10, 60, 60], [100, 80, 180, 150]


def pictures_of(*calls: Call, images: Sequence[Image.Image] = ()) -> ImageStore:
    store = store_of(*images)
    for call in calls:
        (outcome,) = TOOLBOX.run([Job(call, store, Row("r", (), (), {}), seen_by(store, halved))])
        assert outcome.error is None, outcome.text
        for new in outcome.new:
            store.add(new, call.tool)
    return store


def draw(box: list[int], label: str = "mug", image: str = "img_0") -> Call:
    return Call("draw_box", {"image": image, "box": box, "label": label})


def look(box: list[int], image: str = "img_0", tool: str = "crop") -> Call:
    return Call(tool, {"image": image, "box": box})


@pytest.mark.parametrize(
    ("calls", "revised"),
    [
        ([], False),
        ([draw(BOX)], False),
        ([draw(BOX), draw(OTHER, "cup", "img_1")], False),
        ([draw(BOX), draw(BOX, image="img_1")], False),
        ([draw(BOX), draw(OTHER, image="img_1")], True),
        ([draw(BOX), draw(OTHER)], True),  # begun again on the picture without marks
        ([draw(BOX), Call("rotate", {"image": "img_1", "degrees": 90})], False),  # the mark turns with the picture
        ([look(BOX)], False),
        ([look(BOX), look(OTHER)], True),
        ([look(BOX), look([11, 10, 61, 60])], False),
        ([look(BOX), look(BOX, tool="zoom")], False),
        ([look([0, 0, 200, 160]), look([0, 0, 100, 80], image="img_1")], True),  # the picture, then a quarter of it
        ([look([0, 0, 200, 160]), look([0, 0, 199, 159], image="img_1")], False),
    ],
)
def test_a_revision_is_a_label_drawn_again_or_a_look_elsewhere(calls: list[Call], revised: bool) -> None:
    assert revises(pictures_of(*calls).pictures) == revised


def test_the_same_label_or_place_in_another_picture() -> None:
    two = [numbered(), numbered()]
    assert not revises(pictures_of(draw(BOX), draw(OTHER, image="img_1"), images=two).pictures)
    assert revises(pictures_of(look(BOX), look(BOX, image="img_1"), images=two).pictures)


def test_the_filter_drops_what_was_not_revised() -> None:
    plain = Candidate("a", 5, True, 1.0, {"total": 1.0}, ("a",))
    group = [plain, replace(plain, text="b", turns=("b",), revised=True)]
    selection = Filters(CollectConfig(revised_only=True)).select(group)
    assert selection.kept == (1,)
    assert selection.dropped == {"not_revised": 1}
    assert Filters(CollectConfig()).select(group).kept == (0,)


# ---------------------------------------------------------------------- the command


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Stands in for a model that has learned the task: the first sample of a row is the oracle's, the second looks twice or mends."""

    def of(task_name: str, *, mends: bool = False) -> None:
        def play(self: AgentLoop, prepared: Sequence[Prepared], **sampling: Any) -> list[Trajectory]:
            from mmreason.config.schema import TaskConfig

            task = build_task(TaskConfig(name=task_name), 0)
            plans = [plan_texts(self, task, item) for item in prepared]
            if mends:
                mended = [planned_turns(self, task, item, mended=True) for item in prepared]
                second = [[turn_text(self, turn) for turn in turns] for turns in mended]
            else:
                more = self.wire.write_calls("look again", [look([0, 0, 40, 40])])
                second = [[more, *plan] for plan in plans]
            return play_script(self, prepared, [(plans, second)[n % 2][n] for n in range(len(plans))])

        monkeypatch.setattr(AgentLoop, "play", play)

    return of


@pytest.fixture
def collecting(config_in: Callable[..., Any], tmp_path: Path) -> Callable[..., RunConfig]:
    def make(task: str, tools: tuple[str, ...], collect: dict[str, Any] | None = None, **agent: Any) -> RunConfig:
        config: RunConfig = config_in(
            tmp_path,
            command="collect",
            name="collected",
            task={"name": task},
            reward={"correct": "exact > 0.5", "exact": {}},
            agent={"tools": tools, "format": "deepeyes", "tell": False, "workers": 0, "max_turns": 8, **agent},
            rollout={"max_new_tokens": 2000},
            collect={"rows": 3, "samples_per_row": 2, "rows_at_once": 2, "max_per_row": 2, **(collect or {})},
            model={"max_pixels": 50176},
        )
        return config

    return make


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def replayed(config: RunConfig, file: Path, **agent: Any) -> tuple[RowsDataset, Policy]:
    config = config.model_copy(update={"agent": config.agent.model_copy(update=agent), "command": "sft"})
    policy = Policy.load(config.model, device="cpu")
    data = DataConfig(path=str(file))
    loader = image_loader(data)
    rows = read_rows(data, full_check=True).rows
    return RowsDataset(policy, rows, loader, len(rows), 0, replaying_agent(config, policy, loader)), policy


@pytest.mark.parametrize(("task", "tools"), [("fine_print", ("zoom", "crop")), ("pages", ("search", "crop"))])
def test_kept_episodes_are_played_again_exactly(
    oracle: Callable[[str], None],
    collecting: Callable[..., RunConfig],
    tmp_path: Path,
    task: str,
    tools: tuple[str, ...],
) -> None:
    oracle(task)
    config = collecting(task, tools)
    summary = run_collect(config, plain_dict(config))
    run = tmp_path / "collected"
    rows = lines(run / "rows.jsonl")
    assert summary["kept"] == len(rows) > 3, summary
    assert all("completion" not in row and row["agent_format"] == "deepeyes" for row in rows)
    rollouts = {(one["id"], one["completion"]): one for one in lines(run / "rollouts.jsonl")}
    dataset, policy = replayed(config, run / "rows.jsonl")
    by_turns = {tuple(row["turns"]): row for row in rows}
    for place in range(len(rows)):
        one = dataset[place]
        row = by_turns[tuple(dataset.source.row(place).columns["turns"])]
        rollout = rollouts[(row["id"].rpartition("#")[0], "\n".join(row["turns"]))]
        assert sum(one.owner) == rollout["num_tokens"]
        assert len(one.images) == sum(turn["num_images"] for turn in rollout["turns"]) > 0
        written = policy.text_of([token for token, own in zip(one.ids, one.owner, strict=True) if own])
        assert written == "".join(row["turns"])
    batch = Collator(policy)([dataset[0], dataset[1]])
    for place in (0, 1):
        labels = batch["labels"][place]
        assert int((labels != IGNORE).sum()) == sum(dataset[place].owner)
        assert not bool((labels == policy.tokenizer.convert_tokens_to_ids("<|image_pad|>")).any())
    output = policy.model(**batch)
    assert torch.isfinite(output.loss)


def test_only_episodes_that_look_again_are_kept(
    oracle: Callable[[str], None], collecting: Callable[..., RunConfig], tmp_path: Path
) -> None:
    oracle("fine_print")
    config = collecting("fine_print", ("zoom", "crop"), {"revised_only": True})
    summary = run_collect(config, plain_dict(config))
    rows = lines(tmp_path / "collected" / "rows.jsonl")
    assert len(rows) == summary["kept"] == 3
    assert summary["dropped"] == {"not_revised": 3}
    assert all("look again" in row["turns"][0] for row in rows)


@pytest.mark.parametrize(
    ("task", "tools", "wire"),
    [
        ("maze", ("draw_line",), "vilasr"),
        ("maze", ("draw_line",), "deepeyes"),
        ("fine_print", ("zoom", "crop"), "deepeyes"),
        ("chart", ("horizontal_line", "vertical_line"), "deepeyes"),
    ],
)
def test_mended_episodes_of_the_oracle_are_kept_as_revised(
    oracle: Callable[..., None],
    collecting: Callable[..., RunConfig],
    tmp_path: Path,
    task: str,
    tools: tuple[str, ...],
    wire: str,
) -> None:
    oracle(task, mends=True)
    config = collecting(task, tools, {"revised_only": True}, format=wire)
    summary = run_collect(config, plain_dict(config))
    rows = lines(tmp_path / "collected" / "rows.jsonl")
    assert summary["correct"] == "exact > 0.5"
    assert summary["pass_rate"] == 1.0
    assert summary["dropped"] == {"not_revised": 3}
    assert len(rows) == 3
    assert all("check again: wrong" in "".join(row["turns"]) for row in rows)


def test_turns_that_cannot_be_played_are_refused(
    oracle: Callable[[str], None], collecting: Callable[..., RunConfig], tmp_path: Path
) -> None:
    oracle("fine_print")
    config = collecting("fine_print", ("zoom", "crop"), {"rows": 1})
    run_collect(config, plain_dict(config))
    file = tmp_path / "collected" / "rows.jsonl"
    with pytest.raises(DataError, match=r"give agent\.tools"):
        replayed(config, file, tools=())
    with pytest.raises(DataError, match=r"written in 'deepeyes', not in agent\.format=native"):
        replayed(config, file, format="native")
    dataset, _ = replayed(config, file, max_turns=1, force_answer=False)
    with pytest.raises(DataError, match=r"now ends by 'budget' after 1: use the agent\.\*"):
        dataset[0]
    (first, *_) = lines(file)
    for turns, said in (([], "must be a list"), ([3], "must be a list"), (["<|im_end|>"], "end of a turn is added")):
        (tmp_path / "collected" / "bad.jsonl").write_text(json.dumps(first | {"turns": turns}) + "\n")
        with pytest.raises(DataError, match=said):
            replayed(config, tmp_path / "collected" / "bad.jsonl")


def test_options_that_need_tools_or_forbid_them() -> None:
    for word, said in [
        ("collect collect.revised_only=true", "give agent.tools"),
        ("collect collect.pairs=true agent.tools=[crop]", "preference training has no turns"),
        ("eval eval.without_tools=at_once", "give agent.tools"),
        ("eval eval.at_once=true agent.tools=[crop]", "leaves no turn for tools"),
        ("eval eval.oracle=true", "give agent.tools"),
        ("eval eval.oracle=true agent.tools=[crop] task=maze", "add 'agent.tools=\\[crop,draw_line"),
        ("eval eval.oracle=true agent.tools=[crop] task=grounding", "task grounding has no oracle"),
    ]:
        command, *words = word.split()
        with pytest.raises(ConfigError, match=said):
            compose(command, words)
