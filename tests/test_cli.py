"""The `mmreason` command: help without heavy imports, dispatch, exit codes, messages, no tracebacks."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmreason import __version__, cli
from mmreason.config import command_line
from mmreason.config.command_line import config_groups, option_list, verb_help
from mmreason.errors import DataError

HEAVY = ("torch", "transformers", "trl", "hydra", "omegaconf", "pydantic", "numpy", "rich", "PIL")


def run(*words: str) -> int:
    return cli.main(list(words))


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        [],
        ["--version"],
        ["train", "--help"],
        ["eval", "-h"],
        ["data", "preview", "--help"],
        ["reward", "score", "-h"],
    ],
    ids=" ".join,
)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from mmreason.cli import main; main(sys.argv[1:]); "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert len(done.stdout.splitlines()) > (1 if words == ["--version"] else 3)


def test_top_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    for command in (
        "train",
        "sft",
        "collect",
        "dpo",
        "eval",
        "reward list",
        "reward score",
        "data list",
        "data preview",
        "data check",
        "report",
        "doctor",
    ):
        assert f"\n  {command} " in text
    assert run() == 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"mmreason {__version__}\n"


@pytest.mark.parametrize("verb", ["train", "sft", "collect", "dpo", "eval"])
def test_verb_help_lists_groups_choices_and_defaults(verb: str) -> None:
    text = verb_help(verb)
    for choices in config_groups().values():
        for choice, meaning in choices.items():
            assert choice in text
            assert meaning
    assert "*tiny " in text
    assert "*cpu_tiny" in text
    assert "data=FILE" in text
    assert ("*quickstart" in text) == (verb == "train")


def test_option_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "--options", "rollout") == 0
    text = capsys.readouterr().out
    assert "rollout.group_size=8\n    a whole number ≥ 2; completions per prompt" in text
    assert "trainer." not in text
    assert "objective.loss_type=" in option_list()
    assert run("train", "--options", "rolout.group") == 2
    assert "Did you mean 'rollout.group_size'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["trian"], ["no command 'trian'", "Did you mean 'train'?"]),
        (["data", "lst"], ["Did you mean 'list'?", "preview"]),
        (["reward"], []),
        (["train", "--confg", "job"], ["--confg", "mmreason train --help"]),
        (["train", "--cfg", "hydra"], ["job"]),
        (["train", "trainer.lrr=1"], ["Did you mean 'trainer.learning_rate'?"]),
        (["train", "data=/no/file.jsonl"], ["/no/file.jsonl: no such file", "there is no folder /no"]),
        (["train", "--cfg", "job", "-p", "trainr"], ["trainr", "Did you mean 'trainer'?"]),
        (["train", "--config-dir", "/no/where"], ["/no/where: no such folder"]),
        (["data", "check", "/no/file.jsonl"], ["/no/file.jsonl: no such file"]),
        (["data", "check"], ["FILE"]),
        (["data", "preview", "grounding", "objectz=3"], ["objectz", "Did you mean 'objects'?"]),
        (["data", "preview", "grounding", "objects"], ["expected OPTION=VALUE"]),
        (["data", "preview", "grounding", "--count", "0"], ["whole number ≥ 1"]),
        (["reward", "score", "x.jsonl"], ["--reward"]),
        (["reward", "score", "/no/rollouts.jsonl", "--reward", "iou"], ["no such file"]),
        (["report", "/no/run"], ["no such run folder"]),
        (["doctor", "--fix"], ["--fix"]),
    ],
    ids=lambda part: " ".join(part)[:40] or "-",
)
def test_wrong_command_lines_are_explained(
    words: list[str], fragments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2
    shown = capsys.readouterr()
    for fragment in fragments:
        assert fragment in shown.err
    assert "Traceback" not in shown.err


def raising(error: BaseException) -> Callable[[list[str]], int]:
    def command(words: list[str]) -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (DataError("my.jsonl:3: no image"), 1, "mmreason: my.jsonl:3: no image\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
        (OSError(28, "No space left on device", "/runs/x"), 1, "No space left on device"),
    ],
    ids=["data", "interrupt", "disk"],
)
def test_errors_become_messages_and_exit_codes(
    error: BaseException,
    code: int,
    shown: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(cli._COMMANDS, "doctor", raising(error))
    assert run("doctor") == code
    assert shown in capsys.readouterr().err


def test_bugs_keep_their_traceback_and_debug_shows_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli._COMMANDS, "doctor", raising(ZeroDivisionError("bug")))
    with pytest.raises(ZeroDivisionError):
        run("doctor")
    monkeypatch.setitem(cli._COMMANDS, "doctor", raising(DataError("row")))
    monkeypatch.setenv("MMREASON_DEBUG", "1")
    with pytest.raises(DataError):
        run("doctor")


def test_a_closed_pipe_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "mmreason", "train", "--help"],
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, "")


# --- the training verbs


ENGINES = {
    "train.run": "run_train",
    "train.sft": "run_sft",
    "train.collect": "run_collect",
    "train.dpo": "run_dpo",
}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any, Any]]:
    """Stand-ins for the engine that record what they were started with."""
    calls: list[tuple[str, Any, Any]] = []
    engines = {**ENGINES, "evaluate": "run_eval"}
    for module, function in engines.items():

        def record(config: Any, plain: Any, function: str = function) -> dict[str, Any]:
            calls.append((function, config, plain))
            return {"after": {}}

        fake = types.ModuleType(f"mmreason.{module}")
        setattr(fake, function, record)
        monkeypatch.setitem(sys.modules, f"mmreason.{module}", fake)
    return calls


@pytest.mark.parametrize("verb", ["train", "sft", "collect", "dpo", "eval"])
def test_verbs_start_the_engine_with_the_checked_configuration(
    verb: str, started: list[tuple[str, Any, Any]], tmp_path: Path
) -> None:
    function = f"run_{verb}"
    (tmp_path / "pairs.jsonl").touch()
    words = {"sft": ["recipe=tiny_vlm"], "dpo": [f"data={tmp_path / 'pairs.jsonl'}"]}
    assert run(verb, "seed=4", *words.get(verb, [])) == 0
    [(name, config, plain)] = started
    assert name == function
    assert (config.command, config.seed, plain["seed"]) == (verb, 4, 4)


def test_threads_are_set_before_torch_is_imported(
    started: list[tuple[str, Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    run("train", "trainer.num_threads=0")
    assert os.environ["OMP_NUM_THREADS"] == "7"
    run("train", "trainer.num_threads=3")
    assert (os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == ("3", "3")


def test_cfg_job_prints_and_starts_nothing(
    started: list[tuple[str, Any, Any]],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("train", "--cfg", "job", "seed=9", "data=not_yet_there.jsonl") == 0
    text = capsys.readouterr().out
    assert "\nseed: 9\n" in text
    assert "path: not_yet_there.jsonl" in text
    assert run("train", "-c", "job", "--package", "model.lora") == 0
    assert capsys.readouterr().out.startswith("rank: 0\n")
    assert run("train", "--cfg", "job", "-m", "seed=0,1") == 0
    assert capsys.readouterr().out.count("\ncommand: train\n") + 1 == 2
    assert run("train", "--info", "defaults") == 0
    assert "recipe/quickstart" in capsys.readouterr().out
    assert started == []
    assert list(tmp_path.iterdir()) == []


def test_sweep_runs_every_job_in_its_own_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    commands: list[Sequence[str]] = []

    def fake_job(command: Sequence[str]) -> tuple[int, bool]:
        commands.append(command)
        return (3 if "seed=1" in command else 0), False

    monkeypatch.setattr(command_line, "run_job", fake_job)
    assert run("train", "-m", "seed=0,1,2", "trainer.steps=5", "--config-dir", str(tmp_path)) == 3
    assert [list(command[1:4]) for command in commands] == [["-m", "mmreason", "train"]] * 3
    assert list(commands[1][4:]) == ["--config-dir", str(tmp_path), "seed=1", "trainer.steps=5"]
    text = capsys.readouterr().out
    assert "[job 2 of 3] seed=1" in text
    assert "2 of 3 jobs succeeded" in text
    assert "exit code 3" in text


def test_a_wrong_sweep_starts_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line, "run_job", lambda _: pytest.fail("a job was started"))
    assert run("train", "-m", "rollout.group_size=4,1") == 2


#: A job that takes a moment to save after a signal: 0.6 s, longer than Popen's own patience after Ctrl-C.
SAVING_JOB = """
import signal, sys, time
caught = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: caught.append(number))
print("ready", flush=True)
for _ in range(1000):
    if caught:
        time.sleep(0.6)
        sys.exit(40 + caught[0])
    time.sleep(0.01)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_job_save_and_ends_the_sweep(number: signal.Signals, tmp_path: Path) -> None:
    job, sweep = tmp_path / "job.py", tmp_path / "sweep.py"
    job.write_text(SAVING_JOB)
    sweep.write_text(
        # A test run in the background inherits an ignored SIGINT; a person's shell does not.
        "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from mmreason.config.command_line import run_job\n"
        f"print(run_job([sys.executable, {str(job)!r}]), flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(sweep)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    assert process.communicate(timeout=60)[0].strip() == f"({40 + number}, True)"


def test_no_job_starts_after_a_stopped_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command_line, "run_job", lambda _: (0, True))
    assert run("train", "-m", "seed=0,1") == 130
    text = capsys.readouterr().out
    assert "sweep stopped: 1 of 2 jobs succeeded" in text
    assert "not started" in text


