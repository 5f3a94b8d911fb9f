"""The reward kit: what may be a reward, option checks, files and plug-ins, the failure boundary, totals."""

from __future__ import annotations

import functools
import math
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from mmreason.boxes import Boxes, Frame
from mmreason.config.schema import RewardConfig
from mmreason.errors import ConfigError, PluginError, RewardFailure
from mmreason.records import ImageGeometry, Rollout, Row
from mmreason.scoring import (
    REWARDS,
    RewardResult,
    RewardRunner,
    build_spec,
    load_reward_files,
    reward,
    validate_reward_config,
    weighted_total,
)

PLUGIN = Path(__file__).parent / "plugin_example"
GEOMETRY = ImageGeometry((200, 100), (196, 112), 14, 2)


def rollout(
    text: str = "<answer>yes</answer>", answer: str | None = "yes", target: Mapping[str, Any] | None = None
) -> Rollout:
    row = Row(id="row/0", messages=(), images=(), target=target or {}, columns={"source": "test"})
    return Rollout(row, 0, (), text, answer, len(text), "stop", (GEOMETRY,), "relative_1000")


def config(**options: Any) -> RewardConfig:
    return RewardConfig.model_validate(options)


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Registers a function as a reward for the length of one test; returns the registered name."""
    REWARDS.names()
    monkeypatch.setattr(REWARDS, "_items", dict(REWARDS._items))

    def register(function: Callable[..., Any], **options: Any) -> str:
        reward(**options)(function)
        return f"{function.__module__.split('.')[0]}/{options.get('name') or function.__name__}"

    return register


# What may be a reward


def test_needs_and_options_are_told_apart() -> None:
    def near(target: Any, boxes: Any, *, radius: float = 2.0, mode: Literal["l1", "l2"] = "l2") -> float:
        """One line.

        More lines.
        """
        return radius

    spec = build_spec(near, source="here")
    assert (spec.needs, spec.option_names) == (("target", "boxes"), ("radius", "mode"))
    assert (spec.summary, spec.source, spec.range) == ("One line.", "here", (0.0, 1.0))
    options = {"weight": 1.0, "gate": None, "schedule": None, "radius": 3.0, "mode": "l2"}
    assert spec.options({"radius": 3}).model_dump() == options


def test_built_ins_have_bare_names_and_plugins_carry_their_package() -> None:
    assert {"iou", "format", "exact", "set_match"} <= set(REWARDS.names())
    assert build_spec(rollout_reward).name == f"{__name__.split('.')[0]}/rollout_reward"


def rollout_reward(rollout: Rollout) -> float:
    return 1.0


def test_an_option_without_annotation_takes_the_type_of_its_default() -> None:
    def short(completion: str, limit=3):  # type: ignore[no-untyped-def]
        return 1.0

    assert build_spec(short).options({"limit": "7"}).model_dump()["limit"] == 7


def test_annotations_for_type_checkers_only_do_not_matter() -> None:
    def lazy(rollout: NotImportedHere, *, scale: Annotated[float, Field(gt=0)] = 1.0) -> float:  # type: ignore[name-defined] # noqa: F821
        return scale

    spec = build_spec(lazy)
    assert spec.needs == ("rollout",)
    with pytest.raises(ConfigError, match="greater than 0"):
        spec.options({"scale": 0.0})


async def async_generator_reward(completion: str) -> AsyncIterator[float]:
    yield 1.0


def generator_reward(completion: str) -> Iterator[float]:
    yield 1.0


def unknown_need(completon: str) -> float:
    return 1.0


def any_arguments(completion: str, **kwargs: Any) -> float:
    return 1.0


def positional_only(completion: str, /) -> float:
    return 1.0


def bad_default(completion: str, *, share: Annotated[float, Field(le=1.0)] = 2.0) -> float:
    return share


def complex_option(completion: str, *, table: dict[str, list[int]] = {}) -> float:  # noqa: B006
    return 1.0


def takes_weight(completion: str, *, weight: float = 1.0) -> float:
    return weight


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (async_generator_reward, {}, "generator"),
        (generator_reward, {}, "generator"),
        (unknown_need, {}, "Did you mean 'completion'"),
        (any_arguments, {}, r"\*\*kwargs.* is not allowed"),
        (positional_only, {}, "not allowed"),
        (bad_default, {}, "own defaults"),
        (complex_option, {}, "command line cannot set"),
        (takes_weight, {}, "'weight' .reserved"),
        (rollout_reward, {"name": "a/b"}, "letters, digits"),
        (rollout_reward, {"name": "1st"}, "letters, digits"),
        (rollout_reward, {"value_range": (1.0, 1.0)}, "lowest first"),
        (rollout_reward, {"value_range": (0.0, math.nan)}, "lowest first"),
        (rollout_reward, {"value_range": 3}, "two numbers"),
        (functools.partial(rollout_reward), {}, "plain function"),
        (len, {}, "plain function"),
    ],
)
def test_what_cannot_be_a_reward_is_refused(function: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        build_spec(function, **options)


def test_forgotten_brackets_are_named() -> None:
    with pytest.raises(PluginError, match="with brackets"):
        reward(rollout_reward)  # type: ignore[arg-type]


def test_a_setting_of_the_section_cannot_be_a_reward_name(tmp_path: Path) -> None:
    file = tmp_path / "clash.py"
    file.write_text(
        "from mmreason.scoring import reward\n@reward()\ndef max_failure_share(completion):\n    return 1.0\n"
    )
    with pytest.raises(PluginError, match=r"clash\.py.*max_failure_share.*setting"):
        load_reward_files([file])


def test_a_taken_name_is_refused(add: Callable[..., str]) -> None:
    add(rollout_reward)
    with pytest.raises(PluginError, match=r"registered twice.*test_scoring"):
        add(rollout_reward)


def test_the_decorated_function_stays_a_plain_function(add: Callable[..., str]) -> None:
    assert reward(name="plain")(rollout_reward) is rollout_reward


# Options from the config


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"iuo": {"weight": 1}}, r"reward\.iuo: no such reward or setting\. Did you mean 'iou'"),
        ({"max_failure_shar": 0.1}, r"Did you mean 'max_failure_share'"),
        ({"iou": {"treshold": 0.5}}, r"reward\.iou\.treshold: no such option\. Did you mean 'threshold'"),
        ({"iou": {"threshold": 1.5}}, r"reward\.iou\.threshold=1\.5: .*less than or equal to 1"),
        ({"iou": {"threshold": "high"}}, r"reward\.iou\.threshold='high'"),
        ({"iou": {"weight": math.inf}}, r"reward\.iou\.weight=inf: .*finite"),
        ({"iou": 0.5}, r"reward\.iou=0\.5: a reward takes options"),
        ({"format": {"tags": ["a b"]}}, r"reward\.format\.tags\.0='a b'"),
        ({"format": {"tags": []}}, r"reward\.format\.tags=\[\]"),
    ],
)
def test_wrong_config_is_refused_by_name(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate_reward_config(config(**section))


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        validate_reward_config(config(iuo={}, iou={"threshold": 7, "nope": 1}))
    assert len(str(caught.value).splitlines()) == 3


def test_null_switches_a_reward_off_and_order_is_kept() -> None:
    checked = validate_reward_config(config(iou={"weight": 2}, exact=None, format={}))
    assert list(checked) == ["iou", "format"]
    assert checked["iou"].weight == 2.0


def test_a_runner_without_rewards_is_refused() -> None:
    with pytest.raises(ConfigError, match="no reward is active"):
        RewardRunner(config(iou=None))


# Users' files


def test_a_file_adds_rewards_with_bare_names_and_is_run_once(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        textwrap.dedent(
            """
            from __future__ import annotations
            from typing import Annotated
            from pydantic import Field
            from mmreason.scoring import reward

            Positive = Annotated[int, Field(ge=1)]

            @reward(range=(0, 1))
            def brief_enough(completion: str, *, max_chars: Positive = 10) -> float:
                return max(0.0, 1.0 - len(completion) / max_chars)
            """
        )
    )
    section = config(files=[str(file)], brief_enough={"max_chars": 20})
    runner = RewardRunner(section)
    assert RewardRunner(section).names == ("brief_enough",)
    assert runner.score([rollout("12345")]).values.tolist() == [[0.75]]
    with pytest.raises(ConfigError, match=r"reward\.brief_enough\.max_chars=0"):
        validate_reward_config(config(files=[str(file)], brief_enough={"max_chars": 0}))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.py", None, "no such file"),
        ("text.txt", "hello", "not a Python file"),
        ("empty.py", "x = 1\n", "registers no reward"),
        ("broken.py", "x = 1\ny = x / 0\n", r"broken\.py:2: does not run: ZeroDivisionError"),
        ("syntax.py", "x = 1\ndef f(:\n", r"syntax\.py:2: does not run: SyntaxError"),
        ("leaves.py", "import sys\nsys.exit(3)\n", "SystemExit: 3"),
        (
            "unknown.py",
            "from mmreason.scoring import reward\n@reward()\ndef f(boxs):\n    return 1\n",
            r"unknown\.py.*Did you mean 'boxes'",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_text(content)
    for _ in range(2):  # a failed import leaves nothing behind that would make the second try pass
        with pytest.raises(PluginError, match=message) as caught:
            load_reward_files([file])
        assert str(file) in str(caught.value)


# Plug-in packages


def _distribution(folder: Path, name: str, entry: str) -> None:
    info = folder / f"{name}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[mmreason.rewards]\n{entry}\n")


def test_a_plugin_package_adds_its_reward_and_a_broken_one_stops_nothing(tmp_path: Path) -> None:
    declared = re.search(
        r'\[project\.entry-points\."mmreason\.rewards"\]\n(\w+) = "(\w+)"',
        (PLUGIN / "pyproject.toml").read_text(),
    )
    assert declared is not None
    _distribution(tmp_path, "colour_rewards", f"{declared[1]} = {declared[2]}")
    _distribution(tmp_path, "bad_rewards", "bad_rewards = bad_rewards_module")
    (tmp_path / "bad_rewards_module.py").write_text("import does_not_exist_anywhere\n")
    script = """
        from mmreason.config.schema import RewardConfig
        from mmreason.records import Rollout, Row
        from mmreason.scoring import REWARDS, RewardRunner
        import sys
        row = Row("r", (), (), {"colour": "red"})
        answers = ("red", "blue", None)
        rollouts = [Rollout(row, 0, (), "", answer, 1, "stop", (), "relative_1") for answer in answers]
        config = RewardConfig.model_validate({"colour_rewards/colour_named": {"near_miss": 0.25}})
        table = RewardRunner(config).score(rollouts)
        print(table.total.tolist(), table.parts["colour_rewards/colour_named/is_colour"].tolist())
        print(REWARDS.broken)
        print("torch" in sys.modules)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(PLUGIN)])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    scores, broken, torch_loaded = result.stdout.splitlines()
    assert scores == "[1.0, 0.25, 0.0] [1.0, 1.0, 0.0]"
    assert "bad_rewards" in broken
    assert "does_not_exist_anywhere" in broken
    assert torch_loaded == "False"


