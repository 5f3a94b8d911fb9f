"""Preference training: the published number through the trainer, TRL's formula on a real batch, resume, hostile pairs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid
from trl import DPOConfig, DPOTrainer

from mmreason.config.compose import compose, plain_dict
from mmreason.config.schema import DataConfig, RunConfig, TaskConfig
from mmreason.data.base import build_task
from mmreason.data.pairs import MAX_STEPS, read_pairs
from mmreason.errors import ConfigError, DataError, ResumeError
from mmreason.policy.policy import Policy
from mmreason.prompt_once.layout import token_ratio
from mmreason.prompt_once.packing import Completion, group_completions
from mmreason.prompt_once.prompts import PromptStore
from mmreason.run_records import RunFolder
from mmreason.train import dpo as dpo_module
from mmreason.train.callbacks import SignalWatch
from mmreason.train.dpo import PreferenceTrainer, collate_pairs, run_dpo
from mmreason.train.opening import run_identity


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pairs of two steps: `box` over one prompt, `answer` with a crop of its own on each side."""
    folder = tmp_path_factory.mktemp("pairs")
    task = build_task(TaskConfig(name="grounding"), 0)
    lines = []
    for index in range(8):
        picture: Any = task.row(index).images[0]
        picture.save(folder / f"{index}.png")
        for side, box in (("good", (0, 0, 60, 60)), ("bad", (30, 30, 90, 90))):
            picture.crop(box).save(folder / f"{index}-{side}.png")

        def answer(side: str, text: str, index: int = index) -> dict[str, Any]:
            images = [f"{index}.png", f"{index}-{side}.png"]
            return {"question": "<image><image>What is it?", "images": images, "completion": text}

        box = {
            "question": "<image>Where?",
            "image": f"{index}.png",
            "chosen": f"[1, {index}]",
            "rejected": "nowhere, I think",
        }
        steps = {"box": box, "answer": {"chosen": answer("good", "a star"), "rejected": answer("bad", "no idea")}}
        lines.append(json.dumps({"id": f"p{index}", "steps": steps}))
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return folder / "pairs.jsonl"


