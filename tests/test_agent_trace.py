"""Traces: what is written is what is read, hostile ones are refused, and a replay tells every difference."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agent_sessions import AGENT, TURNS
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmreason.agent.loop import AgentLoop
from mmreason.agent.replay import pixel_difference, replay, replay_settings
from mmreason.agent.scripted import plan_texts, play_script
from mmreason.agent.trace import (
    FILE_NAME,
    SavedEpisode,
    SavedSampling,
    read_trace,
    saved_episode,
    write_trace,
)
from mmreason.config.schema import TaskConfig
from mmreason.data.base import build_task
from mmreason.errors import ConfigError, DataError, MMReasonError
from mmreason.policy.policy import Policy
from mmreason.records import Rollout
from mmreason.rescoring import rollout_from_record
from mmreason.run_records import RolloutWriter, RunFolder, pixel_digest, read_rollouts


@pytest.fixture(scope="module")
def loop(config_in: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> AgentLoop:
    config = config_in(tmp_path_factory.mktemp("runs"), agent=AGENT, rollout={"max_new_tokens": 1500})
    return AgentLoop(Policy.load(config.model, device="cpu"), config.agent, config.rollout.max_new_tokens)


@pytest.fixture(scope="module")
def played(loop: AgentLoop) -> tuple[SavedEpisode, Rollout]:
    row = build_task(TaskConfig(name="fine_print"), 3).row(0)
    prepared = loop.policy.prepare(row)
    trajectory = play_script(loop, [prepared], [TURNS])[0]
    saved = saved_episode(
        loop, prepared, trajectory, SavedSampling(temperature=0.5, seed=3), {"exact": 0.0, "iou": None}
    )
    return saved, loop.policy.episode_rollout(prepared, 0, trajectory, step=4)


@pytest.fixture
def saved(played: tuple[SavedEpisode, Rollout]) -> SavedEpisode:
    return played[0]


@pytest.fixture
def folder(saved: SavedEpisode, tmp_path: Path) -> Path:
    return write_trace(saved, tmp_path / "traces" / "one")


def changed(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The trace with its JSON changed."""
    content = json.loads((folder / FILE_NAME).read_text())
    change(content)
    (folder / FILE_NAME).write_text(json.dumps(content))
    return folder


# ---------------------------------------------------------------------- writing and reading


def test_what_is_written_is_what_is_read(saved: SavedEpisode, folder: Path) -> None:
    again = read_trace(folder)
    assert again.trace == saved.trace
    assert {digest: image.tobytes() for digest, image in again.images.items()} == {
        digest: image.tobytes() for digest, image in saved.images.items()
    }
    assert not [path for path in folder.parent.iterdir() if path != folder], "no temporary folder stays"


def test_a_trace_holds_everything_of_the_episode(saved: SavedEpisode) -> None:
    trace = saved.trace
    assert trace.answer == "red"
    assert trace.stop == "answer"
    assert trace.texts == TURNS
    assert [picture.id for picture in trace.pictures] == ["img_0", "img_1", "img_2"]
    assert [picture.parent for picture in trace.pictures] == [None, "img_0", "img_1"]
    assert [mark.label for mark in trace.pictures[2].marks] == ["a"]
    assert trace.pictures[1].affine.box((0, 0, *trace.pictures[1].size))[:2] == pytest.approx((0, 0), abs=1)
    assert [turn.error for turn in trace.turns] == ["", "", "unknown_image", ""]
    assert [event.kind for event in trace.events if event.kind.startswith("call")] == [
        "call",
        "call",
        "call",
        "call_error",
    ]
    assert sum(count for _, count in trace.owner) == len(trace.ids)
    assert trace.made_with["pillow"]
    # The picture with marks differs from the one it was drawn on by the marks alone.
    assert saved.picture("img_1").size == saved.picture("img_2").size
    assert saved.picture("img_1").tobytes() != saved.picture("img_2").tobytes()