# The boundary


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no text form")


def _raises_system_exit() -> float:
    raise SystemExit(1)


BAD_RETURNS: list[tuple[Callable[[], Any], str]] = [
    (lambda: 1 / 0, "exception"),
    (_raises_system_exit, "exception"),
    (lambda: _raises_system_exit(), "exception"),
    (lambda: Unprintable(), "exception"),
    (lambda: 10**400, "exception"),
    (lambda: "0.5", "not_a_number"),
    (lambda: [0.5], "not_a_number"),
    (lambda: 1j, "not_a_number"),
    (lambda: np.array([0.5, 0.5]), "not_a_number"),
    (lambda: RewardResult("high"), "not_a_number"),  # type: ignore[arg-type]
    (lambda: RewardResult(0.5, {"part": None}), "not_a_number"),  # type: ignore[dict-item]
    (lambda: math.nan, "non_finite"),
    (lambda: math.inf, "non_finite"),
    (lambda: np.float32("nan"), "non_finite"),
    (lambda: RewardResult(0.5, {"part": math.inf}), "non_finite"),
    (lambda: 1.1, "out_of_range"),
    (lambda: -1e-5, "out_of_range"),
    (lambda: 1e30, "out_of_range"),
]


@pytest.mark.parametrize(("make", "kind"), BAD_RETURNS)
def test_a_bad_return_is_counted_by_kind_and_never_a_zero(
    add: Callable[..., str], make: Callable[[], Any], kind: str
) -> None:
    def faulty(completion: str) -> Any:
        return make() if completion == "bad" else 0.5

    name = add(faulty)
    runner = RewardRunner(config(**{name: {}, "max_failure_share": 0.5}))
    table = runner.score([rollout("good"), rollout("bad")])
    assert table.values[0, 0] == 0.5
    assert math.isnan(table.values[1, 0])
    assert math.isnan(table.total[1])
    assert dict(table.failures) == dict(runner.failures) == {(name, kind): 1}
    assert "row 'row/0'" in table.first_traceback[name]


