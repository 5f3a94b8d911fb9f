"""`mmreason reward list`, `new`, `check` and `score`: the spec grammar, re-scoring, and what is told when it fails."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmreason import cli
from mmreason.errors import ConfigError, DataError, MMReasonError, RewardFailure
from mmreason.records import ImageGeometry, Rollout, Row
from mmreason.rescoring import rollout_from_record
from mmreason.reward_kit.commands import list_rewards, parse_reward_spec, score_file
from mmreason.run_records import rollout_record

GROUNDING: dict[str, Any] = {
    "id": "grounding/0/1",
    "completion": "<think>left</think><answer>[100, 100, 350, 600]</answer>",
    "target": {"boxes": [[40, 20, 140, 120]]},
    "images": [{"path": "a.png", "original_size": [400, 200], "model_size": [392, 196]}],
    "box_frame": "relative_1000",
}


def write(folder: Path, *records: Any) -> str:
    path = folder / "rollouts.jsonl"
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def score(path: str, spec: str, **options: Any) -> list[dict[str, Any]]:
    stream = io.StringIO()
    score_file(path, spec, stream, **options)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


# The spec


@pytest.mark.parametrize(
    ("text", "rewards"),
    [
        ("iou", {"iou": {}}),
        ("iou,format", {"iou": {}, "format": {}}),
        ("iou()", {"iou": {}}),
        (" iou ( threshold = 0.5 ) , format ", {"iou": {"threshold": 0.5}, "format": {}}),
        ("a(x=1,y=-2.5,z=1e-3)", {"a": {"x": 1, "y": -2.5, "z": 0.001}}),
        ("a(x=true,y=False,z=null)", {"a": {"x": True, "y": False, "z": None}}),
        ("a(x=soft,y=0.5.1,z=nan)", {"a": {"x": "soft", "y": "0.5.1", "z": "nan"}}),
        ("a(x=[think,answer],y=[])", {"a": {"x": ["think", "answer"], "y": []}}),
        ("pack-age/name(x=1)", {"pack-age/name": {"x": 1}}),
    ],
)
def test_spec_is_read(text: str, rewards: dict[str, Any]) -> None:
    parsed = parse_reward_spec(text)
    assert parsed == rewards
    assert list(parsed) == list(rewards)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected the name of a reward at character 1, found the end"),
        ("iou,", "expected the name of a reward at character 5"),
        ("iou(threshold=0.5", r"expected ',' or '\)' at character 18, found the end"),
        ("iou(threshold)", "expected '=' at character 14"),
        ("iou(=0.5)", "expected the name of an option"),
        ("iou(threshold=)", "expected a value"),
        ("iou(a=[1,2)", r"expected ',' or '\]'"),
        ("iou format", "expected ',' or the end at character 5, found 'format'"),
        ("iou(a=1))", "expected ',' or the end"),
        ("iou,iou(threshold=0.5)", "names 'iou' twice"),
        ("__import__('os')", "expected"),
    ],
)
def test_a_wrong_spec_names_the_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_reward_spec(text)


@given(st.text(st.sampled_from("ab1.-=,()[] /\"'\u00a0"), max_size=30))
def test_any_spec_is_read_or_refused(text: str) -> None:
    try:
        parsed = parse_reward_spec(text)
    except ConfigError:
        return
    assert parsed
    assert parse_reward_spec(f" {text} ") == parsed


# Scoring a file


def test_lines_come_in_input_order_with_the_records_ids(tmp_path: Path) -> None:
    other = GROUNDING | {"id": 7, "completion": "<answer>[0, 0, 1000, 1000]</answer>"}
    question = {"completion": "<think></think><answer>Red.</answer>", "target": {"answer": "red"}}
    question |= {"images": GROUNDING["images"], "box_frame": "relative_1000"}
    path = write(tmp_path, GROUNDING, "", other, question)
    lines = score(path, "iou,format,exact")
    assert lines == [
        {"id": "grounding/0/1", "rewards": {"iou": 1.0, "format": 1.0, "exact": None}},
        {"id": 7, "rewards": {"iou": 0.125, "format": 0.0, "exact": None}},
        {"id": f"{path}:4", "rewards": {"iou": None, "format": 1.0, "exact": 1.0}},
    ]
    assert score(path, "iou,format,exact") == lines
    assert [line["rewards"] for line in score(path, "iou(threshold=0.5)")] == [
        {"iou": 1.0},
        {"iou": 0.0},
        {"iou": None},
    ]


def test_only_what_the_rewards_need_must_be_there(tmp_path: Path) -> None:
    bare = write(tmp_path, {"id": "a", "completion": GROUNDING["completion"]})
    assert score(bare, "format(tags=[think,answer])") == [{"id": "a", "rewards": {"format": 1.0}}]
    lean = GROUNDING | {"images": [{"original_size": [400, 200]}]}
    assert score(write(tmp_path, lean), "iou")[0]["rewards"] == {"iou": 1.0}


def test_the_answer_is_taken_from_the_completion_and_not_from_the_record(tmp_path: Path) -> None:
    record = GROUNDING | {"completion": "<think>?</think>", "answer": "[100, 100, 350, 600]"}
    assert score(write(tmp_path, record), "iou")[0]["rewards"] == {"iou": 0.0}


def test_what_a_run_writes_is_scored_as_in_the_run(tmp_path: Path) -> None:
    row = Row("r/1", ({"role": "user", "content": "where?"},), (), {"boxes": [[40, 20, 140, 120]]}, "grounding")
    text = "<answer>[98, 98, 343, 343]</answer>"
    rollout = Rollout(row, 3, (5, 6), text, "[98, 98, 343, 343]", 2, "length", (), "resized_px", 4)
    record = rollout_record(rollout, 4, [])
    record["images"] = [{"path": "x.png", "original_size": [400, 200], "model_size": [980, 980]}]
    again = rollout_from_record(record)
    assert again.geometry == (ImageGeometry((400, 200), (980, 980), 14, 2),)
    assert (again.text, again.answer, again.box_frame) == (text, rollout.answer, "resized_px")
    assert (again.group, again.step, again.num_tokens, again.stop_reason) == (3, 4, 2, "length")
    assert (again.row.id, again.row.dataset, again.row.target) == ("r/1", "grounding", row.target)
    assert score(write(tmp_path, record), "iou")[0]["rewards"]["iou"] == pytest.approx(0.5)


def without(*names: str, **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in GROUNDING.items() if key not in names} | changes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (without("completion"), "'completion' is missing"),
        (without(completion=3), "'completion' must be a text"),
        (without("target"), "'target' is missing"),
        (without(target=[1]), "'target' must be an object"),
        (without("images"), "'images' is missing"),
        (without(images={}), "'images' must be a list"),
        (without(images=["a.png"]), r"'images\[0\]' must be an object"),
        (without(images=[{"path": "a.png"}]), r"'images\[0\]\.original_size' must be \[width, height\]"),
        (without(images=[{"original_size": [0, 5]}]), "original_size"),
        (without(images=[{"original_size": [4.5, 5]}]), "original_size"),
        (without(images=[{"original_size": "4x5"}]), "original_size"),
        (without(box_frame="resized_px", images=[{"original_size": [4, 5]}]), r"images\[0\]\.model_size"),
        (without("box_frame"), "'box_frame' is missing"),
        (without(box_frame="feet"), "'box_frame' must be one of original_px"),
        (without(group="one"), "'group' must be a whole number"),
        ("{not json", "not JSON"),
        ("[1, 2]", "a JSON list"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_record_is_named_with_file_and_line(tmp_path: Path, line: Any, message: str) -> None:
    path = write(tmp_path, GROUNDING, "", line)
    with pytest.raises(DataError, match=message) as caught:
        score(path, "iou")
    assert str(caught.value).startswith(f"{path}:3: ")


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="no such file"):
        score(str(tmp_path / name), "iou")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("iuo", "Did you mean 'iou'"),
        ("iou(treshold=1)", r"reward\.iou\.treshold: no such option\. Did you mean 'threshold'"),
        ("iou(threshold=2)", r"reward\.iou\.threshold=2"),
        ("max_failure_share", "setting of a run"),
        ("files", "setting of a run"),
    ],
)
def test_a_wrong_reward_is_refused_before_the_file_is_opened(tmp_path: Path, spec: str, message: str) -> None:
    with pytest.raises(MMReasonError, match=message) as caught:
        score(str(tmp_path / "missing.jsonl"), spec)
    assert caught.value.exit_code == 2


def test_failures_are_null_and_told_and_too_many_end_in_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = without(target={"boxes": [[1, 2, 3]]})
    path = write(tmp_path, *[GROUNDING] * 4, broken)
    assert [line["rewards"]["iou"] for line in score(path, "iou")] == [1.0, 1.0, 1.0, 1.0, None]
    told = capsys.readouterr().err
    assert "reward 'iou': 1 of 5 calls failed (exception)" in told
    assert "BoxError" in told
    stream = io.StringIO()
    with pytest.raises(RewardFailure, match="'iou' failed in 2 of 4 records"):
        score_file(write(tmp_path, GROUNDING, broken, broken, GROUNDING), "iou", stream)
    assert len(stream.getvalue().splitlines()) == 4


def test_nan_in_a_record_reads_as_null(tmp_path: Path) -> None:
    line = json.dumps(GROUNDING | {"advantage": float("nan")})
    assert "NaN" in line
    assert score(write(tmp_path, line), "iou")[0]["rewards"] == {"iou": 1.0}


def test_rewards_of_a_file(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from mmreason.scoring import reward\n\n"
        "@reward(range=(0, 1000))\ndef letters(completion: str) -> float:\n    return len(completion)\n"
    )
    path = write(tmp_path, {"id": 1, "completion": "four"})
    assert score(path, "letters", files=[str(mine)]) == [{"id": 1, "rewards": {"letters": 4.0}}]


def answered(answer: str, wanted: str, **fields: Any) -> dict[str, Any]:
    return {"completion": f"<think></think><answer>{answer}</answer>", "target": {"answer": wanted}} | fields


def test_group_rewards_see_the_group_of_the_record(tmp_path: Path) -> None:
    mine = tmp_path / "ranks.py"
    mine.write_text(
        "from mmreason.scoring import group_reward\n\n"
        "@group_reward()\ndef shorter_share(num_tokens: list[int]) -> list[float]:\n"
        "    return [sum(own < other for other in num_tokens) / len(num_tokens) for own in num_tokens]\n"
    )
    lengths = [(1, 0, 5), (1, 1, 7), (2, 0, 4), (1, 0, 9), (2, 0, 6), (1, 0, 7)]  # step, group, tokens
    records = [answered("a", "a", id="r", step=s, group=g, num_tokens=n) for s, g, n in lengths]
    lines = score(write(tmp_path, *records), "shorter_share", files=[str(mine)])
    assert [line["rewards"]["shorter_share"] for line in lines] == pytest.approx([2 / 3, 0.0, 0.5, 0.0, 0.0, 1 / 3])


def test_what_counts_as_correct_can_be_told(tmp_path: Path) -> None:
    path = write(tmp_path, answered("red", "red"), answered("blue", "red"))
    with pytest.raises(ConfigError, match="--correct 'exact > 0.5'"):
        score(path, "cosine_length")
    values = [line["rewards"] for line in score(path, "exact,cosine_length", correct="exact > 0.5")]
    assert [value["exact"] for value in values] == [1.0, 0.0]
    assert values[0]["cosine_length"] > 0.9
    assert values[1]["cosine_length"] < -0.9


def test_the_summary_shows_values_and_agreement_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = [True, True, False, True]
    records = [
        answered("red" if is_right else "blue", "red", rewards={"exact": float(is_right)}, reward=total)
        for is_right, total in zip(right, [1.0, 2.0, 0.0, 4.0], strict=True)
    ]
    boxes = {"completion": "?", "target": {"boxes": []}, "rewards": {"exact": None}, "reward": None}
    path = write(tmp_path, *records, boxes)
    assert score(path, "exact") == score(path, "exact", summary=True)
    told = capsys.readouterr()
    assert told.out == ""
    first, *bars, stored, total = told.err.splitlines()
    assert first == "exact: 4 values, mean 0.75, 0..1; 1 records without"
    assert [(bar.split()[0], bar.split()[-1], bar.count("█")) for bar in bars] == [("0", "1", 14), ("1", "3", 40)]
    assert stored == "  with the stored exact: Pearson 1.000, Spearman 1.000 (n = 4)"
    # By hand: 1, 1, 0, 1 against 1, 2, 0, 4.
    assert total == "  with the stored total: Pearson 0.683, Spearman 0.775 (n = 4)"


def test_the_summary_says_where_nothing_can_be_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = write(tmp_path, *[{"completion": "<answer>a</answer>"}] * 3)
    score(bare, "format", summary=True)
    assert capsys.readouterr().err.splitlines()[0] == "format: 3 values, all 0"
    told = write(tmp_path, *[{"completion": "a", "rewards": {"format": float(n)}} for n in range(3)])
    score(told, "format", summary=True)
    assert "no correlation, one of them does not vary (n = 3)" in capsys.readouterr().err
    numbers = [answered(str(number), "10") for number in range(10)]
    score(write(tmp_path, *numbers), "numeric(measure=mean_relative_accuracy)", summary=True)
    assert len(capsys.readouterr().err.splitlines()) > 5


# A new reward


def run(*words: str) -> int:
    return cli.main(list(words))


def test_a_new_reward_works_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("reward", "new", "overlap_of_words", "--out", "mine") == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "Wrote mine/overlap_of_words.py and mine/test_overlap_of_words.py. Next:"
    assert told[3].endswith("'reward.files=[mine/overlap_of_words.py]' reward.overlap_of_words.weight=1")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    command = [sys.executable, *shlex.split(told[1])[1:], "-p", "no:cacheprovider"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout
    assert "9 passed" in done.stdout
    assert run(*shlex.split(told[2])[1:]) == 0
    assert "overlap_of_words: all checks passed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("iou", "there is a reward 'iou' already"),
        ("json", "there is a Python module 'json' already"),
        ("files", "a setting of the section"),
        ("class", "a word of Python"),
        ("my-reward", "use a letter, then letters"),
        ("../up", "use a letter, then letters"),
    ],
)
def test_a_new_reward_with_a_bad_name_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    assert run("reward", "new", name, "--out", str(tmp_path)) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("existing", ["mine_too.py", "test_mine_too.py"])
def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str], existing: str) -> None:
    (tmp_path / existing).write_text("precious")
    assert run("reward", "new", "mine_too", "--out", str(tmp_path)) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(existing, "precious")]


# The check


def test_check_prints_a_table_and_what_failures_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "always.py"
    mine.write_text("from mmreason.scoring import reward\n\n@reward()\ndef always_one(completion):\n    return 1\n")
    assert run("reward", "check", "always_one,choice", "--files", str(mine)) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "always_one: 1 check failed" in told
    assert "│ tells completions apart │ FAIL │ one value, 1 │" in told
    assert "FAIL tells completions apart 1 for all" in told
    assert "Every completion has the same value." in told
    assert "choice: all checks passed" in told
    assert "1 of 2 rewards passed. Failed: always_one." in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["iuo"], "Did you mean 'iou'"),
        (["iou(treshold=1)"], "reward.iou.treshold: no such option"),
        (["combine"], "setting of a run"),
        (["iou", "--file", "nowhere.py"], "no such file"),
        ([], "NAME"),
    ],
)
def test_a_check_of_nothing_is_refused(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert run("reward", "check", *words) == 2
    assert message in capsys.readouterr().err


# The list


def test_the_list_names_every_reward_with_options_needs_and_source(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    list_rewards()
    printed = capsys.readouterr().out
    for word in (
        "iou",
        "format",
        "exact",
        "set_match",
        "threshold=0.0",
        "tags=[think,answer]",
        "0..1",
        "geometry",
    ):
        assert word in printed
    assert "arXiv 2504.07615" in printed


def test_the_list_tells_broken_plugins(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from mmreason.scoring import REWARDS

    REWARDS.names()
    monkeypatch.setitem(REWARDS.broken, "half_done", "ImportError: no module named [torch]")
    list_rewards()
    assert "half_done: ImportError: no module named [torch]" in " ".join(capsys.readouterr().out.split())