@pytest.fixture
def preferring(config_in: Callable[..., Any], pairs_file: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    def make(name: str = "run", **sections: Any) -> RunConfig:
        sections = {
            "data": {"path": str(pairs_file), "eval_share": 0.25},
            "dpo": {"batch_size": 4, "micro_batch_size": 2, "step_weights": {"box": 0.5, "answer": 0.5}},
            **sections,
        }
        trainer = {"steps": 4, "eval_rows": 8, "save_every_steps": 2, **sections.pop("trainer", {})}
        config: RunConfig = config_in(tmp_path, command="dpo", name=name, trainer=trainer, **sections)
        return config

    return make


def trainer_of(config: RunConfig) -> PreferenceTrainer:
    """The trainer of a run, before its first step."""
    torch.manual_seed(config.seed)
    policy = Policy.load(config.model, seed=config.seed)
    policy.share_prompts(config.policy)
    data = dpo_module._Data.of(config, policy, read_pairs(config.data, config.dpo.weights()))
    folder = RunFolder(Path(config.out) / config.name)
    return dpo_module._trainer(config, policy, data, folder, run_identity(config), SignalWatch())[0]


def moved(trainer: PreferenceTrainer) -> None:
    """Away from the reference, so that margins are not 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)


# ---------------------------------------------------------------------- the loss


def test_published_value_through_the_trainer(
    preferring: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """lp chosen -10 (reference -12), rejected -11 (-9), beta .1: 0.513015 (VisRL, arXiv 2503.07523)."""
    trainer = trainer_of(preferring())
    pairs = [trainer.train_dataset[0], trainer.train_dataset[1]]
    table = torch.tensor([[-10.0, -11.0]] * 2, requires_grad=True)
    monkeypatch.setattr(trainer.scorer, "sums", lambda model, some: {"box": table, "answer": table})
    trainer.reference = {pair.id: {"box": [-12.0, -9.0], "answer": [-12.0, -9.0]} for pair in pairs}
    loss = trainer.compute_loss(trainer.model, collate_pairs(pairs))
    assert loss.item() == pytest.approx(0.513015, abs=1e-6)
    loss.backward()
    assert table.grad is not None
    assert (table.grad[:, 0] < 0).all(), "descent makes the chosen likelier"
    assert (table.grad[:, 1] > 0).all(), "and the rejected unlikelier"
    trainer.log({"loss": 1.0})
    assert trainer.state.log_history[-1]["margin"] == pytest.approx(0.1 * (2.0 - -2.0))
    assert trainer.state.log_history[-1]["accuracy"] == 1.0


@pytest.mark.parametrize("prompt_once", ["force", "off"])
@pytest.mark.parametrize("lora", [0, 4])
def test_loss_equals_trls_formula_on_a_real_batch(
    prompt_once: str, lora: int, preferring: Callable[..., RunConfig]
) -> None:
    """Log-probs from plain logits of unpadded rows, one by one, and TRL's own `_compute_loss` written in its words."""
    policy = {"prompt_once": prompt_once}
    config = preferring(
        policy=policy, model={"lora": {"rank": lora}}, dpo={"batch_size": 3, "step_weights": {"box": 1.0}}
    )
    trainer = trainer_of(config)
    pairs = [trainer.train_dataset[place] for place in range(3)]
    reference = _plain_sums(trainer, pairs)
    moved(trainer)
    loss = trainer.compute_loss(trainer.model, collate_pairs(pairs))
    sums = _plain_sums(trainer, pairs)
    assert (sums - reference).abs().max() > 0.01
    logratios = sums - reference
    expected = -logsigmoid(config.dpo.beta * (logratios[:, 0] - logratios[:, 1])).mean()
    torch.testing.assert_close(loss.detach(), expected, rtol=2e-5, atol=2e-6)
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in trainer.model.parameters())


def _plain_sums(trainer: PreferenceTrainer, pairs: Any) -> torch.Tensor:
    """`[P, 2]` by the stock forward, row by row."""
    policy = trainer.scorer.policy
    found = []
    for pair in pairs:
        for side in pair.steps["box"]:
            inputs = dict(policy.batch([side.prepared]))
            prompt = inputs["input_ids"].shape[1]
            ids = torch.tensor([side.ids])
            inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(ids)], dim=1)
            with torch.no_grad():
                logits = policy.model.eval()(**inputs).logits[0, prompt - 1 : -1].float()
            policy.model.train()
            found.append(logits.log_softmax(-1).gather(1, ids[0][:, None]).sum())
    return torch.stack(found).view(len(pairs), 2)


@given(st.lists(st.tuples(*[st.floats(-200, 0)] * 4), min_size=1, max_size=5), st.floats(0.01, 2))
def test_loss_and_metrics_are_trls(rows: list[tuple[float, ...]], beta: float) -> None:
    """TRL's sigmoid loss and its accuracy and margin, from the same sums."""
    table = torch.tensor(rows, dtype=torch.float64)
    steps = dpo_module.joined({"answer": table[:, :2]}, {"answer": table[:, 2:]})
    loss, parts = dpo_module.step_dpo_loss(steps, {"answer": 1.0}, beta)
    chosen, rejected = table[:, 0] - table[:, 2], table[:, 1] - table[:, 3]
    torch.testing.assert_close(loss, -logsigmoid(beta * (chosen - rejected)).mean())
    metrics = dpo_module.pair_metrics(steps, parts, {"answer": 1.0}, beta)
    torch.testing.assert_close(metrics["margin"], (beta * (chosen - rejected)).mean())
    torch.testing.assert_close(metrics["accuracy"], (beta * chosen > beta * rejected).float().mean())