# --- data, rewards, report


def test_data_list_names_tasks_with_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data", "list") == 0
    text = capsys.readouterr().out
    for name in ("grounding: ", "scene_qa: ", "scene_caption: ", "task.difficulty="):
        assert name in text


def test_data_preview_writes_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sheet.png"
    assert run("data", "preview", "scene_qa", "--out", str(out), "--count", "2", "--seed", "1", "difficulty=0") == 0
    assert capsys.readouterr().out == f"{out}\n"
    with Image.open(out) as picture:
        assert picture.width > 100


def test_the_example_in_data_preview_help_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data", "preview", "--help") == 0
    example = capsys.readouterr().out.split("example: mmreason ")[1].replace("\n", " ")
    words = ["3" if word == "20" else word for word in shlex.split(example)]
    assert run(*words, "--out", str(tmp_path / "sheet.png")) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--seed", "-1"], "≥ 0"), (["name=scene_qa"], "the task is the first word"), (["--count", "x"], "≥ 1")],
)
def test_data_preview_refuses_in_words(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data", "preview", "grounding", *words) == 2
    assert said in capsys.readouterr().err


def test_data_preview_refuses_a_path_and_writes_a_row_without_picture() -> None:
    from mmreason.data.preview import _cell
    from mmreason.errors import ConfigError
    from mmreason.records import Row

    messages = ({"role": "user", "content": "Where?"},)
    with pytest.raises(ConfigError, match=r"'a\.png'"):
        _cell(Row("r/1", messages, ("a.png",), {"answer": "here"}, "plugin", {}))
    written = _cell(Row("r/1", messages, (), {"answer": "here"}, "plugin", {}))
    assert len(written.getcolors(10**6) or []) > 10


def test_data_check_takes_the_limit_that_it_advises_to_raise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    row = {"messages": [{"role": "user", "content": "Where?"}], "images": ["a.png"], "target": {"answer": "here"}}
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(row) + "\n")
    assert run("data", "check", str(rows), "data.max_image_pixels=3000") == 1
    assert "data.max_image_pixels" in " ".join(capsys.readouterr().out.split())
    assert run("data", "check", str(rows), "data.max_image_pixels=4000") == 0
    assert run("data", "check", str(rows), "data.max_pixels=4000") == 2
    assert "data.max_image_pixels" in capsys.readouterr().err


