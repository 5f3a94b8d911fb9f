"""TRL's GRPO trainer with prompts run once a group, in generation and in every log-prob pass.

What enters: the prepared rows of a generation batch, through `begin_batch`. What leaves: what TRL's own methods would return, from
less work. TRL never sees a picture: it gets token ids, and what it would cut, shuffle and copy G times stays in a `PromptStore`.
Without a `Sharing` every method is TRL's.

Legend of shapes: N completions, C columns of completions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from trl import GRPOTrainer
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.utils import split_tensor_dict

from mmreason.policy.policy import Policy, Prepared
from mmreason.prompt_once.generation import Generation, Sampling
from mmreason.prompt_once.layout import token_ratio
from mmreason.prompt_once.packing import Completion, Segment, group_completions, pack
from mmreason.prompt_once.prompts import Digest, Features, PromptStore
from mmreason.prompt_once.sharing import Sharing
from mmreason.prompt_once.support import tower_is_frozen

if TYPE_CHECKING:
    from mmreason.agent.loop import Begin


class SharedPrompts(GRPOTrainer):  # type: ignore[misc]
    """Overrides of TRL's hooks; each says why.

    Attributes:
        policy: renders prompts and processes pictures.
        sharing: how prompts are shared; None = TRL's own path.
        sharing_metrics: numbers of the newest batch, for the step's metrics.
    """

    policy: Policy
    sharing: Sharing | None
    sharing_metrics: dict[str, float]
    _buffered_inputs: list[dict[str, Any]] | None

    def begin_batch(self, prepared: Sequence[Prepared], *, new: bool = True) -> None:
        """Take the rows of the next generation batch; each distinct prompt and picture is processed once.

        Args:
            prepared: the rows.
            new: false = further rows of the same batch.
        """
        if new:
            # A tower that is not trained makes the same features in every pass, and in the reference model too.
            kept: dict[str, Features] | None = {} if tower_is_frozen(self.policy.model) else None
            self._store = PromptStore(self.policy, features=kept)
            # Decided by the first pass over the batch, for all of them: their log-probs are compared with each other.
            self._packs: bool | None = None
            self.sharing_metrics = {}
            #: What each row that has been sampled for this batch continues, part by part; empty = its prompt, as a whole.
            self._segments: list[tuple[Segment, ...]] = []
        self._prompt_of_row = self._store.add(prepared)
        self._segments_of_row: list[tuple[Segment, ...]] = [()] * len(prepared)
        self.sharing_metrics |= {
            "prompt_once/prompts": float(len(self._store.prompts)),
            "prompt_once/pictures": float(self._store.processor_calls),
        }

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Why: remember which prompt each row continues; a tensor of row length survives TRL's shuffle and cuts."""
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self.sharing is not None:
            output["prompt_index"] = torch.tensor(self._prompt_of_row, device=self.accelerator.device)
        return output

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """Why: TRL shuffles rows before it cuts micro-batches, which scatters groups; here whole groups are shuffled."""
        if self.sharing is None or not self.model.training:
            return super()._prepare_inputs(generation_batch)
        every = self.args.steps_per_generation * self.num_iterations
        if self._step % every == 0 or self._buffered_inputs is None:
            batch = self._generate_and_score_completions(generation_batch)
            if self.args.steps_per_generation > 1:
                batch = in_row_order(batch, whole_groups_shuffled(batch["prompt_index"]))
            self._buffered_inputs = split_tensor_dict(batch, self.args.steps_per_generation)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        """Why: prompts were tokenized, and their pictures processed, once each in `begin_batch`."""
        if self.sharing is None:
            return super()._tokenize_prompts(prompts)
        return [list(self._store.prompts[index].ids) for index in self._prompt_of_row], None, {}

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, num_generations: int, has_tool_images: bool = False
    ) -> Any:
        """Why: encode each picture once, prefill each prompt once, and drop rows that have ended."""
        if self.sharing is None or self.use_vllm:
            return super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, has_tool_images
            )
        with self.generations() as begin:
            completions = begin(self._prompt_of_row).sample(self.sampling)
        return completions, None

    @property
    def sampling(self) -> Sampling:
        """How the run samples."""
        return Sampling(
            self.args.max_completion_length,
            self.temperature,
            self.top_k or 0,
            self.top_p,
            tuple(self.eos_token_ids),
            tuple(self.policy.banned_token_ids),
        )

    @contextmanager
    def generations(self) -> Iterator[Begin]:
        """Makes generations whose rows continue prompts of the batch; what they cost is counted when it is over."""
        sharing, begun = self.sharing, list[Generation]()
        assert sharing is not None
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as unwrapped,
            torch.no_grad(),
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
            self.accelerator.autocast(),
        ):

            def begin(prompts: Sequence[int], *, multi_turn: bool = False) -> Generation:
                begun.append(sharing.generation(unwrapped, self._store, prompts, multi_turn=multi_turn))
                return begun[-1]

            yield begin
        for name in ("prefill_tokens", "decode_tokens", "patches"):
            before = self.sharing_metrics.get(f"prompt_once/{name}", 0.0)
            self.sharing_metrics[f"prompt_once/{name}"] = before + sum(float(getattr(g.work, name)) for g in begun)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Why: the log-prob method is not told which rows it gets."""
        if self.sharing is None:
            return super()._compute_loss(model, inputs)
        with self.rows_of(inputs):
            return super()._compute_loss(model, inputs)

    @contextmanager
    def rows_of(self, inputs: Mapping[str, Any]) -> Iterator[None]:
        """Let the log-prob method know the rows of a micro-batch."""
        whole = self._prompt_of_row, self._segments_of_row
        self._prompt_of_row = inputs["prompt_index"].tolist()
        episodes = inputs["episode_index"].tolist() if "episode_index" in inputs else []
        self._segments_of_row = [self._segments[index] for index in episodes] or [()] * len(self._prompt_of_row)
        try:
            yield
        finally:
            self._prompt_of_row, self._segments_of_row = whole

    @staticmethod
    def loss_mask(inputs: Mapping[str, Any]) -> torch.Tensor:
        """`[N, C]` 1 where a token was sampled and counts in the loss: not what a tool returned, nor padding."""
        mask: torch.Tensor = inputs["completion_mask"]
        return mask * inputs["tool_mask"] if "tool_mask" in inputs else mask

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **fields: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Why: policy, old and reference log-probs all pass here; one packed row replaces G padded ones.

        Returns:
            Log-probs and entropies `[N, C]`, 0 where there is no token; no auxiliary loss.
        """
        sharing = self.sharing
        options = {
            "batch_size": batch_size,
            "compute_entropy": compute_entropy,
            "compute_aux_loss": compute_aux_loss,
        }
        if sharing is None:
            return super()._get_per_token_logps_and_entropies(  # type: ignore[no-any-return]
                model, input_ids, attention_mask, logits_to_keep, **options, **fields
            )
        completions, row_of, first_of = self._completions(input_ids, attention_mask, logits_to_keep)
        ratio = token_ratio(group_completions(self._store, completions)[1])
        self.sharing_metrics |= {"prompt_once/token_ratio": ratio, "prompt_once/packed": 1.0}
        if self._packs is None:
            # Turns that continue contexts of their own are no rows of the usual path.
            self._packs = ratio >= sharing.min_token_ratio or any(len(parts) > 1 for parts in self._segments_of_row)
        if not self._packs:
            self.sharing_metrics["prompt_once/packed"] = 0.0
            return super()._get_per_token_logps_and_entropies(  # type: ignore[no-any-return]
                model, input_ids, attention_mask, logits_to_keep, **options, **self._stock_fields(input_ids)
            )
        packing = pack(self._store, completions, sharing.token_budget, input_ids.device)
        self.sharing_metrics["prompt_once/split_groups"] = float(packing.split_groups)
        rows, columns, log_probs, entropies = [], [], [], []
        for inputs in packing.inputs:
            with self.accelerator.autocast():
                output = sharing.score(model, inputs, self._store)
            rows.append(row_of[inputs.rows])
            columns.append(inputs.columns + first_of[inputs.rows])
            log_probs.append(output.log_probs[0])
            if compute_entropy:
                entropies.append(output.entropy[0])
        place = (torch.cat(rows), torch.cat(columns))
        empty = log_probs[0].new_zeros(input_ids.shape[0], logits_to_keep)
        found = empty.index_put(place, torch.cat(log_probs))
        return found, empty.index_put(place, torch.cat(entropies)) if compute_entropy else None, None

    def _completions(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, logits_to_keep: int
    ) -> tuple[list[Completion], torch.Tensor, torch.Tensor]:
        """What continues which prompt: a row's completion, or its turns; a row that is masked out has an empty one.

        Returns:
            The completions; and `[n]` of each of them, its row and the column at which it begins.
        """
        lengths = attention_mask[:, -logits_to_keep:].sum(dim=1).tolist()
        tokens = input_ids[:, -logits_to_keep:].tolist()
        found, rows, firsts = [], [], []
        told = zip(self._prompt_of_row, tokens, lengths, self._segments_of_row, strict=True)
        for row, (prompt, ids, length, segments) in enumerate(told):
            for part in segments if segments and length else (Segment(prompt, 0, length),):
                found.append(Completion(part.prompt, tuple(ids[part.start : part.end]), part.pictures))
                rows.append(row)
                firsts.append(part.start)
        device = input_ids.device
        return found, torch.tensor(rows, device=device), torch.tensor(firsts, device=device)

    def _stock_fields(self, input_ids: torch.Tensor) -> dict[str, Any]:
        """Pictures of the rows as TRL's own path wants them: one copy a row."""
        shown = [
            self._store.prompts[index].pictures + inside
            for index, inside in zip(self._prompt_of_row, self._pictures_inside(), strict=True)
        ]
        pixels = self._store.pixels([digest for pictures in shown for digest in pictures])
        if not pixels:
            return {}
        return {
            **pixels,
            "num_images": [len(pictures) for pictures in shown],
            "mm_token_type_ids": (input_ids == self.policy.model.config.image_token_id).int(),
        }

    def _pictures_inside(self) -> list[tuple[Digest, ...]]:
        """Pictures in each row's completion."""
        return [tuple(digest for part in parts for digest in part.pictures) for parts in self._segments_of_row]


def whole_groups_shuffled(prompt_index: torch.Tensor) -> torch.Tensor:
    """An order of rows, `[N]`, in which groups are shuffled and the rows of each stand together."""
    groups = torch.unique(prompt_index, return_inverse=True)[1]
    rank = torch.randperm(int(groups.max()) + 1).to(groups.device)
    return rank[groups].argsort(stable=True)


def in_row_order(batch: dict[str, Any], order: torch.Tensor) -> dict[str, Any]:
    """The batch with its rows in another order; scalars and missing entries stay."""
    return {
        name: value[order] if isinstance(value, torch.Tensor) and value.dim() > 0 else value
        for name, value in batch.items()
    }
