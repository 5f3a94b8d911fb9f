"""What all tests share: no network, one thread, and tiny random models of real architectures."""

from __future__ import annotations

import os

# Before torch and the hub client are imported: they read these once. One thread is 20 times faster on tiny
# models.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# The same examples in every run, so that a change is judged by what it did; `make fuzz` looks for new ones.
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("search", derandomize=False)
settings.load_profile("repeatable")

#: A reward that a random model earns now and then, so that there is something to learn from: share of vowels.
VOWELS = '''
from mmreason.scoring import reward

@reward(range=(0.0, 1.0))
def vowels(completion: str) -> float:
    """Share of vowels in the completion."""
    return sum(completion.count(letter) for letter in "aeiou") / max(1, len(completion))
'''


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """`random_model("qwen2_5_vl")`: folder of a tiny random checkpoint of that family, made once."""
    made: dict[str, str] = {}

    def make(family: str = "qwen2_5_vl") -> str:
        if family not in made:
            from mmreason.policy.tiny import build_model, build_processor

            folder = tmp_path_factory.mktemp(family)
            processor = build_processor(family, max_pixels=12544)
            model = build_model(
                family,
                hidden_size=32,
                num_layers=2,
                vision_hidden_size=32,
                vision_layers=2,
                processor=processor,
            )
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            made[family] = str(folder)
        return made[family]

    return make


@pytest.fixture(scope="session")
def vowels_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("rewards") / "vowels.py"
    path.write_text(VOWELS)
    return str(path)


@pytest.fixture(scope="session")
def config_in(random_model: Callable[[str], str], vowels_file: str) -> Callable[..., Any]:
    """`config_in(folder, trainer={...}, family="qwen3_vl")`: a run of seconds on a random model."""

    def make(out: Path, family: str = "qwen2_5_vl", **sections: Any) -> Any:
        from mmreason.config.schema import RunConfig

        values: dict[str, Any] = {
            "out": str(out),
            "name": "run",
            "model": {"name": random_model(family), "max_pixels": 12544, "min_pixels": 3136},
            "task": {"name": "grounding"},
            "reward": {"files": (vowels_file,), "vowels": {"weight": 1.0}, "format": {"weight": 0.0}},
            "rollout": {"prompts_per_step": 2, "group_size": 4, "max_new_tokens": 6},
            "trainer": {"steps": 2, "learning_rate": 3e-3, "eval_rows": 0, "keep_checkpoints": 10},
        }
        for key, value in sections.items():
            values[key] = {**values[key], **value} if isinstance(value, dict) and key in values else value
        return RunConfig(**values)

    return make


@pytest.fixture
def make_config(config_in: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """`config_in` with the test's own `runs` folder."""
    return functools.partial(config_in, tmp_path / "runs")


@pytest.fixture(scope="session")
def make_trainer() -> Callable[..., Any]:
    """`make_trainer(config)`: policy, rows and trainer of a run, as `mmreason train` makes them."""

    def make(config: Any, **options: Any) -> Any:
        from transformers import set_seed

        from mmreason.policy.policy import Policy
        from mmreason.run_records import RunFolder
        from mmreason.train.grpo import MMReasonGRPOTrainer
        from mmreason.train.run import training_rows

        set_seed(config.seed)
        policy = Policy.load(config.model, device="cpu", seed=config.seed)
        rows, _ = training_rows(config, policy)
        return MMReasonGRPOTrainer(policy, rows, config, RunFolder(Path(config.out) / config.name), **options)

    return make


@pytest.fixture(autouse=True)
def _accelerator_state_is_not_shared() -> Iterator[None]:
    """Accelerate keeps process-wide singletons; a trainer must not see those of another test."""
    yield
    import sys

    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state()
        GradientState._reset_state()


@pytest.fixture(scope="session")
def scripted_session(config_in: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model with tools that says what `agent_sessions.TURNS` say."""
    from agent_sessions import AGENT, ScriptedSession

    from mmreason.config.schema import RewardConfig

    options: dict[str, Any] = {"agent": AGENT, "rollout": {"max_new_tokens": 1500}, "policy": {"prompt_once": "force"}}
    reward = RewardConfig.model_validate({"exact": {"weight": 1.0}, "format": {"weight": 0.2}})
    config = config_in(tmp_path_factory.mktemp("sessions"), **options).model_copy(update={"reward": reward})
    return ScriptedSession(config)