def test_data_check_says_which_line_is_bad(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    good = {
        "id": "1",
        "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where is it?"}]}],
        "images": ["a.png"],
        "target": {"boxes": [[1, 2, 30, 40]]},
    }
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(good) + "\n")
    assert run("data", "check", str(rows)) == 0
    assert "1 of 1" in capsys.readouterr().out
    rows.write_text(json.dumps(good) + "\n" + json.dumps(good | {"id": "2", "images": ["gone.png"]}) + "\n")
    assert run("data", "check", str(rows)) == 1
    assert "gone.png" in capsys.readouterr().out


def test_reward_list_and_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("reward", "list") == 0
    assert "iou" in capsys.readouterr().out
    record = {
        "id": "7",
        "completion": "<think>there</think><answer>[0, 0, 10, 10]</answer>",
        "target": {"boxes": [[0, 0, 10, 10]]},
        "images": [{"path": "x.png", "original_size": [56, 56], "model_size": [56, 56]}],
        "box_frame": "resized_px",
    }
    file = tmp_path / "rollouts.jsonl"
    file.write_text(json.dumps(record) + "\n")
    assert run("reward", "score", str(file), "--reward", "iou,format") == 0
    assert json.loads(capsys.readouterr().out) == {"id": "7", "rewards": {"iou": 1.0, "format": 1.0}}
    assert run("reward", "score", str(file), "--reward", "iuo") == 2
    assert "iou" in capsys.readouterr().err


def test_report_of_a_run_suggests_the_right_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "quickstart").mkdir()
    assert run("report", str(tmp_path / "quikstart")) == 2
    assert "Did you mean 'quickstart'?" in capsys.readouterr().err
