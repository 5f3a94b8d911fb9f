"""Rejection sampling: the filters one by one, rows that every reader takes back, killed runs that repeat nothing."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmreason.config.compose import compose, plain_dict
from mmreason.config.schema import CollectConfig, DataConfig, RunConfig
from mmreason.data.base import TASKS
from mmreason.data.pairs import read_pairs
from mmreason.data.readers import read_rows
from mmreason.errors import ConfigError, ResumeError
from mmreason.policy.policy import Policy
from mmreason.records import Rollout, Row
from mmreason.train.collect import Collector, Sampled, run_collect
from mmreason.train.collect_filters import Candidate, Filters, pass_rate

# ---------------------------------------------------------------------- filters


def candidate(
    text: str, correct: float = 1.0, tokens: int = 5, total: float = 1.0, finished: bool = True, **scores: float
) -> Candidate:
    return Candidate(text, tokens, finished, correct, {"total": total, **scores})


def kept(candidates: Sequence[Candidate], **options: Any) -> list[str]:
    selection = Filters(CollectConfig(**options)).select(candidates)
    assert len(selection.kept) + selection.dropped.total() == len(candidates)
    return [candidates[place].text for place in selection.kept]


def test_each_filter_drops_what_it_names() -> None:
    group = [
        candidate("wrong", correct=0.0),
        candidate("unknown", correct=math.nan),
        candidate("cut off", finished=False),
        candidate("<|im_end|> smuggled"),
        candidate("a  right answer", tokens=9, total=2.0),
        candidate("a right\nanswer", tokens=8),
        candidate("Wait, look again: right", tokens=7),
        candidate("right", tokens=6),
    ]
    selection = Filters(CollectConfig(max_per_row=2)).select(group)
    assert selection.kept == (4, 6)
    assert selection.dropped == {"not_correct": 2, "cut": 1, "control_text": 1, "duplicate": 1, "beyond_max": 1}
    assert kept(group, prefer="shortest") == ["right"]
    assert kept(group, prefer="highest") == ["a  right answer"]
    assert kept(group, max_per_row=9, drop_duplicates=False)[:2] == ["a  right answer", "a right\nanswer"]
    assert kept(group, reflective_only=True, max_per_row=9) == ["Wait, look again: right"]
    assert kept(group, correct_only=False, max_per_row=2) == ["wrong", "unknown"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Wait.", True),
        ("I WAIT here", True),
        ("waiter", False),
        ("await", False),
        ("so let me check it", True),
        ("", False),
    ],
)
def test_reflective_phrases_are_whole_words(text: str, found: bool) -> None:
    assert bool(kept([candidate(text)], reflective_only=True)) == found


@pytest.mark.parametrize(("right", "rows"), [(1, 0), (2, 1), (3, 1), (4, 0)])
def test_the_bounds_of_the_band_belong_to_it(right: int, rows: int) -> None:
    """SOPHIA's band before RL: shares of .4 and .6 are in."""
    group = [candidate(f"answer {n}", correct=float(n < right)) for n in range(5)]
    assert len(kept(group, min_pass_rate=0.4, max_pass_rate=0.6)) == rows


def test_pass_rate_band_keeps_or_drops_whole_rows() -> None:
    group = [candidate("a"), candidate("b", correct=0.0), candidate("c", correct=0.0), candidate("d", correct=math.nan)]
    assert pass_rate(group) == pytest.approx(1 / 3)
    assert kept(group, min_pass_rate=0.2, max_pass_rate=0.5) == ["a"]
    assert kept(group, min_pass_rate=0.4) == []
    assert kept(group, max_pass_rate=0.3) == []
    assert math.isnan(pass_rate([candidate("x", correct=math.nan)]))


def pairs(group: Sequence[Candidate], **options: Any) -> list[tuple[str, str]]:
    made = Filters(CollectConfig(pairs=True, **options)).select(group).pairs
    return [(group[chosen].text, group[rejected].text) for chosen, rejected in made]


def test_pairs_of_correct_and_wrong() -> None:
    group = [
        candidate("right, long", tokens=9),
        candidate("wrong", correct=0.0, tokens=4),
        candidate("right", tokens=3),
        candidate("wrong", correct=0.0, tokens=4),
        candidate("cut", correct=0.0, finished=False),
        candidate("bad", correct=0.0, tokens=6),
    ]
    assert pairs(group) == [("right, long", "wrong")]
    assert pairs(group, max_pairs_per_row=9) == [("right, long", "wrong"), ("right", "bad")]
    assert pairs(group, prefer="shortest") == [("right", "wrong")]
    assert pairs(group[1:2]) == []
    thoughtful = [*group, candidate("Wait, look again: right", tokens=9)]
    assert pairs(thoughtful, reflective_only=True) == [("Wait, look again: right", "wrong")]


