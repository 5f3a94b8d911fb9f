"""`mmreason dpo`: preference training on pairs of completions, by steps where the pairs have several.

What enters: a checked `RunConfig` whose `data.path` names pairs (`mmreason.data.pairs`). What leaves: a run folder with
`metrics.jsonl`, sealed checkpoints that continue bitwise, `final/`, and a summary with held-out pairs before and after.

The loss of a pair is `Σ over steps of weight · -log σ(β [(lp - ref) of chosen - (lp - ref) of rejected])`, sums of log-probs over a
completion and its end of turn (DPO, arXiv 2305.18290; by steps with weights, VisRL, arXiv 2503.07523). The reference is the
policy as the run began: under LoRA the weights below the adapters, otherwise sums worked out once and kept in `reference.json`.
The two completions of a pair, and those of all pairs of a micro-batch, share one packed pass; equal prompts are read once.

Legend of shapes: P pairs of a micro-batch, S steps, T tokens of a padded row.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset
from trl.trainer.utils import add_fused_lm_head

from mmreason.config.schema import RunConfig
from mmreason.data.pairs import PairFile, PreferencePair, Side, read_pairs
from mmreason.data.readers import SkippedRow, image_loader, split_rows
from mmreason.errors import DataError
from mmreason.images import ImageLoader
from mmreason.objectives.preference import PairLogProbs, step_dpo_loss
from mmreason.policy.policy import Policy, Prepared
from mmreason.prompt_once.packing import Completion, pack
from mmreason.prompt_once.prompts import PromptStore, bare_model
from mmreason.run_records import RunFolder, to_plain, write_atomically
from mmreason.stats import mean_interval, paired_difference
from mmreason.train.callbacks import Interrupted, SignalWatch, StepCallback, process_state
from mmreason.train.checkpoints import check_same_run, drop_later, read_manifest, weights_digest
from mmreason.train.demonstrations import Collator, Demonstration
from mmreason.train.grpo import TrainingDiverged
from mmreason.train.opening import open_folder, run_identity, settle
from mmreason.train.sft import SupervisedTrainer, sft_arguments

REFERENCE = "reference.json"
#: Pair id -> step -> reference's sums of log-probs of (chosen, rejected).
Reference = Mapping[str, Mapping[str, Sequence[float]]]
Scores = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class PreparedSide:
    """A prompt ready for the model, and the completion with its end of turn as tokens."""

    prepared: Prepared
    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class PreparedPair:
    """One pair ready for the model: step -> (chosen, rejected)."""

    id: str
    steps: Mapping[str, tuple[PreparedSide, PreparedSide]]


class PairDataset(Dataset[PreparedPair]):
    """Pairs by position, in a new seeded order every epoch; images are opened when a position is asked for.

    Args:
        policy: writes prompts and tokenizes.
        pairs: at least one.
        loader: opens their images.
        count: positions.
        seed: of the orders.
    """

    def __init__(
        self, policy: Policy, pairs: Sequence[PreferencePair], loader: ImageLoader, count: int, seed: int
    ) -> None:
        self.policy, self.pairs, self.loader, self.count, self.seed = policy, pairs, loader, count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> PreparedPair:
        epoch, place = divmod(position, len(self.pairs))
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.pairs))
        return self.prepared(self.pairs[int(order[place])])

    def prepared(self, pair: PreferencePair) -> PreparedPair:
        steps = {}
        for name, (chosen, rejected) in pair.steps.items():
            first = self.policy.prepare(chosen.row, self.loader)
            same = (chosen.row.messages, chosen.row.images) == (rejected.row.messages, rejected.row.images)
            second = first if same else self.policy.prepare(rejected.row, self.loader)
            steps[name] = (self._side(first, chosen), self._side(second, rejected))
        return PreparedPair(pair.id, steps)

    def _side(self, prepared: Prepared, side: Side) -> PreparedSide:
        tokenizer = self.policy.tokenizer
        ids = tokenizer(side.completion + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        return PreparedSide(prepared, side.completion, tuple(ids))


def collate_pairs(items: Sequence[PreparedPair]) -> dict[str, list[PreparedPair]]:
    """A micro-batch: the pairs as they are; packing makes tensors of them."""
    return {"pairs": list(items)}


class PairScorer:
    """Sums of log-probs of both sides of pairs, prompts shared where the policy shares them.

    Args:
        policy: its model gets TRL's fused head, once.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._collate = Collator(policy)
        add_fused_lm_head(bare_model(policy.model))

    def sums(self, model: Any, pairs: Sequence[PreparedPair]) -> dict[str, torch.Tensor]:
        """Step -> `[P, 2]`, chosen and rejected, by `model` (the policy's, or the trainer's wrapping of it)."""
        sides = [side for pair in pairs for both in pair.steps.values() for side in both]
        flat = self._packed(model, sides) if self.policy.sharing is not None else self._padded(model, sides)
        names = list(pairs[0].steps)
        table = flat.view(len(pairs), len(names), 2)
        return {name: table[:, place] for place, name in enumerate(names)}

    def _packed(self, model: Any, sides: Sequence[PreparedSide]) -> torch.Tensor:
        sharing = self.policy.sharing
        assert sharing is not None  # `sums` asks
        store = PromptStore(self.policy)
        prompts = store.add([side.prepared for side in sides])
        completions = [Completion(prompt, side.ids) for prompt, side in zip(prompts, sides, strict=True)]
        packing = pack(store, completions, sharing.token_budget, self.policy.device)
        found = torch.zeros(len(sides), device=self.policy.device)
        for inputs in packing.inputs:
            log_probs = sharing.score(model, inputs, store).log_probs[0].float()
            found = found.index_add(0, inputs.rows, log_probs)
        return found

    def _padded(self, model: Any, sides: Sequence[PreparedSide]) -> torch.Tensor:
        batch = self._collate([Demonstration.of_text(self.policy, side.prepared, side.text) for side in sides])
        inputs = {name: tensor.to(self.policy.device) for name, tensor in batch.items()}
        summed: torch.Tensor = model(**inputs, fused_lm_head=True).log_probs.float().sum(dim=1)
        return summed