def test_interrupt_from_the_keyboard_is_not_swallowed(add: Callable[..., str]) -> None:
    def interrupted(completion: str) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RewardRunner(config(**{add(interrupted): {}})).score([rollout()])


@pytest.mark.parametrize("value", [True, 1, np.float32(1), np.int64(1), np.bool_(True), 1.0 + 5e-7])
def test_any_real_number_is_a_number_and_rounding_is_moved_onto_the_bound(add: Callable[..., str], value: Any) -> None:
    def constant(completion: str) -> Any:
        return value

    assert RewardRunner(config(**{add(constant): {}})).score([rollout()]).values.tolist() == [[1.0]]


def test_a_run_stops_past_the_allowed_share_and_says_why(add: Callable[..., str]) -> None:
    def sometimes(completion: str) -> float:
        if completion == "bad":
            raise ValueError("the judge is on holiday")
        return 1.0

    name = add(sometimes)
    runner = RewardRunner(config(**{name: {}, "max_failure_share": 0.2}))
    good = [rollout("good")] * 8
    runner.score([*good, rollout("bad"), rollout("bad")])  # exactly the share is still allowed
    with pytest.raises(RewardFailure, match=r"failed in 3 of 11 calls \(27%: 3 × exception\)") as caught:
        runner.score([*good, *[rollout("bad")] * 3])
    assert name in str(caught.value)
    assert "the judge is on holiday" in str(caught.value)
    assert runner.failures[name, "exception"] == 5
    assert runner.calls == 21