def test_a_trace_is_never_written_over_anything(saved: SavedEpisode, folder: Path, tmp_path: Path) -> None:
    before = (folder / FILE_NAME).read_bytes()
    (tmp_path / "empty").mkdir()
    for place in (folder, tmp_path / "empty"):
        with pytest.raises(DataError, match="something already"):
            write_trace(saved, place)
    assert (folder / FILE_NAME).read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(schema="mmreason.trace/9"), "schema"),
        (lambda t: t.update(more=1), "more"),
        (lambda t: t.pop("ids"), "ids"),
        (lambda t: t["ids"].append(1), "owner counts"),
        (lambda t: t["ids"].__setitem__(0, -1), "ids"),
        (lambda t: t["turn_ends"].reverse(), "turn_ends"),
        (lambda t: t["turn_ends"].__setitem__(-1, 10**5), "turn_ends"),
        (lambda t: t["owner"].append([1, 10**9]), "owner"),
        (lambda t: t["pictures"][1].update(id="img_7"), "img_1"),
        (lambda t: t["pictures"][1].update(parent="img_2"), "not before it"),
        (lambda t: t["pictures"][1].update(made_by=""), "come with the question"),
        (lambda t: t["pictures"][1].update(size=[1, 1]), "is said to be"),
        (lambda t: t["pictures"][1].update(digest="../../../../etc/passwd0000000000"), "digest"),
        (lambda t: t["pictures"][1].update(digest="0" * 32), "not found"),
        (lambda t: t.update(pictures=[t["pictures"][0]]), "not among the pictures"),
        (lambda t: t["question"]["messages"][0].update(content=[{"type": "text"}]), "needs a text"),
        (lambda t: t["question"]["messages"][0].update(role="tool"), "role"),
        (lambda t: t["question"]["messages"][0]["content"].append({"type": "image"}), "come with the question"),
        (lambda t: t["question"].update(hidden={"page": "/etc/passwd"}), "hidden"),
        (lambda t: t["agent"].update(max_turns=0), "max_turns"),
        (lambda t: t["model"].update(trust_remote_code=True), "trust_remote_code"),
        (lambda t: t.update(stop="never"), "stop"),
    ],
)
def test_hostile_traces_are_refused_by_name(
    folder: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_trace(changed(folder, change))


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff\xfe", b'{"ids": ' + b"[" * 100_000, b'{"ids": [NaN]}', b"{" + b'"a":{' * 50_000]
)
def test_what_is_no_trace_is_refused(folder: Path, content: bytes) -> None:
    (folder / FILE_NAME).write_bytes(content)
    with pytest.raises(DataError, match="is not a trace"):
        read_trace(folder)


def test_a_changed_or_replaced_picture_is_found(saved: SavedEpisode, folder: Path, tmp_path: Path) -> None:
    path = folder / "images" / f"{saved.trace.pictures[1].digest}.png"
    Image.new("RGB", saved.trace.pictures[1].size).save(path)
    with pytest.raises(DataError, match="has been changed"):
        read_trace(folder)
    # A link out of the folder is not followed, whatever it leads to.
    outside = tmp_path / "outside.png"
    saved.picture("img_1").save(outside)
    path.unlink()
    path.symlink_to(outside)
    with pytest.raises(DataError, match="outside the image root"):
        read_trace(folder)
    path.unlink()
    saved.picture("img_1").save(path, format="JPEG")
    with pytest.raises(DataError, match="cannot be read"):
        read_trace(folder)


def test_a_missing_folder_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="mmreason agent --out"):
        read_trace(tmp_path / "nothing")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_change_of_a_trace_ends_in_anything_but_an_explained_refusal(
    played: tuple[SavedEpisode, Rollout], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = write_trace(played[0], tmp_path_factory.mktemp("hostile") / "trace")
    content = json.loads((folder / FILE_NAME).read_text())
    place: Any = content
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(list(keys)))
        inner = place[key]
        if not isinstance(inner, (dict, list)) or not inner or data.draw(st.booleans()):
            place[key] = data.draw(JSON)
            break
        place = inner
    (folder / FILE_NAME).write_text(json.dumps(content))
    try:
        again = read_trace(folder)
    except DataError:
        return
    finally:
        shutil.rmtree(folder)
    assert again.row().images or not again.trace.num_given


# ---------------------------------------------------------------------- replays


def test_a_replay_of_an_untouched_trace_is_the_same(loop: AgentLoop, folder: Path) -> None:
    result = replay(read_trace(folder), loop)
    assert result.differences == ()
    assert result.again.trace.ids == read_trace(folder).trace.ids


@pytest.mark.parametrize("name", ["maze", "spatial", "chart", "fine_print", "pages", "tracking"])
def test_episodes_of_all_tasks_replay_exactly(config_in: Callable[..., Any], name: str, tmp_path: Path) -> None:
    task = build_task(TaskConfig(name=name), 5)
    config = config_in(
        tmp_path,
        agent={**AGENT, "tools": task.tools, "format": "native", "max_turns": 14, "max_calls": 20, "max_pictures": 16},
        rollout={"max_new_tokens": 4000},
    )
    loop = AgentLoop(Policy.load(config.model, device="cpu"), config.agent, config.rollout.max_new_tokens)
    prepared = loop.policy.prepare(task.row(1))
    trajectory = play_script(loop, [prepared], [plan_texts(loop, task, prepared)])[0]
    assert trajectory.stop == "answer"
    folder = write_trace(saved_episode(loop, prepared, trajectory), tmp_path / "trace")
    assert replay(read_trace(folder), loop).differences == ()


def test_a_replay_tells_each_difference(loop: AgentLoop, saved: SavedEpisode) -> None:
    """Another first picture: the pictures made of it differ, and nothing else does."""
    root = saved.trace.pictures[0]
    other = saved.images[root.digest].copy()
    for x in range(20, 24):
        other.putpixel((x, 30), (255, 0, 255))
    digest = pixel_digest(other)
    pictures = (root.model_copy(update={"digest": digest}), *saved.trace.pictures[1:])
    moved = SavedEpisode(saved.trace.model_copy(update={"pictures": pictures}), {**saved.images, digest: other})
    differences = replay(moved, loop).differences
    assert [line.split(" ")[0] for line in differences] == ["img_1", "img_2"]
    assert all("pixels differ" in line for line in differences)


def test_a_replay_with_other_tools_tells_calls_tokens_and_the_missing_pictures(
    config_in: Callable[..., Any], saved: SavedEpisode, loop: AgentLoop, tmp_path: Path
) -> None:
    config = config_in(tmp_path, agent={**AGENT, "tools": ("zoom",)})
    fewer = AgentLoop(loop.policy, config.agent, loop.max_tokens)
    told = "\n".join(replay(saved, fewer).differences)
    assert "img_2 (by draw_box): is missing" in told
    assert "there is no tool 'draw_box'" in told
    assert "shown to the model" in told
    assert "event" in told


def test_a_replay_loads_nothing_because_the_trace_says_so(saved: SavedEpisode, folder: Path) -> None:
    def hostile(trace: dict[str, Any]) -> None:
        trace["agent"] |= {"files": ["/tmp/evil.py"], "workers": 64, "deadline_s": 1e6}

    trace = read_trace(changed(folder, hostile)).trace
    with pytest.raises(ConfigError, match="--model"):
        replay_settings(trace, None, ())
    with pytest.raises(ConfigError, match="--file"):
        replay_settings(trace, "tiny", ())
    model, agent = replay_settings(trace, "tiny", ("mine.py",))
    assert model.name == "tiny"
    assert (agent.files, agent.workers, agent.deadline_s) == (("mine.py",), None, 60.0)


def test_pixel_differences_are_measured() -> None:
    before = Image.new("RGB", (10, 8), (100, 100, 100))
    after = before.copy()
    after.putpixel((3, 2), (100, 130, 100))
    after.putpixel((5, 6), (99, 100, 100))
    assert pixel_difference(before, after) == "2 of 80 pixels differ, by up to 30 of 255, inside [3, 2, 6, 7]"
    assert "is 4 × 8 px" in pixel_difference(before, before.crop((0, 0, 4, 8)))


# ---------------------------------------------------------------------- records of runs


def test_records_of_runs_keep_turns_owners_and_pictures(played: tuple[SavedEpisode, Rollout], tmp_path: Path) -> None:
    _, rollout = played
    folder = RunFolder(tmp_path)
    RolloutWriter(folder).write(4, [rollout], {"exact": [0.0]}, [0.0], [0.0])
    record = next(iter(read_rollouts(folder.rollouts)))
    assert [turn["tool"] for turn in record["turns"]] == ["zoom", "draw_box", "zoom", None]
    assert [turn["error"] for turn in record["turns"]] == ["", "", "unknown_image", ""]
    assert [picture["id"] for picture in record["pictures"]] == ["img_1", "img_2"]
    for picture, seen in zip(record["pictures"], rollout.pictures, strict=True):
        with Image.open(tmp_path / picture["path"]) as stored:
            assert isinstance(seen.image, Image.Image)
            assert stored.size == seen.image.size
    assert [owner for owner, _, _ in record["spans"]] == [1, 0, 1, 0, 1, 0, 1]
    texts = [text for _, _, text in record["spans"]]
    assert [text.removesuffix("<|im_end|>") for text in texts[::2]] == list(TURNS)
    assert "[img_1]" in texts[1]
    assert "[img_2]" in texts[3]
    assert "image_pad" not in "".join(texts)
    # Read back, rewards see what they saw in training.
    again = rollout_from_record(record)
    assert again.turns == rollout.turns
    assert again.owner == rollout.owner
    assert again.num_tokens == rollout.num_tokens == sum(rollout.owner)


@pytest.mark.parametrize("spans", [[[1]], [[2, 3, ""]], [[1, -1, ""]], [[1, 10**9, ""]], [[True, 1, ""]], ["x"], "x"])
def test_damaged_spans_are_refused(spans: Any) -> None:
    with pytest.raises(MMReasonError, match="spans"):
        rollout_from_record({"completion": "x", "spans": spans})