class PreferenceTrainer(SupervisedTrainer):
    """`SupervisedTrainer` with the DPO loss.

    Args:
        scorer: of the policy that is trained.
        config: the run.
        reference: sums of the frozen start; `None` under LoRA, where the adapters are switched off instead.
    """

    def __init__(self, scorer: PairScorer, config: RunConfig, reference: Reference | None, **kwargs: Any) -> None:
        self.scorer, self.run_config, self.reference = scorer, config, reference
        self._told: dict[str, list[torch.Tensor]] = defaultdict(list)
        self.step_callback: StepCallback | None = None
        super().__init__(**kwargs)
        # The mean over a micro-batch's pairs: micro-batches of a step are averaged.
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Why: pairs, not labels, say what is to be learned."""
        del return_outputs, num_items_in_batch
        pairs: list[PreparedPair] = inputs["pairs"]
        dpo = self.run_config.dpo
        steps = joined(self.scorer.sums(model, pairs), self.reference_sums(pairs))
        loss, parts = step_dpo_loss(steps, dpo.weights(), dpo.beta)
        if not bool(torch.isfinite(loss)):
            raise TrainingDiverged(
                f"step {self.state.global_step + 1}: loss {loss.item():.3g}; the optimizer was not run. "
                "Usual causes: a learning rate that is too high, 16-bit overflow."
            )
        for name, value in pair_metrics(steps, parts, dpo.weights(), dpo.beta).items():
            self._told[name].append(value)
        return loss

    @torch.no_grad()
    def reference_sums(self, pairs: Sequence[PreparedPair]) -> dict[str, torch.Tensor]:
        """Step -> `[P, 2]` of the frozen start."""
        if self.reference is not None:
            return {
                name: torch.tensor([self.reference[pair.id][name] for pair in pairs], device=self.args.device)
                for name in pairs[0].steps
            }
        model = self.scorer.policy.model
        with model.disable_adapter():
            return self.scorer.sums(model, pairs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Why: the numbers of the step's pairs go with its loss; means over micro-batches and processes."""
        told, self._told = self._told, defaultdict(list)
        means = {name: torch.stack(values).mean() for name, values in told.items()}
        if "loss" in logs and means:
            gathered = self.accelerator.gather(torch.stack(list(means.values()))[None]).mean(dim=0)
            logs = {**logs, **dict(zip(means, gathered.tolist(), strict=True))}
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        """Why: there are no token tensors to count."""
        del inputs
        return 0

    def any_process(self, flag: bool) -> bool:
        """True if `flag` is true on any process."""
        return bool(self.accelerator.gather(torch.tensor([float(flag)], device=self.args.device)).max() > 0)


def joined(sums: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor]) -> dict[str, PairLogProbs]:
    """Step -> the four `[P]` of the loss, from step -> `[P, 2]` of policy and reference."""
    return {
        name: PairLogProbs(both[:, 0], both[:, 1], reference[name][:, 0], reference[name][:, 1])
        for name, both in sums.items()
    }