def test_pairs_by_scores_follow_visrl() -> None:
    """max >= 0.8 and min <= 0.2; the first path with the best answer and a good box, the first with the worst and a bad one."""
    scores = ("answer", "box")
    group = [
        candidate("best, wrong box", answer=0.9, box=0.1),
        candidate("best", answer=0.9, box=0.8),
        candidate("worst, right box", answer=0.1, box=0.9),
        candidate("worst", answer=0.1, box=0.2),
        candidate("unscored", answer=math.nan, box=1.0),
    ]
    assert pairs(group, pair_by="scores", pair_scores=scores) == [("best", "worst")]
    assert pairs(group, pair_by="scores", pair_scores=scores[:1]) == [("best, wrong box", "worst, right box")]
    assert pairs(group[:2], pair_by="scores", pair_scores=scores) == []
    assert pairs(group, pair_by="scores", pair_scores=scores, chosen_min=0.95) == []
    assert pairs(group[:3], pair_by="scores", pair_scores=scores) == []
    edge = [candidate("good", answer=0.8, box=0.8), candidate("bad", answer=0.2, box=0.2)]
    assert pairs(edge, pair_by="scores", pair_scores=scores) == [("good", "bad")]
    assert pairs([edge[0], replace(edge[1], finished=False)], pair_by="scores", pair_scores=scores) == []


texts = st.text(st.sampled_from("ab <|imend>waitWAIT\n."), max_size=30)
numbers = st.floats(0, 1) | st.just(math.nan)


@given(
    st.lists(
        st.builds(candidate, texts, st.sampled_from([0.0, 1.0, math.nan]), st.integers(1, 9), numbers, st.booleans())
    ),
    st.sampled_from(["first", "shortest", "highest"]),
    st.sampled_from(["correct", "scores"]),
    st.integers(1, 4),
)
def test_whatever_the_completions_kept_ones_are_correct_whole_and_distinct(
    group: list[Candidate], prefer: str, pair_by: str, most: int
) -> None:
    options = CollectConfig(prefer=prefer, pairs=True, pair_by=pair_by, max_per_row=most)  # type: ignore[arg-type]
    selection = Filters(options).select(group)
    assert len(selection.kept) <= most
    assert len(selection.kept) + selection.dropped.total() == len(group)
    chosen = [group[place] for place in selection.kept]
    assert all(one.correct == 1.0 and one.finished for one in chosen)
    assert len({" ".join(one.text.split()) for one in chosen}) == len(chosen)
    for better, worse in selection.pairs:
        if pair_by == "correct":
            assert (group[better].correct, group[worse].correct) == (1.0, 0.0)
        else:
            assert group[better].scores["total"] >= 0.8 > 0.2 >= group[worse].scores["total"]


# ---------------------------------------------------------------------- the command


@pytest.fixture
def collecting(config_in: Callable[..., Any], tmp_path: Path) -> Callable[..., RunConfig]:
    """A collection in seconds: a random model, half of whose completions count as correct by their vowels."""

    def make(name: str = "collected", collect: dict[str, Any] | None = None, **sections: Any) -> RunConfig:
        sections.setdefault("reward", {})
        sections["reward"] = {"correct": "vowels > 0.25", **sections["reward"]}
        options = {
            "rows": 5,
            "samples_per_row": 4,
            "rows_at_once": 2,
            "pairs": True,
            "max_per_row": 2,
            **(collect or {}),
        }
        config: RunConfig = config_in(tmp_path, command="collect", name=name, collect=options, **sections)
        return config

    return make