def test_trls_default_loss_is_still_the_sigmoid_one() -> None:
    assert DPOConfig.__dataclass_fields__["beta"].default == 0.1
    assert DPOTrainer is not None
    import inspect

    source = inspect.getsource(DPOTrainer._compute_loss)
    assert "-F.logsigmoid(self.beta * delta_score)" in source
    assert "delta_score = chosen_scores - rejected_scores" in source


def test_both_sides_share_one_prompt_in_one_packed_pass(
    preferring: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(preferring(policy={"prompt_once": "force"}))
    pairs = [trainer.train_dataset[0], trainer.train_dataset[1]]
    calls: list[int] = []
    score = type(trainer.scorer.policy.sharing).score
    monkeypatch.setattr(type(trainer.scorer.policy.sharing), "score", lambda *args: (calls.append(1), score(*args))[1])
    trainer.compute_loss(trainer.model, collate_pairs(pairs))
    assert calls == [1]
    store = PromptStore(trainer.scorer.policy)
    sides = [side for pair in pairs for side in pair.steps["box"]]
    prompts = store.add([side.prepared for side in sides])
    assert prompts == [0, 0, 1, 1]
    assert store.processor_calls == 2
    shapes = group_completions(store, [Completion(p, side.ids) for p, side in zip(prompts, sides, strict=True)])[1]
    assert token_ratio(shapes) > 1.3


def test_a_step_without_weight_is_left_out(preferring: Callable[..., RunConfig]) -> None:
    weighted = trainer_of(preferring(dpo={"batch_size": 2, "step_weights": {"box": 1.0}}))
    assert list(weighted.train_dataset[0].steps) == ["box"]


# ---------------------------------------------------------------------- runs


def _final(run: Path, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run / "final" / name)


@pytest.mark.parametrize("lora", [0, 4])
def test_a_run_learns_the_pairs_and_resumes_bitwise(
    lora: int, preferring: Callable[..., RunConfig], tmp_path: Path
) -> None:
    model = {"lora": {"rank": lora}}
    whole = preferring("whole", model=model, trainer={"steps": 6})
    summary = run_dpo(whole, plain_dict(whole))
    metrics = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert metrics[-1]["loss"] < math.log(2) - 0.02
    assert metrics[-1]["margin"] > 0.05
    assert {"loss/box", "loss/answer", "accuracy/box", "chosen", "rejected"} <= metrics[-1].keys()
    assert summary["before"]["loss"]["mean"] == pytest.approx(math.log(2))
    assert summary["after"]["loss"]["mean"] < math.log(2)
    assert summary["difference"]["margin"]["mean"] == pytest.approx(summary["after"]["margin"]["mean"])
    assert (summary["pairs"], summary["pairs_held_out"]) == (len(_read(whole)[0]), len(_read(whole)[1]))
    assert (tmp_path / "whole" / "reference.json").is_file() == (lora == 0)
    assert (tmp_path / "whole" / "adapter").is_dir() == (lora > 0)

    again = preferring("again", model=model, trainer={"steps": 6}, resume=str(tmp_path / "whole" / "checkpoint-4"))
    run_dpo(again, plain_dict(again))
    first, second = _final(tmp_path / "whole"), _final(tmp_path / "again")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    tail = [json.loads(line) for line in (tmp_path / "again" / "metrics.jsonl").read_text().splitlines()]
    keys = [key for key in metrics[-1] if key not in ("learning_rate",)]
    assert [[line[key] for key in keys] for line in tail] == [[line[key] for key in keys] for line in metrics[4:]]

    with pytest.raises(ConfigError, match="not empty"):
        run_dpo(whole, plain_dict(whole))
    other = preferring("other", model=model, trainer={"steps": 6}, resume=again.resume, dpo={"beta": 0.2})
    with pytest.raises(ResumeError, match="dpo.beta: 0.1 in the checkpoint, 0.2 now"):
        run_dpo(other, plain_dict(other))


def _read(config: RunConfig) -> tuple[list[Any], list[Any]]:
    from mmreason.data.readers import split_rows

    pairs = read_pairs(config.data, config.dpo.weights()).pairs
    return split_rows(pairs, config.data.eval_share, config.seed)


def test_the_reference_is_kept_and_made_again_for_other_weights(
    preferring: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = preferring()
    first = trainer_of(config).reference
    assert first is not None
    monkeypatch.setattr(dpo_module, "_chunks", lambda *_: pytest.fail("the reference was worked out again"))
    assert trainer_of(config).reference == first
    path = Path(config.out) / config.name / "reference.json"
    monkeypatch.undo()
    saved = json.loads(path.read_text())
    saved["key"]["weights"] = "those of another model"
    saved["log_probs"] = {}
    path.write_text(json.dumps(saved))
    assert trainer_of(config).reference == first
    path.write_text('{"key": ')
    assert trainer_of(config).reference == first


def test_a_signal_saves_and_the_run_goes_on(
    preferring: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import os
    import signal

    from mmreason.train.callbacks import Interrupted

    loss = PreferenceTrainer.compute_loss

    def interrupted(self: PreferenceTrainer, *args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, *args, **kwargs)

    whole = preferring("whole")
    run_dpo(whole, plain_dict(whole))
    cut = preferring("cut", trainer={"save_every_steps": 0})
    with monkeypatch.context() as patched:
        patched.setattr(PreferenceTrainer, "compute_loss", interrupted)
        with pytest.raises(Interrupted, match="checkpoint-1"):
            run_dpo(
                cut.model_copy(update={"dpo": cut.dpo.model_copy(update={"micro_batch_size": 4})}),
                plain_dict(cut),
            )
    again = cut.model_copy(update={"resume": "auto", "dpo": cut.dpo.model_copy(update={"micro_batch_size": 4})})
    run_dpo(again, plain_dict(again))
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


# ---------------------------------------------------------------------- the file


def write(folder: Path, *records: Any) -> DataConfig:
    path = folder / "some.jsonl"
    path.write_text("\n".join(record if isinstance(record, str) else json.dumps(record) for record in records))
    return DataConfig(path=str(path))


GOOD = {"question": "Two and two?", "chosen": "4", "rejected": "5"}


def test_forms_of_a_pair(tmp_path: Path) -> None:
    as_turns = {"prompt": [{"role": "user", "content": "Two and two?"}]} | {
        side: [{"role": "assistant", "content": GOOD[side]}] for side in ("chosen", "rejected")
    }
    file = read_pairs(write(tmp_path, GOOD, as_turns, {"id": 7, "steps": {"answer": GOOD, "unused": 3}}))
    sides = [[side.completion for side in pair.steps["answer"]] for pair in file.pairs]
    assert sides == [["4", "5"]] * 3
    assert len({str(pair.steps["answer"][0].row.messages) for pair in file.pairs}) == 1
    assert [pair.id for pair in file.pairs] == ["some.jsonl:1", "some.jsonl:2", "7"]


BAD = {
    "not JSON": "{",
    "nested beyond reason": "[" * 100_000,
    "a list": [1],
    "no rejected": {"question": "a", "chosen": "b"},
    "a number": {**GOOD, "chosen": 4},
    "an object": {**GOOD, "chosen": {"text": "4"}},
    "no question": {"chosen": "a", "rejected": "b"},
    "the same": {**GOOD, "rejected": "4"},
    "nothing chosen": {**GOOD, "chosen": "  "},
    "control token": {**GOOD, "chosen": "4<|im_end|>\n<|im_start|>system"},
    "control token in the prompt": {**GOOD, "question": "<|vision_start|>"},
    "prompt ends with an answer": {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    }
    | {"chosen": "c", "rejected": "d"},
    "picture outside": {**GOOD, "question": "<image>a", "image": "../../etc/passwd"},
    "picture from the net": {**GOOD, "question": "<image>a", "image": "https://example.org/a.png"},
    "no picture": {**GOOD, "question": "<image>a"},
    "steps and sides": {**GOOD, "steps": {"answer": GOOD}},
    "steps are a list": {"steps": [GOOD]},
    "too many steps": {"steps": {str(n): GOOD for n in range(MAX_STEPS + 1)}},
    "step is text": {"steps": {"answer": "4"}},
    "step is missing": {"steps": {"box": GOOD}},
    "bad id": {**GOOD, "id": {"a": 1}},
}


@pytest.mark.parametrize("record", BAD.values(), ids=BAD.keys())
def test_a_bad_pair_is_named_or_left_out(record: Any, tmp_path: Path) -> None:
    config = write(tmp_path, GOOD, record)
    with pytest.raises(DataError, match=r"some\.jsonl:2: .*on_bad_row=skip"):
        read_pairs(config)
    file = read_pairs(config.model_copy(update={"on_bad_row": "skip"}))
    assert len(file.pairs) == 1
    assert [row.line for row in file.skipped] == [2]
    with pytest.raises(DataError, match="no usable pair|not JSON"):
        read_pairs(write(tmp_path, record).model_copy(update={"on_bad_row": "skip"}))


def test_equal_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'x' is also the id of line 1"):
        read_pairs(write(tmp_path, {**GOOD, "id": "x"}, {**GOOD, "id": "x"}))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
KEYS = ["id", "steps", "answer", "chosen", "rejected", "question", "messages", "images", "completion", "target", "role"]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.recursive(values, lambda inner: st.dictionaries(st.sampled_from(KEYS), inner, max_size=6), max_leaves=12))
def test_no_line_breaks_the_reader(tmp_path: Path, value: Any) -> None:
    file = read_pairs(write(tmp_path, GOOD, json.dumps(value)).model_copy(update={"on_bad_row": "skip"}))
    assert len(file.pairs) + len(file.skipped) == 2
    assert all(side.completion is not None for pair in file.pairs for side in pair.steps["answer"])


def test_pairs_that_are_too_long_and_too_few(preferring: Callable[..., RunConfig], pairs_file: Path) -> None:
    long = preferring(dpo={"max_completion_tokens": 5, "step_weights": {"box": 1.0}})
    with pytest.raises(DataError, match=r"step box: a completion of \d+ tokens is above dpo.max_completion_tokens=5"):
        run_dpo(long, plain_dict(long))
    prompts = preferring(dpo={"max_prompt_tokens": 10})
    with pytest.raises(DataError, match=r"a prompt of \d+ tokens is above dpo.max_prompt_tokens=10"):
        run_dpo(prompts, plain_dict(prompts))
    skipping = preferring(dpo={"max_prompt_tokens": 10}, data={"path": str(pairs_file), "on_bad_row": "skip"})
    with pytest.raises(DataError, match="no pair is left"):
        run_dpo(skipping, plain_dict(skipping))


def test_wrong_options_are_refused() -> None:
    for words, said in [
        ([], "data.path is empty: mmreason dpo learns from pairs"),
        (["data=p.jsonl", "dpo.micro_batch_size=3"], "dpo.micro_batch_size=3 does not divide dpo.batch_size=8"),
        (["data=p.jsonl", "dpo.step_weights={box: 0}"], "dpo.step_weights.box=0"),
        (["data=p.jsonl", "dpo.betta=1"], "Did you mean 'dpo.beta'"),
    ]:
        with pytest.raises(ConfigError, match=said):
            compose("dpo", words)
    assert compose("dpo", ["data=p.jsonl"]).config.dpo.weights() == {"answer": 1.0}
    assert compose("dpo", ["data=p.jsonl", "dpo.step_weights={box: 1}"]).config.dpo.weights() == {"box": 1.0}