def margins(steps: Mapping[str, PairLogProbs], weights: Mapping[str, float], beta: float) -> torch.Tensor:
    """`[P]` weighted mean over steps of `β [(lp - ref) of chosen - (lp - ref) of rejected]`."""
    found = [
        weights[name] * beta * ((s.chosen - s.ref_chosen) - (s.rejected - s.ref_rejected)) for name, s in steps.items()
    ]
    return torch.stack(found).sum(dim=0) / sum(weights.values())


def pair_metrics(
    steps: Mapping[str, PairLogProbs], parts: Mapping[str, torch.Tensor], weights: Mapping[str, float], beta: float
) -> dict[str, torch.Tensor]:
    """What to log of a micro-batch: scalars, detached.

    `margin`, and `accuracy`: the share of pairs whose margin is above 0; `chosen` and `rejected`: `β (lp - ref)`; and of each
    step its loss and accuracy, where there are several.
    """
    with torch.no_grad():
        margin = margins(steps, weights, beta)
        result = {"margin": margin.mean(), "accuracy": (margin > 0).float().mean()}
        for side in ("chosen", "rejected"):
            gains = [getattr(s, side) - getattr(s, f"ref_{side}") for s in steps.values()]
            result[side] = beta * torch.stack(gains).mean()
        if len(steps) > 1:
            for name, s in steps.items():
                right = margins({name: s}, weights, beta) > 0
                result |= {f"loss/{name}": parts[name], f"accuracy/{name}": right.float().mean()}
    return result


# ---------------------------------------------------------------------- the run


def run_dpo(config: RunConfig, plain: dict[str, Any]) -> dict[str, Any]:
    """Train on pairs and write the run folder; returns the summary.

    Raises:
        ConfigError, DataError, ImageError, ModelError, ResumeError, TrainingDiverged: the message says what to do.
        Interrupted: SIGTERM or SIGINT; a checkpoint was saved.
    """
    started = time.monotonic()
    main = process_state().is_main_process
    settle(config)
    folder = RunFolder(Path(config.out) / config.name)
    identity = run_identity(config)
    checkpoint = open_folder(
        config, folder, lambda manifest: check_same_run(manifest["config"], identity, manifest["step"])
    )
    file = read_pairs(config.data, config.dpo.weights())
    policy = Policy.load(config.model, seed=config.seed)
    policy.share_prompts(config.policy)
    data = _Data.of(config, policy, file)
    if main:
        folder.write_config(plain)
    with SignalWatch() as watch:
        trainer, before = _trainer(config, policy, data, folder, identity, watch)
        if main:
            step = read_manifest(checkpoint)["step"] if checkpoint else 0
            drop_later(folder, step)
            folder.truncate_after(step)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if trainer.step_callback is not None and trainer.step_callback.interrupted:
            raise Interrupted(
                f"stopped: saved {folder.checkpoints()[-1]}. Continue with the same command and resume=auto "
                f"name={folder.path.name}.",
                watch.caught or 15,
            )
        after = held_out_scores(trainer, data) if data.held_out else {}
    summary = _summary(config, folder, data, before, after) | {
        "steps": trainer.state.global_step,
        "seconds": round(time.monotonic() - started, 1),
    }
    if main:
        policy.save(folder.final)
        if config.model.lora.rank > 0:
            policy.model.save_pretrained(folder.path / "adapter", selected_adapters=["default"])
        folder.write_summary(summary)
        _tell(summary, data, before, after)
    return summary


@dataclass(frozen=True)
class _Data:
    """The pairs of a run: to learn from, held out, and what was left out."""

    file: PairFile
    train: PairDataset
    held_out: list[PreparedPair]
    skipped: list[SkippedRow]

    @classmethod
    def of(cls, config: RunConfig, policy: Policy, file: PairFile) -> _Data:
        loader = image_loader(config.data)
        checked = PairDataset(policy, file.pairs, loader, len(file.pairs), config.seed)
        skipped = list(file.skipped)
        usable = []
        for pair in file.pairs:
            problem = _too_long(config, policy, checked.prepared(pair))
            if problem is None:
                usable.append(pair)
            elif config.data.on_bad_row == "raise":
                raise DataError(f"{file.path}: {problem}, or leave such pairs out with data.on_bad_row=skip")
            else:
                skipped.append(SkippedRow(0, problem, "too long"))
        train, held_out = split_rows(usable, config.data.eval_share, config.seed)
        if not train:
            raise DataError(
                f"{file.path}: no pair is left to learn from: {len(skipped)} left out, {len(held_out)} held out"
            )
        count = config.trainer.steps * config.dpo.batch_size * process_state().num_processes
        kept = [checked.prepared(pair) for pair in held_out[: config.trainer.eval_rows]]
        return cls(file, PairDataset(policy, train, loader, count, config.seed), kept, skipped)


