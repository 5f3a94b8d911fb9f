"""The reward `maze_path` and the mazes it judges: golden values, ways that must fail, and a checker of another make as oracle."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tool_task_plans import ALL_FAMILIES, Played, geometry_of, made, play, score

import mmreason.rewards  # noqa: F401  registers them
from mmreason.boxes import Frame
from mmreason.data.maze_pictures import Cell, Maze, neighbours
from mmreason.errors import RewardFailure
from mmreason.policy.families import FAMILIES
from mmreason.records import ImageGeometry, Rollout, Row, Turn
from mmreason.reward_kit.check import check_reward
from mmreason.rewards.drawn_lines import continuous, crosses, passes

#: Two rooms of 100 × 50 px, joined by a gap at the right.
WALLS = [
    [0.0, 50.0, 80.0, 50.0],
    [0.0, 0.0, 100.0, 0.0],
    [100.0, 0.0, 100.0, 100.0],
    [0.0, 100.0, 100.0, 100.0],
    [0.0, 0.0, 0.0, 100.0],
]
WAY = [[10.0, 25.0], [50.0, 25.0], [90.0, 25.0], [90.0, 75.0], [50.0, 75.0], [10.0, 75.0]]
TARGET = {"maze": {"way": WAY, "walls": WALLS, "reach_px": 8.0}}
SEEN = ImageGeometry((100, 100), (200, 200), 14, 2)
Line = tuple[Sequence[float], Sequence[float]]
RIGHT: list[Line] = [((10, 25), (90, 25)), ((90, 25), (90, 75)), ((90, 75), (10, 75))]


def drawn(lines: Sequence[Line], *, frame: Frame = Frame.original_px, chained: bool = True) -> list[Turn]:
    """Turns that draw lines, each on the picture that the one before made, or all on the first."""
    factor = {Frame.original_px: 1.0, Frame.resized_px: 2.0, Frame.relative_1000: 10.0}[frame]
    return [
        Turn(
            "",
            "draw_line",
            {
                "image": f"img_{number if chained else 0}",
                "start": [v * factor for v in start],
                "end": [v * factor for v in end],
                "label": str(number),
            },
            num_images=1,
        )
        for number, (start, end) in enumerate(lines)
    ]


def judged(
    turns: Sequence[Turn], *, frame: Frame = Frame.original_px, target: Any = TARGET, **options: Any
) -> float | None:
    row = Row("row", (), (), target)
    rollout = Rollout(row, 0, (), "", None, 1, "stop", (SEEN,), frame.value, turns=tuple(turns))
    return score("maze_path", rollout, **options)


# ------------------------------------------------------------------------------------------------ golden values


@pytest.mark.parametrize("frame", [Frame.original_px, Frame.resized_px, Frame.relative_1000])
def test_a_whole_way_is_worth_one_in_every_frame(frame: Frame) -> None:
    assert judged(drawn(RIGHT, frame=frame), frame=frame) == 1.0


def test_ends_may_be_off_by_the_reach_and_no_more() -> None:
    assert judged(drawn([((16, 25), (85, 25)), ((90, 28), (90, 75)), ((90, 75), (16, 75))])) == 1.0
    assert judged(drawn([((19, 25), (90, 25)), *RIGHT[1:]])) == 0.0
    assert judged(drawn([*RIGHT[:2], ((90, 75), (19, 75))])) == 0.0
    assert judged(drawn([RIGHT[0], ((90, 34), (90, 75)), RIGHT[2]])) == 0.0


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ([], "nothing is drawn"),
        ([((10, 25), (10, 75))], "straight through the wall"),
        ([RIGHT[0], RIGHT[2]], "not continuous"),
        (RIGHT[1:], "does not begin at the start"),
        (RIGHT[:2], "does not arrive"),
        ([*reversed(RIGHT)], "begins at the goal"),
        ([(b, a) for a, b in RIGHT], "each line the wrong way round"),
        ([RIGHT[0], ((90, 25), (110, 25)), ((110, 25), (90, 75)), RIGHT[2]], "leaves the maze"),
        ([((10, 25), (60, 50)), ((60, 50), (10, 75))], "touches a wall"),
        ([((10 + 12, 25 + 12), (90 + 12, 25 + 12)), *RIGHT[1:]], "shifted"),
        ([*RIGHT, ((10, 75), (10, 25))], "goes on through the wall"),
    ],
)
def test_ways_that_are_worth_nothing(lines: list[Line], why: str) -> None:
    assert judged(drawn(lines)) == 0.0, why


def test_a_detour_is_no_harm() -> None:
    assert judged(drawn([RIGHT[0], ((90, 25), (90, 40)), ((90, 40), (90, 25)), *RIGHT[1:]])) == 1.0


def test_a_way_that_has_not_arrived_earns_its_share() -> None:
    assert judged(drawn(RIGHT[:1]), partial=0.5) == pytest.approx(0.5 * 2 / 5)
    assert judged(drawn(RIGHT[:2]), partial=0.5) == pytest.approx(0.5 * 3 / 5)
    assert judged(drawn([*RIGHT[:2], ((90, 75), (50, 75))]), partial=0.5) == pytest.approx(0.5 * 4 / 5)
    assert judged(drawn([((10, 25), (12, 25))]), partial=0.5) == 0.0
    assert judged(drawn([((10, 25), (10, 75))]), partial=0.5) == 0.0
    assert judged(drawn(RIGHT), partial=0.5) == 1.0


def test_the_last_picture_counts() -> None:
    """Lines that are each drawn on the empty maze are never seen together."""
    assert judged(drawn(RIGHT, chained=False)) == 0.0
    again = [*drawn([((10, 25), (10, 75))]), *drawn(RIGHT)]
    # img_1 is spoilt; the way is drawn again from img_0 on.
    renamed = [
        replace(turn, arguments={**turn.arguments, "image": "img_0" if number == 1 else f"img_{number}"})
        for number, turn in enumerate(again)
    ]
    assert judged(renamed) == 1.0


def test_the_same_label_moves_a_line() -> None:
    wrong = Turn("", "draw_line", {"image": "img_0", "start": [10, 25], "end": [10, 75], "label": "0"}, num_images=1)
    rest = [replace(t, arguments={**t.arguments, "image": f"img_{n + 1}"}) for n, t in enumerate(drawn(RIGHT))]
    assert judged([wrong, *rest]) == 1.0
    unnamed = [replace(wrong, arguments={**wrong.arguments, "label": ""}), *rest]
    assert judged(unnamed) == 0.0


def test_lines_on_a_crop_or_by_failed_calls_do_not_count() -> None:
    crop = Turn("", "crop", {"image": "img_0", "box": [0, 0, 50, 50]}, num_images=1)
    on_crop = [replace(t, arguments={**t.arguments, "image": f"img_{n + 1}"}) for n, t in enumerate(drawn(RIGHT))]
    assert judged([crop, *on_crop]) == 0.0
    assert judged([replace(turn, ok=False, num_images=0) for turn in drawn(RIGHT)]) == 0.0
    # A box drawn in between keeps the lines.
    one, two, three = drawn(RIGHT)
    box = Turn("", "draw_box", {"image": "img_2", "box": [1, 1, 9, 9], "label": "x"}, num_images=1)
    assert judged([one, two, box, replace(three, arguments={**three.arguments, "image": "img_3"})]) == 1.0
    # One under a line's label takes its place.
    over = replace(box, arguments={**box.arguments, "label": "0"})
    assert judged([one, two, over, replace(three, arguments={**three.arguments, "image": "img_3"})]) == 0.0


@given(
    arguments=st.dictionaries(
        st.sampled_from(["image", "start", "end", "label"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("img_0")
        | st.lists(st.integers() | st.floats() | st.text(max_size=3), max_size=3),
    )
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_whatever_is_written_fails_quietly(arguments: dict[str, Any]) -> None:
    assert judged([Turn("", "draw_line", arguments, num_images=1)]) == 0.0


@pytest.mark.parametrize(
    "maze",
    [
        "maze",
        {},
        {"way": [[1.0, 2.0]], "walls": [], "reach_px": 1.0},
        {"way": WAY, "walls": [[1.0, 2.0]], "reach_px": 1.0},
        {"way": WAY, "walls": [[1.0, 2.0, 3.0, math.nan]], "reach_px": 1.0},
        {"way": WAY, "walls": WALLS, "reach_px": 0.0},
        {"way": WAY, "walls": [["a", "b", "c", "d"]], "reach_px": 1.0},
    ],
)
def test_a_target_that_is_no_maze_is_a_counted_failure(maze: Any) -> None:
    with pytest.raises(RewardFailure, match=r"ValueError: target\['maze'\]"):
        judged(drawn(RIGHT), target={"maze": maze})


def test_rows_without_a_maze_do_not_apply() -> None:
    assert judged(drawn(RIGHT), target={"answer": "no"}) is None


def test_reward_check_finds_nothing() -> None:
    assert not check_reward("maze_path").failures
    assert not check_reward("maze_path", {"partial": 0.5}).failures


# ------------------------------------------------------------------------------------------------ mazes of the task

FAMILY = FAMILIES["qwen2_5_vl"]


def solved(difficulty: int, index: int) -> Played | None:
    """A row with a way, carried out."""
    task = made("maze", difficulty=difficulty)
    row = task.row(index)
    return play(task, row, FAMILY) if "maze" in row.target else None


def regions(maze: Maze) -> list[set[Cell]]:
    """Cells that are joined, found by flooding: another way than that of the generator."""
    left = {(x, y) for x in range(maze.n) for y in range(maze.n)}
    found = []
    while left:
        region, border = set(), [left.pop()]
        while border:
            cell = border.pop()
            region.add(cell)
            border += [c for c in neighbours(cell, maze.n) if c in left and frozenset((cell, c)) in maze.joined]
            left -= set(border)
        found.append(region)
    return found


@given(index=st.integers(0, 10**6), difficulty=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_every_region_has_one_exit_and_one_way(index: int, difficulty: int) -> None:
    maze: Maze = made("maze", difficulty=difficulty).row(index).columns["solution"]
    found = regions(maze)
    assert len(found) == len(maze.exits)
    assert all(len(set(maze.exits.values()) & region) == 1 for region in found)
    # As many joints as a forest of that many trees has: no loops, so there is one way only.
    assert len(maze.joined) == maze.n**2 - len(found)
    (own,) = [region for region in found if maze.start in region]
    assert maze.exits[maze.goal] in own
    assert maze.way[0] == maze.start
    assert all(frozenset(pair) in maze.joined for pair in itertools.pairwise(maze.way))


@given(index=st.integers(0, 10**6), difficulty=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_questions_are_answered_by_the_maze(index: int, difficulty: int) -> None:
    row = made("maze", difficulty=difficulty).row(index)
    maze: Maze = row.columns["solution"]
    question, answer = row.messages[0]["content"][-1]["text"], row.target["answer"]
    (own,) = [region for region in regions(maze) if maze.start in region]
    colors = [color for color, cell in maze.exits.items() if cell in own]
    if question.startswith("Which"):
        assert [answer] == colors
    elif question.startswith("Is there a path"):
        assert answer == ("yes" if question.split()[-2] in colors else "no")
    else:
        steps = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(maze.way)]
        assert answer == str(sum(a != b for a, b in itertools.pairwise(steps)))
        assert question.split()[-3] in colors


@given(index=st.integers(0, 10**4), difficulty=st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_walls_are_where_they_are_painted(index: int, difficulty: int) -> None:
    row = made("maze", difficulty=difficulty).row(index)
    maze: Maze = row.columns["solution"]
    picture = row.images[0]
    assert isinstance(picture, Image.Image)
    assert picture.size == (maze.side_px, maze.side_px)
    dark = np.asarray(picture.convert("L")) < 90
    for x, y in itertools.product(range(maze.n), repeat=2):
        for beside in [(x + 1, y), (x, y + 1)]:
            if max(beside) < maze.n:
                middle = np.mean([maze.center((x, y)), maze.center(beside)], axis=0)
                painted = dark[int(middle[1]), int(middle[0])]
                assert painted == (frozenset(((x, y), beside)) not in maze.joined)


@pytest.mark.parametrize("difficulty", range(6))
def test_ways_of_the_task_that_are_spoilt_earn_nothing(difficulty: int) -> None:
    spoilt = 0
    for index in range(12):
        played = solved(difficulty, index)
        if played is None:
            continue
        maze: Maze = played.row.columns["solution"]
        assert score("maze_path", played.rollout) == 1.0
        for way in _spoilt(maze):
            spoilt += 1
            assert _of_way(played, way) == 0.0
    assert spoilt >= 40


def _of_way(played: Played, way: Sequence[Sequence[float]]) -> float | None:
    """What a way through these points, in pixels, is worth."""
    size = played.rollout.geometry[0].original_size
    extent = FAMILY.box_frame.extent(played.rollout.geometry[0])
    written = [[round(x * extent[0] / size[0]), round(y * extent[1] / size[1])] for x, y in way]
    turns = tuple(
        Turn("", "draw_line", {"image": f"img_{n}", "start": a, "end": b, "label": str(n)}, num_images=1)
        for n, (a, b) in enumerate(itertools.pairwise(written))
    )
    return score("maze_path", replace(played.rollout, turns=turns))


def _spoilt(maze: Maze) -> list[list[tuple[float, float]]]:
    """Ways that look like the right one."""
    corners = [maze.center(cell) for cell in maze.corners]
    ways = [
        [(x + maze.cell_px, y) for x, y in corners],
        [(x, y - maze.cell_px) for x, y in corners],
        corners[::-1],
        corners[:-1] if len(corners) > 2 else [corners[0], corners[0]],
        [(corners[0][0], corners[0][1]), (-5.0, -5.0)],
    ]
    ways += [[corners[0], maze.center(cell)] for color, cell in maze.exits.items() if color != maze.goal]
    # Straight to the goal, where the way has to turn.
    if len(corners) > 2 and not math.isclose(corners[0][0], corners[-1][0]) and len(maze.way) > 4:
        cuts = [corners[0], corners[-1]]
        if crosses(np.array([cuts]), np.array(maze.walls())):
            ways.append(cuts)
    return ways


@pytest.mark.parametrize("family", ALL_FAMILIES, ids=lambda family: family.model_type)
def test_rounding_to_any_frame_stays_clear_of_walls(family: Any) -> None:
    """Also in the smallest cells of the largest maze."""
    task = made("maze", cells=12, exits=3, cell_px=18.0, pieces=(4, 14), difficulty=5)
    assert geometry_of(family)((224, 224)).model_size[0] <= 224
    judged_rows = [play(task, row, family) for row in map(task.row, range(12)) if "maze" in row.target]
    assert len(judged_rows) >= 6
    assert all(score("maze_path", played.rollout) == 1.0 for played in judged_rows)


# ------------------------------------------------------------------------------------------------ geometry

coordinates = st.integers(-20, 20)
segments = st.tuples(coordinates, coordinates, coordinates, coordinates)


def _touch(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    """Whether two segments share a point, exactly, by solving for it in fractions."""
    from fractions import Fraction

    (ax, ay, bx, by), (cx, cy, dx, dy) = a, b
    rx, ry, sx, sy = bx - ax, by - ay, dx - cx, dy - cy
    cross = rx * sy - ry * sx
    if cross:
        t = Fraction((cx - ax) * sy - (cy - ay) * sx, cross)
        u = Fraction((cx - ax) * ry - (cy - ay) * rx, cross)
        return 0 <= t <= 1 and 0 <= u <= 1

    def on(px: int, py: int, one: tuple[int, int, int, int]) -> bool:
        x1, y1, x2, y2 = one
        straight = (x2 - x1) * (py - y1) == (y2 - y1) * (px - x1)
        return straight and min(x1, x2) <= px <= max(x1, x2) and min(y1, y2) <= py <= max(y1, y2)

    return on(ax, ay, b) or on(bx, by, b) or on(cx, cy, a) or on(dx, dy, a)


@given(segments, segments)
@settings(max_examples=500, deadline=None)
def test_crossing_agrees_with_fractions(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> None:
    path = np.array(a, np.float64).reshape(1, 2, 2)
    assert crosses(path, np.array([b], np.float64)) == _touch(a, b)


@given(st.lists(segments, min_size=1, max_size=4), st.tuples(coordinates, coordinates), st.floats(0.5, 20))
@settings(max_examples=200, deadline=None)
def test_passing_by_agrees_with_many_points_of_the_path(
    lines: list[tuple[int, int, int, int]], place: tuple[int, int], reach: float
) -> None:
    path = np.array(lines, np.float64).reshape(-1, 2, 2)
    shares = np.linspace(0, 1, 400)[:, np.newaxis]
    nearest = min(float(np.hypot(*(a + shares * (b - a) - np.array(place)).T).min()) for a, b in path)
    if abs(nearest - reach) > 0.2:
        assert passes(path, np.array([place], np.float64), reach)[0] == (nearest < reach)


def test_a_path_has_its_gaps_in_it() -> None:
    path = continuous([(1.0, 0.0, 5.0, 0.0), (5.0, 1.0, 5.0, 9.0)], [0.0, 0.0], 1.0)
    assert path is not None
    assert path.tolist() == [[[0, 0], [1, 0]], [[1, 0], [5, 0]], [[5, 0], [5, 1]], [[5, 1], [5, 9]]]
    assert continuous([(1.0, 0.0, 5.0, 0.0), (5.0, 1.5, 5.0, 9.0)], [0.0, 0.0], 1.0) is None
    assert continuous([None], [0.0, 0.0], 1.0) is None
    nothing = continuous([], [0.0, 0.0], 1.0)
    assert nothing is not None
    assert nothing.shape == (0, 2, 2)
