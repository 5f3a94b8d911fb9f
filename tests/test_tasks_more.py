"""The tasks counting, image_quality, time_series and random_calculation: exact, seeded, and not to be fooled."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmreason.boxes import Frame
from mmreason.config.compose import compose
from mmreason.config.schema import RewardConfig, TaskConfig
from mmreason.data.base import TASKS, build_task
from mmreason.data.image_quality import DISTORTIONS, distort, score_of
from mmreason.data.pictures import PICTURES
from mmreason.data.preview import write_contact_sheet
from mmreason.data.random_calculation import Atom, Operation, split_of, value, write_latex
from mmreason.data.time_series import CLASSES, draw_series, plot
from mmreason.errors import ConfigError
from mmreason.rank_correlation import correlate, score_correlations
from mmreason.records import ImageGeometry, Rollout, Row
from mmreason.rescoring import rollout_from_record
from mmreason.run_records import rollout_record
from mmreason.scoring import RewardRunner
from mmreason.text import extract_answer, split_tags

NAMES = ["counting", "image_quality", "random_calculation", "time_series"]
indices, difficulties = st.integers(0, 10**6), st.integers(0, 3)


def geometry_of(row: Row) -> tuple[ImageGeometry, ...]:
    return tuple(ImageGeometry(image.size, (112, 112), 14, 2) for image in row.images if not isinstance(image, str))


def question_of(row: Row) -> str:
    return str(row.messages[0]["content"][-1]["text"])


def content_of(row: Row) -> tuple[Any, ...]:
    pictures = [image.tobytes() for image in row.images if not isinstance(image, str)]
    return row.id, row.messages, dict(row.target), pictures


# ---------------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_seeded_and_their_splits_differ(name: str) -> None:
    one, two = build_task(TaskConfig(name=name), 3), build_task(TaskConfig(name=name), 3)
    for index in (0, 17):
        assert content_of(one.row(index)) == content_of(two.row(index))
        assert content_of(one.row(index, "held_out")) == content_of(two.row(index, "held_out"))
    assert TASKS.get(name).metric in ("exact", "numeric")

    def contents(seed: int, split: str) -> set[str]:
        rows = [build_task(TaskConfig(name=name), seed).row(i, split) for i in range(60)]  # type: ignore[arg-type]
        return {str(content_of(row)[3] or question_of(row)) for row in rows}

    assert not contents(3, "train") & contents(3, "held_out")
    assert contents(3, "train") != contents(4, "train")


@given(
    index=indices, difficulty=difficulties, name=st.sampled_from(NAMES), split=st.sampled_from(["train", "held_out"])
)
@settings(max_examples=120, deadline=None)
def test_every_style_ends_with_the_target(index: int, difficulty: int, name: str, split: Any) -> None:
    task = build_task(TaskConfig(name=name, difficulty=difficulty), 0)
    for style in task.styles:
        row = task.example(index, style, split)
        text = task.trace(row, style, geometry_of(row), Frame.resized_px)
        assert extract_answer(text) == str(row.target["answer"])
        assert ("<think></think>" in text) == (style == "direct")


@cache
def rewards_of(name: str) -> RewardConfig:
    """What `conf/reward/NAME.yaml` says."""
    return compose("train", [f"task={name}"]).config.reward


def scored(name: str, row: Row, texts: list[str]) -> list[float]:
    """Totals of several completions of one row under the rewards of its task."""
    rollouts = [Rollout(row, 0, (), text, extract_answer(text), 0, "stop", (), "resized_px") for text in texts]
    table = RewardRunner(rewards_of(name)).score(rollouts)
    assert not table.failures
    return [float(total) for total in table.total]


def form(name: str, answer: str, thinking: str = "") -> str:
    tag = "class" if name == "time_series" else "answer"
    return f"<think>{thinking}</think><{tag}>{answer}</{tag}>"


#: Every answer that the task knows.
CANDIDATES: dict[str, list[str]] = {
    "counting": [str(n) for n in range(25)],
    "image_quality": ["1.00", "2.00", "3.00", "4.00", "5.00"],
    "random_calculation": [str(n) for n in range(-9, 82)],
    "time_series": list(CLASSES),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("difficulty", [0, 1, 3])
def test_the_rewards_cannot_be_fooled(name: str, difficulty: int) -> None:
    task = build_task(TaskConfig(name=name, difficulty=difficulty), 0)
    for index in range(12):
        row = task.row(index)
        right = str(row.target["answer"])
        best = scored(name, row, [task.trace(row, style, geometry_of(row), Frame.resized_px) for style in task.styles])
        assert best == pytest.approx([best[0]] * len(best))
        assert best[0] == pytest.approx({"time_series": 1.0}.get(name, 1.2))
        form_alone = 0.1 if name == "time_series" else 0.2
        listed = ", ".join(dict.fromkeys([*CANDIDATES[name], right]))
        nothing = [
            form(name, ""),
            form(name, listed),
            form(name, f"{right} {right}"),
            form(name, "nan"),
            form(name, "", thinking=right),
            form(name, question_of(row)),
        ]
        assert max(scored(name, row, nothing)) <= form_alone + 1e-9
        block = form(name, right).removeprefix("<think></think>")
        outside = [right, "", f"<think>{block}</think>", f"<think>{block}", f"<think>{right}</think>"]
        assert max(scored(name, row, outside)) == 0.0
        wrong = [text for text in CANDIDATES[name] if abs(as_number(text) - as_number(right)) > 0.2]
        assert max(scored(name, row, [form(name, text) for text in wrong])) < best[0] - 0.01


def as_number(text: str) -> float:
    return float(Fraction(text)) if text not in CLASSES else float(list(CLASSES).index(text))


@pytest.mark.parametrize("name", NAMES)
def test_wrong_options_and_styles_are_explained(name: str) -> None:
    task = build_task(TaskConfig(name=name))
    row = task.row(0)
    with pytest.raises(ConfigError, match="no answer style 'shout'"):
        task.trace(row, "shout", geometry_of(row), Frame.resized_px)
    wrong: dict[str, list[tuple[dict[str, Any], str]]] = {
        "counting": [({"objects": [0, 3]}, "1 <= least"), ({"objects": [3, 25]}, "most <= 24")],
        "image_quality": [({"distortions": []}, "at least one"), ({"distortions": ["fog"]}, "distortions")],
        "random_calculation": [({"steps": [3, 2]}, "least <= most"), ({"steps": [0, 21]}, "most <= 20")],
        "time_series": [({"classes": ["rise", "dive"]}, "unknown dive"), ({"classes": ["rise"]}, "at least two")],
    }
    sizes = [({"side_px": [20, 30]}, "side_px")] if row.images else []
    for options, said in [
        *wrong[name],
        *sizes,
        ({"difficulty": 4}, "difficulty=4"),
        ({"dificulty": 1}, "Did you mean"),
    ]:
        with pytest.raises(ConfigError, match=said):
            build_task(TaskConfig(name=name, **options))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("difficulty", [0, 3])
def test_contact_sheets(name: str, difficulty: int, tmp_path: Path) -> None:
    path = write_contact_sheet(name, tmp_path / "sheet.png", count=6, options={"difficulty": difficulty})
    with Image.open(path) as sheet:
        assert len(sheet.convert("RGB").getcolors(10**7) or []) > 100


@pytest.mark.parametrize("name", NAMES)
def test_each_trains_and_saves_a_model(name: str, make_config: Callable[..., Any]) -> None:
    from mmreason.run_records import read_rollouts
    from mmreason.train.run import run_train

    task = TASKS.get(name)
    reward = {task.metric: dict(task.metric_options), "format": dict(task.format_options)}
    config = make_config(
        task={"name": name}, reward=reward, rollout={"max_new_tokens": 4}, trainer={"steps": 1, "eval_rows": 2}
    )
    summary = run_train(config, config.model_dump(mode="json"))
    assert summary["steps"] == 1
    assert set(summary["after"]) >= {task.metric, "format", "accuracy"}
    records = list(read_rollouts(Path(summary["run_dir"]) / "rollouts.jsonl"))
    assert len(records) == 8
    assert all(bool(record["images"]) == (name != "random_calculation") for record in records)


def test_all_styles_are_learned_from_together(random_model: Callable[[str], str]) -> None:
    from mmreason.config.schema import ModelConfig, SftPhase
    from mmreason.policy.policy import Policy
    from mmreason.train.demonstrations import IGNORE, Collator, MixtureDataset

    policy = Policy.load(ModelConfig(name=random_model("qwen2_5_vl"), max_pixels=12544), device="cpu")
    mixture = {f"{name}/{style}": 1.0 for name in NAMES for style in TASKS.get(name).styles}
    data = MixtureDataset(policy, [SftPhase(steps=3, mixture=mixture)], batch_size=8, seed=0)
    batch = Collator(policy)([data[index] for index in range(24)])
    loss = policy.model(**batch).loss
    assert math.isfinite(loss.item())
    labels = batch["labels"][batch["labels"] != IGNORE]
    assert "<class>" in policy.tokenizer.decode(labels)


# ---------------------------------------------------------------------- counting


@given(index=indices, difficulty=difficulties)
@settings(max_examples=80, deadline=None)
def test_counts_are_those_of_the_picture(index: int, difficulty: int) -> None:
    task = build_task(TaskConfig(name="counting", difficulty=difficulty), 0)
    row = task.row(index)
    objects = row.columns["objects"]
    low, high = task.options.count_range  # type: ignore[attr-defined]
    assert low <= len(objects) <= high
    words = question_of(row).removeprefix("How many ").removesuffix(" are there?").split()
    singular = {"crosses": "cross"}.get(words[-1], words[-1].removesuffix("s"))
    found = [
        item
        for item in objects
        if (words[-1] == "objects" or item.shape == singular) and (len(words) == 1 or item.color == words[0])
    ]
    assert row.target == {"answer": str(len(found))}
    image = row.images[0]
    assert isinstance(image, Image.Image)
    for item in objects:
        x1, y1, x2, y2 = item.box
        assert 0 <= x1 < x2 <= image.width
        assert 0 <= y1 < y2 <= image.height
        assert min(x2 - x1, y2 - y1) > 2


def test_overlap_is_bounded_by_the_dial_and_used_by_it() -> None:
    def hidden(difficulty: int, **options: Any) -> list[float]:
        """For each object, the share of its box that all other boxes cover."""
        shares = []
        task = build_task(TaskConfig(name="counting", difficulty=difficulty, **options), 0)
        for index in range(12):
            row = task.row(index)
            image = row.images[0]
            assert isinstance(image, Image.Image)
            cover = np.zeros((image.height * 4, image.width * 4), int)
            boxes = [tuple(round(4 * v) for v in item.box) for item in row.columns["objects"]]
            for x1, y1, x2, y2 in boxes:
                cover[y1:y2, x1:x2] += 1
            shares += [float((cover[y1:y2, x1:x2] > 1).mean()) for x1, y1, x2, y2 in boxes]
        return shares

    assert max(hidden(0) + hidden(1)) == 0.0
    assert 0.2 < max(hidden(3)) <= 0.35 + 0.05  # rounded to quarter pixels
    assert max(hidden(3, max_overlap=0.0)) == 0.0


def test_large_numbers_come_up() -> None:
    task = build_task(TaskConfig(name="counting", objects=[24, 24]), 0)
    assert all(len(task.row(index).columns["objects"]) == 24 for index in range(5))
    answers = [
        int(build_task(TaskConfig(name="counting", difficulty=3), 0).row(i).target["answer"]) for i in range(200)
    ]
    assert max(answers) >= 20
    assert 0 in answers


# ---------------------------------------------------------------------- random calculation


def read_latex(text: str) -> Fraction:
    """The value of the text by the usual rules of precedence; knows nothing of how it was made."""
    tokens = re.findall(r"\\frac\{(\d+)\}\{(\d+)\}|(\d+)\^(\d)|(\d+)|(\\times|\\div|[-+()])", text)
    assert "".join("".join(token) for token in tokens) == re.sub(r"\\frac|[{}^ ]", "", text)
    position = 0

    def peek() -> str:
        return tokens[position][5] if position < len(tokens) else ""

    def atom() -> Fraction:
        nonlocal position
        above, below, base, power, whole, mark = tokens[position]
        position += 1
        if mark == "(":
            inner = total()
            assert peek() == ")"
            position += 1
            return inner
        assert mark == ""
        return Fraction(int(above), int(below)) if above else Fraction(int(base) ** int(power) if base else int(whole))

    def product() -> Fraction:
        nonlocal position
        result = atom()
        while peek() in ("\\times", "\\div"):
            times = peek() == "\\times"
            position += 1
            other = atom()
            result = result * other if times else result / other
        return result

    def total() -> Fraction:
        nonlocal position
        result = product()
        while peek() in ("+", "-"):
            plus = peek() == "+"
            position += 1
            other = product()
            result = result + other if plus else result - other
        return result

    result = total()
    assert position == len(tokens)
    return result


@given(index=indices, steps=st.integers(0, 20), atoms=st.sampled_from(["small", "all"]))
@settings(max_examples=200, deadline=None)
def test_the_text_says_what_the_target_is(index: int, steps: int, atoms: str) -> None:
    row = build_task(TaskConfig(name="random_calculation", steps=[steps, steps], atoms=atoms), 0).row(index)
    text = question_of(row).removeprefix("How much is $").removesuffix("$?")
    assert str(read_latex(text)) == row.target["answer"]
    assert len(re.findall(r"\\times|\\div|[+-]", text)) == steps == row.columns["steps"]
    assert row.images == ()


@given(index=indices, difficulty=difficulties)
@settings(max_examples=60, deadline=None)
def test_every_worked_step_is_true(index: int, difficulty: int) -> None:
    task = build_task(TaskConfig(name="random_calculation", difficulty=difficulty), 0)
    row = task.row(index)
    thinking = split_tags(task.trace(row, "look", (), Frame.resized_px))[0][1]
    steps = [step for step in thinking.split(", ") if step]
    assert len(steps) == row.columns["steps"]
    for step in steps:
        match = re.fullmatch(r"\(?(-?[\d/]+)\)? ([-+*/]) \(?(-?[\d/]+)\)? = (-?[\d/]+)", step)
        assert match is not None, step
        a, b, result = (Fraction(match[number]) for number in (1, 3, 4))
        operations = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}
        assert operations[match[2]] == result


def test_no_expression_is_in_both_splits_however_short() -> None:
    task = build_task(TaskConfig(name="random_calculation", difficulty=0), 0)
    train = {question_of(task.row(index)) for index in range(3000)}
    held_out = {question_of(task.row(index, "held_out")) for index in range(1000)}
    assert len(train) > 250  # of about 390: nearly all that there are
    assert len(held_out) > 50
    assert not train & held_out
    other_seed = build_task(TaskConfig(name="random_calculation", difficulty=0), 1)
    assert not train & {question_of(other_seed.row(index, "held_out")) for index in range(300)}
    assert {split_of(f"{a} + {b}") for a in range(10) for b in range(10)} == {"train", "held_out"}


def test_parentheses_where_the_value_needs_them() -> None:
    one, two, three = (Atom(str(n), str(n), Fraction(n)) for n in (1, 2, 3))
    cases: list[tuple[Operation, str, Fraction]] = [
        (Operation("-", one, Operation("-", two, three)), "1 - (2 - 3)", Fraction(2)),
        (Operation("-", Operation("-", one, two), three), "1 - 2 - 3", Fraction(-4)),
        (Operation("/", one, Operation("*", two, three)), r"1 \div (2 \times 3)", Fraction(1, 6)),
        (Operation("*", Operation("+", one, two), three), r"(1 + 2) \times 3", Fraction(9)),
        (Operation("+", one, Operation("*", two, three)), r"1 + 2 \times 3", Fraction(7)),
    ]
    for expression, text, number in cases:
        assert write_latex(expression) == text
        assert value(expression) == number == read_latex(text)
    with pytest.raises(ZeroDivisionError):
        value(Operation("/", one, Operation("-", two, two)))


def test_nearness_is_paid_for_by_the_papers_formula() -> None:
    row = Row("r", (), (), {"answer": "10"}, "random_calculation")
    told = {"10": 1.0, "10.5": 0.725, "11": 0.45, "100": 0.0, "20/2": 1.0}
    totals = scored("random_calculation", row, [form("random_calculation", text) for text in told])
    assert [total - 0.2 for total in totals] == pytest.approx(list(told.values()), abs=1e-6)


# ---------------------------------------------------------------------- image quality


@pytest.mark.parametrize("kind", DISTORTIONS)
def test_stronger_distortion_means_more_damage_on_every_picture(kind: Any) -> None:
    for number, make in enumerate(PICTURES.values()):
        image = make(np.random.default_rng(number), 112, 100)
        clean = np.asarray(image, float)
        damage = [
            np.abs(np.asarray(distort(image, kind, grade / 20, np.random.default_rng(1)), float) - clean).mean()
            for grade in range(21)
        ]
        assert damage[0] == 0.0
        assert (np.diff(damage) > 0).all()
        assert damage[20] > 2 * damage[2]


@given(index=indices, difficulty=difficulties)
@settings(max_examples=60, deadline=None)
def test_scores_follow_the_strengths(index: int, difficulty: int) -> None:
    task = build_task(TaskConfig(name="image_quality", difficulty=difficulty), 0)
    row = task.row(index)
    strengths = row.columns["distortions"]
    assert 1.0 <= row.target["score"] <= 5.0
    assert row.target["answer"] == f"{row.target['score']:.2f}"
    assert row.target["score"] == pytest.approx(1 + 4 * math.prod(1 - s for s in strengths.values()), abs=0.005)
    assert len(strengths) <= (2 if difficulty == 3 else 1)
    assert set(strengths) <= set(task.options.kinds)  # type: ignore[attr-defined]


def test_scores_are_golden_and_worse_for_more() -> None:
    assert score_of({}) == score_of({"blur": 0.0}) == 5.0
    assert score_of({"blur": 1.0}) == score_of({"blur": 1.0, "noise": 0.5}) == 1.0
    assert score_of({"blur": 0.25}) == 4.0
    assert score_of({"blur": 0.5, "noise": 0.5}) == 2.0


@given(seed=st.integers(0, 999), name=st.sampled_from(sorted(PICTURES)), sides=st.tuples(*[st.integers(84, 140)] * 2))
@settings(max_examples=30, deadline=None)
def test_undistorted_pictures_have_the_asked_size_and_the_full_range(
    seed: int, name: str, sides: tuple[int, int]
) -> None:
    image = PICTURES[name](np.random.default_rng(seed), *sides)
    assert image.size == sides
    assert image.mode == "RGB"
    assert image.getextrema() != ((0, 0), (0, 0), (0, 0))
    pixels = np.asarray(image, float)
    assert np.quantile(pixels, 0.98) - np.quantile(pixels, 0.02) > 120
    # Fine detail: blurring by one pixel is seen.
    assert np.abs(np.diff(pixels, axis=1)).mean() > 1.5


def test_data_sets_are_named_by_picture_on_request() -> None:
    rows = [build_task(TaskConfig(name="image_quality", datasets="by_picture"), 0).row(i) for i in range(40)]
    assert {row.dataset for row in rows} == {f"image_quality/{row.columns['picture']}" for row in rows}
    assert len({row.dataset for row in rows}) == 3
    assert build_task(TaskConfig(name="image_quality"), 0).row(0).dataset == "image_quality"


def test_correlations_are_golden() -> None:
    perfect = correlate([1, 2, 3, 4], [1, 4, 9, 16])
    assert perfect.srcc == pytest.approx(1.0)
    # r = cov / sd sd = 6.25 / sqrt(1.25 * 32.25)
    assert perfect.plcc == pytest.approx(6.25 / math.sqrt(1.25 * 32.25))
    # Ranks 1..4 against 2, 1, 4, 3: 1 - 6 * 4 / (4 * 15).
    assert correlate([1, 2, 3, 4], [2, 1, 4, 3]).srcc == pytest.approx(0.6)
    some = correlate([1, math.nan, 3], [3, 9, 1])
    assert (some.srcc, some.n, some.unread) == (pytest.approx(-1.0), 2, 1)
    for given_scores in ([], [2.0], [2.0, 2.0]):
        empty = correlate(given_scores, list(range(len(given_scores))))
        assert math.isnan(empty.srcc)
        assert math.isnan(empty.plcc)
        assert empty.n == len(given_scores)
    with pytest.raises(ValueError, match="as many of each"):
        correlate([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="finite"):
        correlate([1.0], [math.nan])


@given(st.lists(st.tuples(st.floats(-9, 9), st.integers(1, 5)), min_size=2, max_size=20))
@settings(max_examples=60, deadline=None)
def test_correlations_do_not_depend_on_order_and_stay_in_range(pairs: list[tuple[float, int]]) -> None:
    first, backwards = (correlate(*zip(*items, strict=True)) for items in (pairs, pairs[::-1]))
    if not math.isnan(first.srcc):
        assert -1 - 1e-9 <= first.srcc <= 1 + 1e-9
        assert first.srcc == pytest.approx(backwards.srcc)


def test_correlations_of_an_evaluation_stay_inside_a_data_set_and_survive_the_disk() -> None:
    rollouts = []
    for name, shift in (("a", 0.0), ("b", 3.0)):
        for index, score in enumerate((1.0, 2.0, 2.5)):
            text = f"<think></think><answer>{score + shift if name == 'a' else 9 - score}</answer>"
            row = Row(f"{name}/{index}", (), (), {"score": score, "answer": str(score)}, name)
            rollouts.append(Rollout(row, 0, (), text, extract_answer(text), 1, "stop", (), "resized_px"))
    silent = Row("a/9", (), (), {"score": 4.0}, "a")
    rollouts.append(Rollout(silent, 0, (), "no idea", None, 1, "stop", (), "resized_px"))
    rollouts.append(Rollout(Row("q", (), (), {"answer": "5"}), 0, (), "5", "5", 1, "stop", (), "resized_px"))
    found = score_correlations(rollouts)
    assert set(found) == {"a", "b"}
    assert (found["a"].srcc, found["a"].n, found["a"].unread) == (pytest.approx(1.0), 3, 1)
    assert found["b"].srcc == pytest.approx(-1.0)
    assert score_correlations(rollout_from_record(rollout_record(item, 1, [])) for item in rollouts) == found


# ---------------------------------------------------------------------- time series


def course_of(heights: np.ndarray[Any, Any]) -> str:
    """The class of a series without noise, told from its numbers alone."""
    change = np.diff(heights)
    if np.ptp(heights) < 1e-9:
        return "flat"
    if (change >= 0).all() or (change <= 0).all():
        if np.abs(change).max() > 0.5 * np.ptp(heights):
            return "step"
        return "rise" if change.sum() > 0 else "fall"
    ends = abs(heights[0] - heights[-1]) < 0.02
    middle = heights[len(heights) // 2]
    if ends and np.mean(np.abs(heights - heights[0]) < 0.1 * np.ptp(heights)) > 0.7:
        return "spike"
    turns = int((np.diff(np.sign(change[np.abs(change) > 1e-9])) != 0).sum())
    if turns == 1 and ends and middle > heights[0]:
        return "hill"
    half = len(heights) // 2
    return "fading" if np.ptp(heights[-half:]) < 0.45 * np.ptp(heights[:half]) else "wave"


@given(seed=st.integers(0, 10**6), name=st.sampled_from(sorted(CLASSES)))
@settings(max_examples=150, deadline=None)
def test_a_series_has_the_course_of_its_class_and_of_no_other(seed: int, name: str) -> None:
    time, heights = draw_series(np.random.default_rng(seed), name, 0.0)
    assert course_of(heights) == name
    assert ((heights >= 0) & (heights <= 1)).all()
    assert len(time) == len(heights) >= 60
    if name != "flat":
        assert 0.5499 < np.ptp(heights) < 0.7501


@given(index=indices, difficulty=difficulties)
@settings(max_examples=60, deadline=None)
def test_the_question_lists_the_classes_and_the_answer_is_one(index: int, difficulty: int) -> None:
    task = build_task(TaskConfig(name="time_series", difficulty=difficulty), 0)
    row = task.row(index)
    listed = question_of(row).removeprefix("Which class is it: ").removesuffix("?").split(", ")
    assert listed == row.target["choices"]
    assert sorted(listed) == sorted(task.options.names)  # type: ignore[attr-defined]
    assert row.target["answer"] in listed


def test_no_place_in_the_list_is_likelier_than_another() -> None:
    task = build_task(TaskConfig(name="time_series"), 0)
    places = [row.target["choices"].index(row.target["answer"]) for row in map(task.row, range(300))]
    assert np.bincount(places, minlength=6).min() > 25


def test_the_line_is_where_the_numbers_are() -> None:
    time = np.linspace(0.0, 1.0, 80)
    for heights in (time, 1.0 - time, np.full(80, 0.5)):
        image = plot(np.random.default_rng(0), time, heights, 120, 100, plain=True)
        pixels = np.asarray(image, float)
        coloured = np.ptp(pixels, axis=2) > 60
        # The plot's inside runs from 12 to 116 px and from 4 to 88 px.
        for share in (0.2, 0.5, 0.8):
            column = coloured[:, round(12 + share * 104)]
            assert column.any()
            expected = 88 - 84 * float(np.interp(share, time, heights))
            assert abs(np.flatnonzero(column).mean() - expected) < 2.0


def test_the_extension_is_asked_for_and_given_on_request() -> None:
    task = build_task(TaskConfig(name="time_series", extension=True), 0)
    row = task.row(0)
    text = task.trace(row, "direct", geometry_of(row), Frame.resized_px)
    assert question_of(row).endswith("What is next?")
    assert extract_answer(text) == row.target["answer"]
    config = compose("train", ["task=time_series", "reward.format.tags=[think,class,extension]"]).config
    rollout = Rollout(row, 0, (), text, extract_answer(text), 0, "stop", (), "resized_px")
    assert RewardRunner(config.reward).score([rollout]).total[0] == pytest.approx(1.0)
    # Without the block that is asked for, only the class is paid for.
    short = text[: text.index("<extension>")]
    rollout = Rollout(row, 0, (), short, extract_answer(short), 0, "stop", (), "resized_px")
    assert RewardRunner(config.reward).score([rollout]).total[0] == pytest.approx(0.9)


# ---------------------------------------------------------------------- the class as the answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>a</think><class> wave </class><extension>b</extension>", "wave"),
        ("<class>a</class><class>b</class>", "b"),
        ("<think><class>a</class></think>", None),
        ("<think><class>a</class>", None),
        ("a</think><class>b</class>", "b"),
        ("<class>a", None),
        ("<class>a<class>b</class>", "b"),
        ("<class>a<think>b</think></class>", None),
        # An answer block comes first, wherever it stands and whatever it holds.
        ("<class>a</class><answer>b</answer>", "b"),
        ("<answer>b</answer><class>a</class>", "b"),
        ("<answer>the <class> of </class> it</answer>", "the <class> of </class> it"),
        ("the <class> of <answer>b</answer>", "b"),
        ("<answer><class>a</class>", "a"),
    ],
)
def test_a_class_block_is_the_answer_where_there_is_no_other(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@given(
    st.lists(st.sampled_from(["<answer>", "</answer>", "<think>", "</think>", "<class>", "</class>", "x"]), max_size=12)
)
@settings(max_examples=300, deadline=None)
def test_classes_are_read_by_the_rules_of_answers(pieces: list[str]) -> None:
    text = "".join(pieces)
    alone = text.replace("<answer>", "").replace("</answer>", "")
    renamed = alone.replace("class>", "answer>")
    assert extract_answer(alone) == extract_answer(renamed)
    without = text.replace("<class>", "").replace("</class>", "")
    if extract_answer(without) is not None:
        found = extract_answer(text)
        assert found is not None
        assert re.sub(r"</?class>", "", found) == extract_answer(without)


def test_a_saved_rollout_keeps_its_class() -> None:
    row = build_task(TaskConfig(name="time_series"), 0).row(0)
    text = f"<think></think><class>{row.target['answer']}</class>"
    rollout = Rollout(row, 0, (), text, extract_answer(text), 1, "stop", geometry_of(row), "resized_px")
    assert rollout_from_record(rollout_record(rollout, 1, ["a.png"])).answer == row.target["answer"]