def _too_long(config: RunConfig, policy: Policy, pair: PreparedPair) -> str | None:
    """What of a pair is longer than `dpo.*` allows; `None` if nothing is."""
    for name, sides in pair.steps.items():
        for side in sides:
            if len(side.ids) > config.dpo.max_completion_tokens:
                limit = f"dpo.max_completion_tokens={config.dpo.max_completion_tokens}"
                return f"pair {pair.id}, step {name}: a completion of {len(side.ids)} tokens is above {limit}; raise it"
            text = policy.tokenizer(policy.render(side.prepared.messages), add_special_tokens=False)["input_ids"]
            tokens = len(text) + sum(geometry.num_tokens - 1 for geometry in side.prepared.geometry)
            if tokens > config.dpo.max_prompt_tokens:
                limit = f"dpo.max_prompt_tokens={config.dpo.max_prompt_tokens}"
                return f"pair {pair.id}, step {name}: a prompt of {tokens} tokens is above {limit}; raise it"
    return None


def _trainer(
    config: RunConfig,
    policy: Policy,
    data: _Data,
    folder: RunFolder,
    identity: Mapping[str, Any],
    watch: SignalWatch,
) -> tuple[PreferenceTrainer, Scores]:
    """The trainer, with its reference, and the held-out scores of the start."""
    micro = config.dpo.micro_batch_size or config.dpo.batch_size
    arguments = sft_arguments(
        config,
        folder.path,
        config.trainer.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=config.dpo.batch_size // micro,
        adam_beta2=0.999,
        save_strategy="no",
        logging_steps=1,
    )
    trainer = PreferenceTrainer(
        PairScorer(policy),
        config,
        None,
        folder=folder,
        keep_checkpoints=config.trainer.keep_checkpoints,
        identity=dict(identity),
        model=policy.model,
        args=arguments,
        train_dataset=data.train,
        data_collator=collate_pairs,
        processing_class=policy.processor,
    )
    trainer.step_callback = StepCallback(
        folder, 1, config.trainer.save_every_steps, watch, trainer.any_process, (_Printer(config.trainer.steps),)
    )
    trainer.add_callback(trainer.step_callback)
    if config.model.lora.rank == 0:
        with process_state().main_process_first():
            trainer.reference = reference_table(trainer, data, folder, identity, micro)
    return trainer, _start_scores(trainer, data) if data.held_out else {}


def reference_table(
    trainer: PreferenceTrainer, data: _Data, folder: RunFolder, identity: Mapping[str, Any], micro: int
) -> Reference:
    """Sums of the policy as it is now for all pairs: read from `reference.json` if they are of the same pairs and weights."""
    path = folder.path / REFERENCE
    policy = trainer.scorer.policy
    key = to_plain(
        {
            "pairs": identity["data_file_sha256"],
            "weights": weights_digest(policy.model),
            "model": identity["model"],
            "steps": list(trainer.run_config.dpo.weights()),
            "ids": [pair.id for pair in data.train.pairs] + [pair.id for pair in data.held_out],
        }
    )
    if path.is_file():
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            if saved["key"] == key:
                table: Reference = saved["log_probs"]
                return table
        except (ValueError, KeyError, TypeError):
            print(f"{path} is damaged: the reference is worked out again")
    result: dict[str, dict[str, list[float]]] = {}
    with scoring(trainer):
        for chunk in _chunks(data, micro):
            sums = trainer.scorer.sums(policy.model, chunk)
            for place, pair in enumerate(chunk):
                result[pair.id] = {name: both[place].tolist() for name, both in sums.items()}
    if process_state().is_main_process:
        write_atomically(folder.create().path / REFERENCE, json.dumps({"key": key, "log_probs": result}).encode())
    return result


def _chunks(data: _Data, size: int) -> Iterator[list[PreparedPair]]:
    pairs = data.train.pairs
    for start in range(0, len(pairs), size):
        yield [data.train.prepared(pair) for pair in pairs[start : start + size]]
    for start in range(0, len(data.held_out), size):
        yield data.held_out[start : start + size]


