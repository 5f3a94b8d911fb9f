"""The reward `classifier` on a tiny real BERT with a real tokenizer: values, labels, hostile text, refusals, training."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

from mmreason.config.schema import RewardConfig
from mmreason.errors import ConfigError, PluginError
from mmreason.records import ImageGeometry, Rollout, Row
from mmreason.reward_kit.check import check_reward
from mmreason.rewards.classifier import classifier
from mmreason.run_records import read_metrics, read_rollouts
from mmreason.scoring import RewardRunner, ScoreTable
from mmreason.text import extract_answer

WORDS = [
    "red",
    "blue",
    "mug",
    "the",
    "a",
    "is",
    "what",
    "colour",
    "?",
    ".",
    "good",
    "bad",
    *"abcdefghijklmnopqrstuvwxyz",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def save_classifier(folder: Path, num_labels: int = 1, names: tuple[str, ...] = (), seed: int = 0) -> str:
    """A random BERT of two layers with a WordPiece tokenizer, as transformers saves them."""
    vocabulary = [*SPECIAL, *WORDS, *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = {f"{word}_token": f"[{word.upper()}]" for word in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **named).save_pretrained(folder)
    torch.manual_seed(seed)
    labels = dict(enumerate(names)) or {n: f"LABEL_{n}" for n in range(num_labels)}
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        id2label=labels,
        label2id={name: number for number, name in labels.items()},
        initializer_range=1.0,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def one_logit(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_classifier(tmp_path_factory.mktemp("one_logit"))


@pytest.fixture(scope="session")
def three_labels(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_classifier(tmp_path_factory.mktemp("three"), 3, ("bad", "fair", "good"))


def rollout(text: str, group: int = 0, question: str = "what colour is the mug ?") -> Rollout:
    row = Row(f"row {group}", ({"role": "user", "content": [{"type": "text", "text": question}]},), (), {})
    return Rollout(row, group, (), text, extract_answer(text), len(text), "stop", (), "relative_1000")


def answered(*answers: str) -> list[Rollout]:
    return [rollout(f"<answer>{answer}</answer>") for answer in answers]


def score(rollouts: list[Rollout], path: str, **options: Any) -> ScoreTable:
    section = {"classifier": {"path": path, **options}, "max_failure_share": 1.0}
    return RewardRunner(RewardConfig.model_validate(section)).score(rollouts)


def logits_of(path: str, *texts: str) -> list[float]:
    """Logits for one text or pair, by transformers alone."""
    model = BertForSequenceClassification.from_pretrained(path).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    with torch.no_grad():
        found: list[float] = model(**tokenizer(*texts, return_tensors="pt")).logits[0].tolist()
    return found


def sigmoid(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-value))


# Values


def test_values_are_those_of_transformers(one_logit: str) -> None:
    texts = ["red mug", "blue", "the mug is red .", "a bad mug"]
    logits = [logits_of(one_logit, text)[0] for text in texts]
    assert max(logits) - min(logits) > 0.01
    bare = score(answered(*texts), one_logit, activation="none").values[:, 0]
    assert bare.tolist() == pytest.approx(logits, abs=2e-5)
    squashed = score(answered(*texts), one_logit).values[:, 0]
    assert squashed.tolist() == pytest.approx([sigmoid(value) for value in logits], abs=2e-5)


def test_labels_by_number_and_name(three_labels: str) -> None:
    logits = torch.tensor(logits_of(three_labels, "red mug"))
    chances = logits.softmax(0).tolist()
    for number, name in enumerate(("bad", "fair", "good")):
        for label in (number, name):
            value = score(answered("red mug"), three_labels, label=label, activation="softmax").values[0, 0]
            assert value == pytest.approx(chances[number], abs=2e-5)
    assert score(answered("red mug"), three_labels, label="good").values[0, 0] == pytest.approx(
        sigmoid(float(logits[2])), abs=2e-5
    )


def test_question_and_completion(one_logit: str) -> None:
    text = "<think>the mug</think><answer>red</answer>"
    pair = score([rollout(text)], one_logit, with_question=True, activation="none").values[0, 0]
    assert pair == pytest.approx(logits_of(one_logit, "what colour is the mug ?", "red")[0], abs=2e-5)
    whole = score([rollout(text)], one_logit, text="completion", activation="none").values[0, 0]
    assert whole == pytest.approx(logits_of(one_logit, text)[0], abs=2e-5)
    assert pair != whole


def test_boxes_in_the_question_are_read(one_logit: str) -> None:
    boxes = {"type": "boxes", "boxes": [[10, 20, 30, 40]], "label": "mug"}
    content = [{"type": "image"}, {"type": "text", "text": "what colour is"}, boxes]
    seen = (ImageGeometry((200, 400), (28, 56), 14, 2),)
    one = rollout("<answer>red</answer>")
    one = replace(one, row=replace(one.row, messages=({"role": "user", "content": content},)), geometry=seen)
    pair = score([one], one_logit, with_question=True, activation="none").values[0, 0]
    asked = 'what colour is {"mug": [[50, 50, 150, 100]]}'
    assert pair == pytest.approx(logits_of(one_logit, asked, "red")[0], abs=2e-5)
    assert pair != pytest.approx(logits_of(one_logit, "what colour is", "red")[0], abs=2e-5)


def test_without_an_answer(one_logit: str) -> None:
    table = score([rollout("red"), *answered("")], one_logit)
    assert table.values[0, 0] == 0.0
    assert table.values[1, 0] > 0.0
    assert score([rollout("red")], one_logit, no_answer=-9.5, activation="none").values[0, 0] == -9.5
    assert score([rollout("red")], one_logit, text="completion").values[0, 0] > 0.0


def test_a_group_is_scored_in_few_forwards(one_logit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    forward = BertModel.forward

    def watched(self: BertModel, input_ids: torch.Tensor, **arguments: Any) -> Any:
        shapes.append(tuple(input_ids.shape))
        return forward(self, input_ids, **arguments)

    monkeypatch.setattr(BertModel, "forward", watched)
    texts = ["red", "blue", "red", "a mug", "the", "red"]
    values = score(answered(*texts), one_logit).values[:, 0]
    assert [shape[0] for shape in shapes] == [4]  # each text once
    assert values[0] == values[2] == values[5]
    shapes.clear()
    assert score(answered(*texts), one_logit, batch_size=3).values[:, 0].tolist() == values.tolist()
    assert [shape[0] for shape in shapes] == [3, 1]


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.text(max_size=200), min_size=1, max_size=5), alone=st.integers(min_value=0))
def test_any_text_has_a_value_of_its_own(one_logit: str, texts: list[str], alone: int) -> None:
    rollouts = [rollout(text) for text in texts]
    table = score(rollouts, one_logit, text="completion")
    assert not table.failures
    assert ((table.values >= 0.0) & (table.values <= 1.0)).all()
    index = alone % len(texts)
    by_itself = score([rollouts[index]], one_logit, text="completion").values[0, 0]
    assert by_itself == pytest.approx(table.values[index, 0], abs=2e-5)


def test_hostile_texts(one_logit: str) -> None:
    texts = ["a" * 400_000, "\ud800 red", "[SEP]" * 1000, "red\x00mug", " " * 100_000, "é" * 90_000]
    table = score([rollout(text) for text in texts], one_logit, text="completion", with_question=True)
    assert not table.failures
    assert ((table.values >= 0.0) & (table.values <= 1.0)).all()


def test_special_tokens_in_model_text_are_text(one_logit: str) -> None:
    """`[SEP]` as a model writes it is three pieces of text, and nothing like the end of the sequence."""
    written, spelt = (score(answered(text), one_logit).values[0, 0] for text in ("red [SEP] mug", "red [ sep ] mug"))
    assert written == spelt
    assert written != pytest.approx(sigmoid(logits_of(one_logit, "red [SEP] mug")[0]), abs=1e-4)


def test_it_passes_the_check(one_logit: str) -> None:
    report = check_reward("classifier", {"path": one_logit})
    # Random weights may like a longer text better; everything else holds.
    assert {finding.check for finding in report.failures} <= {"lengths"}
    assert {"range", "failures", "deterministic", "order", "unicode", "hostile", "time"} <= {
        finding.check for finding in report.findings if finding.verdict == "ok"
    }


def test_random_numbers_are_not_touched(one_logit: str, tmp_path: Path) -> None:
    copy = shutil.copytree(one_logit, tmp_path / "copy")  # not loaded yet
    torch.manual_seed(5)
    expected = torch.rand(3).tolist()
    torch.manual_seed(5)
    score(answered("red"), str(copy))
    assert torch.rand(3).tolist() == expected


# Refusals


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "reward.classifier.path: needs a value: reward.classifier.path=FOLDER_OR_HUB_ID"),
        ({"path": "/nowhere/at/all"}, "no classifier there: give a folder with config.json"),
        ({"path": ""}, "no classifier there"),
        ({"path": "org/name", "max_tokens": 1}, "reward.classifier.max_tokens"),
        ({"path": "org/name", "activation": "tanh"}, "reward.classifier.activation"),
        ({"path": "org/name", "lable": 1}, "Did you mean 'label'?"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_loaded(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        RewardRunner(RewardConfig.model_validate({"classifier": options}))
    assert words in str(error.value)


def broken(source: str, folder: Path, change: Callable[[Path], object]) -> str:
    copied = shutil.copytree(source, folder)
    change(copied)
    return str(copied)


def without_head(folder: Path) -> None:
    config = BertConfig.from_pretrained(folder)
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)


def with_own_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "own.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")


def as_pickle(folder: Path) -> None:
    model = BertForSequenceClassification.from_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without_head, "it lacks weights (classifier.bias, classifier.weight)"),
        (with_own_code, "cannot be loaded"),
        (as_pickle, "cannot be loaded"),
        (truncated, "cannot be loaded"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "cannot be loaded"),
    ],
)
def test_what_cannot_be_loaded_is_a_failure_that_says_why(
    change: Callable[[Path], object], words: str, one_logit: str, tmp_path: Path
) -> None:
    path = broken(one_logit, tmp_path / "broken", change)
    table = score(answered("red", "blue"), path)
    assert dict(table.failures) == {("classifier", "exception"): 2}
    assert f"classifier {path}: " in table.first_traceback["classifier"]
    assert words in table.first_traceback["classifier"]
    assert not (Path(path) / "ran").exists()
    # Nor is it loaded again for each group.
    shutil.rmtree(path)
    assert words in score(answered("red"), path_again(path)).first_traceback["classifier"]


def path_again(path: str) -> str:
    """The folder is gone, but its config must be there for the config to be accepted."""
    Path(path).mkdir()
    (Path(path) / "config.json").write_text("{}")
    return path


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "say which label counts, reward.classifier.label=…: 0 (bad), 1 (fair), 2 (good)"),
        ({"label": "great"}, "there is no label 'great'. Labels: 0 (bad), 1 (fair), 2 (good)"),
        ({"label": 3}, "there is no label 3"),
        ({"label": -1}, "there is no label -1"),
    ],
)
def test_wrong_labels(options: dict[str, Any], words: str, three_labels: str) -> None:
    assert words in score(answered("red"), three_labels, **options).first_traceback["classifier"]


def test_softmax_over_one_logit_says_nothing(one_logit: str) -> None:
    with pytest.raises(PluginError, match="use activation=sigmoid"):
        classifier(answered("red"), ["red"], path=one_logit, activation="softmax")


def test_listing_rewards_imports_no_torch() -> None:
    program = "import sys; from mmreason.reward_kit.commands import list_rewards; list_rewards(); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "classifier" in done.stdout


# Training


def test_two_steps_of_training(one_logit: str, make_config: Callable[..., Any], tmp_path: Path) -> None:
    from mmreason.train.run import run_train

    section = {"classifier": {"path": one_logit, "text": "completion", "with_question": True, "weight": 1.0}}
    model = {"name": "tiny", "max_pixels": 12544, "min_pixels": 3136}
    config = make_config(reward=section, model=model, rollout={"max_new_tokens": 16})
    run_train(config, config.model_dump(mode="json"))
    lines = list(read_metrics(tmp_path / "runs" / "run" / "metrics.jsonl"))
    assert len(lines) == 2
    assert all(0.0 < line["rewards/classifier"] < 1.0 for line in lines)
    records = list(read_rollouts(tmp_path / "runs" / "run" / "rollouts.jsonl"))
    question = " ".join(part["text"] for part in records[0]["messages"][-1]["content"] if part["type"] == "text")
    expected = sigmoid(logits_of(one_logit, question, records[0]["completion"])[0])
    assert records[0]["rewards"]["classifier"] == pytest.approx(expected, abs=2e-5)