def test_huge_failure_messages_are_cut(add: Callable[..., str]) -> None:
    def loud(completion: str) -> float:
        raise ValueError("x" * 1_000_000)

    runner = RewardRunner(config(**{add(loud): {}}))
    with pytest.raises(RewardFailure) as caught:
        runner.score([rollout()])
    assert len(str(caught.value)) < 4000
    assert all(len(text) < 5000 for text in runner.first_traceback.values())


def test_one_failing_reward_leaves_the_others_alone(add: Callable[..., str]) -> None:
    def broken(completion: str) -> float:
        raise ValueError("no")

    name = add(broken)
    table = RewardRunner(config(**{name: {}, "exact": {"weight": 2}, "max_failure_share": 1.0})).score(
        [rollout(answer="yes")]
    )
    assert math.isnan(table.column(name)[0])
    exact = RewardRunner(config(exact={})).score([rollout(answer="yes")])
    assert math.isnan(exact.total[0])  # no target answer: does not apply, and nothing failed
    assert not exact.failures


# What rewards receive


def test_a_reward_receives_what_it_names(add: Callable[..., str]) -> None:
    seen: dict[str, Any] = {}

    def curious(
        rollout: Rollout,
        completion: str,
        answer: str | None,
        target: Mapping[str, Any],
        geometry: tuple[ImageGeometry, ...],
        box_frame: Frame,
        boxes: Boxes,
        columns: Mapping[str, Any],
        progress: float,
        *,
        scale: float = 1.0,
    ) -> None:
        seen.update(locals())

    given = rollout("<answer>[1, 2, 3, 4]</answer>", "[1, 2, 3, 4]", {"label": "cat"})
    table = RewardRunner(config(**{add(curious): {"scale": 3}})).score([given], progress=0.25)
    assert math.isnan(table.values[0, 0])
    assert not table.failures
    assert seen["rollout"] is given
    assert (seen["completion"], seen["answer"]) == (given.text, given.answer)
    assert seen["target"] == {"label": "cat"}
    assert seen["geometry"] == (GEOMETRY,)
    assert seen["box_frame"] is Frame.relative_1000
    assert seen["boxes"] == Boxes.of([1, 2, 3, 4], Frame.relative_1000)
    assert (seen["columns"], seen["progress"], seen["scale"]) == ({"source": "test"}, 0.25, 3.0)