@contextmanager
def scoring(trainer: PreferenceTrainer) -> Iterator[None]:
    """No gradient, no dropout, the trainer's precision."""
    model = trainer.scorer.policy.model
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), trainer.accelerator.autocast():
            yield
    finally:
        model.train(was_training)


# ---------------------------------------------------------------------- held-out pairs


def held_out_scores(trainer: PreferenceTrainer, data: _Data) -> Scores:
    """Of each held-out pair: `loss`, `margin`, `accuracy` (margin above 0), and `likelier`: the policy gives chosen more than rejected."""
    dpo, policy = trainer.run_config.dpo, trainer.scorer.policy
    weights = dpo.weights()
    found: dict[str, list[float]] = defaultdict(list)
    with scoring(trainer):
        for start in range(0, len(data.held_out), dpo.batch_size):
            pairs = data.held_out[start : start + dpo.batch_size]
            steps = joined(trainer.scorer.sums(policy.model, pairs), trainer.reference_sums(pairs))
            margin = margins(steps, weights, dpo.beta)
            found["margin"] += margin.tolist()
            found["accuracy"] += (margin > 0).float().tolist()
            for place in range(len(pairs)):
                one = {name: PairLogProbs(*(part[place : place + 1] for part in s)) for name, s in steps.items()}
                found["loss"].append(float(step_dpo_loss(one, weights, dpo.beta)[0]))
            found["likelier"] += _likelier(steps, weights).tolist()
    return {name: np.asarray(values, dtype=np.float64) for name, values in found.items()}


def _start_scores(trainer: PreferenceTrainer, data: _Data) -> Scores:
    """The same of the start, which is its own reference: its margins are 0 and its losses log 2, by definition."""
    dpo, policy = trainer.run_config.dpo, trainer.scorer.policy
    likelier: list[float] = []
    with scoring(trainer):
        for start in range(0, len(data.held_out), dpo.batch_size):
            pairs = data.held_out[start : start + dpo.batch_size]
            sums = trainer.scorer.sums(policy.model, pairs)
            likelier += _likelier(joined(sums, sums), dpo.weights()).tolist()
    ones = np.ones(len(likelier))
    loss = math.log(2) * sum(dpo.weights().values())
    return {"margin": 0 * ones, "accuracy": 0.5 * ones, "loss": loss * ones, "likelier": np.asarray(likelier)}


def _likelier(steps: Mapping[str, PairLogProbs], weights: Mapping[str, float]) -> torch.Tensor:
    gap = torch.stack([weights[name] * (s.chosen - s.rejected) for name, s in steps.items()]).sum(dim=0)
    return (gap > 0).float()


# ---------------------------------------------------------------------- what is told


class _Printer:
    """One line every so many steps."""

    def __init__(self, total: int) -> None:
        self.total, self.every, self.started = total, max(1, min(50, total // 20)), time.monotonic()

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        if step % self.every == 0 or step == self.total:
            shown = "  ".join(
                f"{name} {metrics[name]:.4f}" for name in ("loss", "margin", "accuracy") if name in metrics
            )
            print(f"step {step}/{self.total}  {shown}  {time.monotonic() - self.started:.0f} s", flush=True)


def _summary(config: RunConfig, folder: RunFolder, data: _Data, before: Scores, after: Scores) -> dict[str, Any]:
    kinds: dict[str, int] = defaultdict(int)
    for row in data.skipped:
        kinds[row.kind] += 1
    return {
        "command": "dpo",
        "run_dir": str(folder.path),
        "model": config.model.name,
        "seed": config.seed,
        "step_weights": config.dpo.weights(),
        "pairs": len(data.train.pairs),
        "pairs_held_out": len(data.held_out),
        "rows_skipped": dict(kinds),
        "before": {name: mean_interval(values).as_dict() for name, values in before.items()},
        "after": {name: mean_interval(values).as_dict() for name, values in after.items()},
        "difference": {name: paired_difference(before[name], values).as_dict() for name, values in after.items()},
    }


def _tell(summary: Mapping[str, Any], data: _Data, before: Scores, after: Scores) -> None:
    print(f"{summary['steps']} steps on {summary['pairs']} pairs, {summary['seconds']:.0f} s")
    for name, values in after.items():
        print(f"  {name:<10} {mean_interval(before[name])} → {mean_interval(values)}")
    for row in data.skipped[:20]:
        print(f"  skipped {data.file.path}:{row.line or '…'}: {row.reason}")
    final = Path(summary["run_dir"]) / "final"
    print(f"saved {final}; try: mmreason eval model={final}")