@pytest.fixture(autouse=True)
def _every_completion_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model hardly ever ends its turn; here what it writes counts as finished."""
    whole = Policy.rollout

    def rollout(self: Policy, *args: Any, **kwargs: Any) -> Rollout:
        from dataclasses import replace

        made = whole(self, *args, **kwargs)
        return replace(made, stop_reason="stop")

    monkeypatch.setattr(Policy, "rollout", rollout)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_what_is_kept_is_read_back_and_counted(collecting: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = collecting()
    summary = run_collect(config, plain_dict(config))
    run = tmp_path / "collected"
    rollouts, rows = lines(run / "rollouts.jsonl"), lines(run / "rows.jsonl")
    assert len(rollouts) == summary["completions"] == 20
    assert summary["kept"] == len(rows) > 0
    assert summary["kept"] + sum(summary["dropped"].values()) == 20
    right = {(one["id"], one["completion"]) for one in rollouts if one["rewards"]["vowels"] > 0.25}
    assert summary["pass_rate"] == pytest.approx(sum(one["rewards"]["vowels"] > 0.25 for one in rollouts) / 20)
    assert {(row["id"].rpartition("#")[0], row["completion"]) for row in rows} <= right

    file = read_rows(DataConfig(path=str(run / "rows.jsonl")), full_check=True)
    assert [row.columns["completion"] for row in file.rows] == [row["completion"] for row in rows]
    assert {image for row in file.rows for image in row.images} <= {str(p) for p in (run / "images").iterdir()}
    made = read_pairs(DataConfig(path=str(run / "pairs.jsonl")))
    assert len(made.pairs) == summary["pairs"] > 0


def test_a_killed_run_goes_on_and_writes_what_an_undisturbed_one_would(
    collecting: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = collecting("whole")
    run_collect(whole, plain_dict(whole))

    sampled: list[int] = []
    sample = Collector.sample

    def killed_in_the_second_batch(
        self: Collector, rows: Sequence[Row], batch: int, first_group: int = 0
    ) -> list[Sampled]:
        if batch == 1 and 1 not in sampled:
            sampled.append(1)
            raise KeyboardInterrupt
        sampled.append(batch)
        return sample(self, rows, batch, first_group)

    monkeypatch.setattr(Collector, "sample", killed_in_the_second_batch)
    cut = collecting("cut")
    with pytest.raises(KeyboardInterrupt):
        run_collect(cut, plain_dict(cut))
    # A kill in the middle of writing leaves a torn line and lines that progress.json does not know of.
    with (tmp_path / "cut" / "rows.jsonl").open("a") as file:
        file.write('{"id": "grounding/train/0/2#0", "mess')
    with pytest.raises(ConfigError, match="not empty"):
        run_collect(cut, plain_dict(cut))
    again = cut.model_copy(update={"resume": "auto"})
    summary = run_collect(again, plain_dict(again))
    assert sampled == [0, 1, 1, 2]
    for name in ("rows.jsonl", "pairs.jsonl", "rollouts.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert summary["rows"] == 5

    sampled.clear()
    assert run_collect(again, plain_dict(again))["kept"] == summary["kept"]
    assert sampled == [], "a finished run samples nothing"
    other = collecting("cut", collect={"samples_per_row": 3}, resume="auto")
    with pytest.raises(ResumeError, match="samples_per_row: 4 in the checkpoint, 3 now"):
        run_collect(other, plain_dict(other))
    (tmp_path / "cut" / "rows.jsonl").write_text("")
    with pytest.raises(ResumeError, match="was changed since"):
        run_collect(again, plain_dict(again))


def test_rows_of_a_file_bring_their_pictures_along(collecting: Callable[..., RunConfig], tmp_path: Path) -> None:
    first = collecting("first", collect={"max_per_row": 1})
    run_collect(first, plain_dict(first))
    source = tmp_path / "first" / "rows.jsonl"
    data = {"path": str(source), "eval_share": 0.0}
    second = collecting("second", data=data, collect={"rows": None, "max_per_row": 1})
    summary = run_collect(second, plain_dict(second))
    assert summary["rows"] == len(lines(source))
    file = read_rows(DataConfig(path=str(tmp_path / "second" / "rows.jsonl")), full_check=True)
    assert file.rows
    for row in file.rows:
        assert all(str(tmp_path / "second") in str(image) for image in row.images)
    passed_over = collecting("third", data=data, collect={"rows": None, "first_row": 100})
    with pytest.raises(ConfigError, match=r"first_row=100"):
        run_collect(passed_over, plain_dict(passed_over))


def test_what_is_correct_must_be_known(collecting: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = collecting(reward={"correct": None})
    with pytest.raises(ConfigError, match=r"cannot tell what is correct: 'iou'"):
        run_collect(config, plain_dict(config))
    assert not (tmp_path / "collected").exists()


@pytest.mark.parametrize("task", ["grounding", "scene_qa", "multi_image_grounding", "referring", "random_calculation"])
def test_rows_of_every_kind_of_task_are_taken_back(
    task: str, collecting: Callable[..., RunConfig], tmp_path: Path
) -> None:
    assert task in {name for name, _ in TASKS}
    config = collecting(
        task={"name": task}, collect={"rows": 2, "correct_only": False, "pairs": False}, model={"max_pixels": 50176}
    )
    summary = run_collect(config, plain_dict(config))
    assert "row_cannot_be_written" not in summary["dropped"]
    assert len(read_rows(DataConfig(path=str(tmp_path / "collected" / "rows.jsonl"))).rows) == summary["kept"] == 4


def test_sampling_obeys_top_k(random_model: Callable[[str], str], collecting: Callable[..., RunConfig]) -> None:
    """top_k=1 is greedy at any temperature, with shared prompts and without."""
    for mode in ("auto", "off"):
        config = collecting(f"top-{mode}", policy={"prompt_once": mode}, rollout={"top_k": 1}, collect={"rows": 1})
        torch.manual_seed(0)
        run_collect(config, plain_dict(config))
        texts = {one["completion"] for one in lines(Path(config.out) / config.name / "rollouts.jsonl")}
        assert len(texts) == 1


def test_wrong_options_are_refused_before_torch() -> None:
    code = (
        "import sys; from mmreason.cli import main; "
        "code = main(['collect', 'collect.pairs=true', 'collect.pair_scores=[iuo]']); "
        "print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "2 False"
    assert "no reward 'iuo' in this run. Did you mean 'iou'?" in done.stderr
    for word, said in [
        ("collect.min_pass_rate=0.9 collect.max_pass_rate=0.1", "collect.min_pass_rate=0.9 is above"),
        ("collect.chosen_min=0.1", "collect.rejected_max=0.2 is above collect.chosen_min=0.1"),
        ("collect.reflective_phrases=['']", "empty phrase"),
        ("reward.iou=null reward.format=null", "no reward is active"),
    ]:
        with pytest.raises(ConfigError, match=said):
            compose("collect", word.split())