def test_boxes_are_parsed_once_per_rollout(add: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    import mmreason.reward_kit.groups as reward_groups

    calls: list[str] = []

    def counting(text: str, frame: Frame) -> Boxes:
        calls.append(text)
        return Boxes.of([], frame)

    monkeypatch.setattr(reward_groups, "parse_boxes", counting)

    def first(boxes: Boxes) -> float:
        return 0.0

    def second(boxes: Boxes) -> float:
        return 0.0

    section = config(**{add(first): {}, add(second): {}})
    RewardRunner(section).score([rollout(answer="a"), rollout(answer=None)])
    assert calls == ["a", ""]


def test_an_unknown_box_frame_is_a_failure_and_not_a_crash(add: Callable[..., str]) -> None:
    def boxed(boxes: Boxes) -> float:
        return 1.0

    strange = Rollout(Row("r", (), (), {}), 0, (), "", "", 0, "stop", (), "feet")
    name = add(boxed)
    table = RewardRunner(config(**{name: {}, "max_failure_share": 1.0})).score([strange])
    assert table.failures == {(name, "exception"): 1}


# Totals and parts


def test_total_is_the_weighted_sum_of_what_applies() -> None:
    values = np.array([[1.0, 0.5, 1.0], [np.nan, 0.5, 1.0], [np.nan, np.nan, 1.0], [0.0, 0.0, 0.0]])
    total = weighted_total(values, np.array([2.0, -1.0, 0.0]))
    np.testing.assert_array_equal(total, [1.5, -0.5, np.nan, 0.0])


def test_parts_are_columns_with_nan_where_absent(add: Callable[..., str]) -> None:
    def composed(completion: str) -> RewardResult | None:
        return {"a": RewardResult(0.5, {"size": 7.0}), "b": RewardResult(None, {"size": 2.0})}.get(completion)

    name = add(composed)
    table = RewardRunner(config(**{name: {}})).score([rollout("a"), rollout("b"), rollout("c")])
    np.testing.assert_array_equal(table.parts[f"{name}/size"], [7.0, 2.0, np.nan])
    assert table.as_lists() == {name: [0.5, None, None]}
    assert len(table) == 3


def test_no_rollouts_give_an_empty_table() -> None:
    table = RewardRunner(config(iou={}, exact={})).score([])
    assert (table.values.shape, table.total.shape, len(table)) == ((0, 2), (0,), 0)


texts = st.sampled_from(["yes", "<think>a</think><answer>yes</answer>", "no", "", "[1,2,3,4]"])


@given(st.lists(st.tuples(texts, st.sampled_from(["yes", "no", "", None])), max_size=6), st.randoms())
def test_scores_do_not_depend_on_neighbours_or_order(pairs: list[tuple[str, str | None]], random: Any) -> None:
    section = config(format={}, exact={"weight": 0.5}, set_match={})
    rollouts = [rollout(text, answer, {"answer": "yes"}) for text, answer in pairs]
    order = list(range(len(rollouts)))
    random.shuffle(order)
    together = RewardRunner(section).score(rollouts)
    shuffled = RewardRunner(section).score([rollouts[index] for index in order])
    alone = [RewardRunner(section).score([one]).total[0] for one in rollouts]
    np.testing.assert_array_equal(together.values[order], shuffled.values)
    np.testing.assert_array_equal(together.total, alone)
