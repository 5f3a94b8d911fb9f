"""Is PAPO's perception term being hacked? A book-keeper over the numbers of each step, and by how much to cut γ.

What enters: one `StepSignals` per optimizer step. What leaves: the published signs that stand, an alarm text when they
amount to a collapse, and a factor for the coefficient. No torch, no clock, no randomness; the state is plain JSON.

KL(policy with the picture ‖ with the masked one) has no upper bound, so with a large γ, a large model, a mask of
everything or no reference KL the policy can raise it by writing text that only it would write. PAPO (arXiv 2507.06448)
reports how that looks, from healthy to collapsed, and in which order it is of use:

    mean K                  .05 → .8       (-K dives)
    upper clip fraction     .0005 → .008
    both sampled entropies  masked .4 → 1.6
    reward                  falls, later
    variance of K           × 8.4

A relative sign stands when the recent level has gone half of that way on a log scale: mean K and the clip fraction × 4,
entropies × 2, the variance × 2.9, all from the level of the run's first steps. Since K rises too when the model learns
to look, a rise of K alone is no alarm: it needs a second early sign, or K above .5. Clip fractions stay 0 in strictly
on-policy training.

A small model whose answers hang on every digit that it sees starts with a large K, and collapses without going such a
long way. So a joint trend is an alarm too, whatever the levels: K, the entropy and the masked entropy all rise
(Mann-Kendall, `mmreason.stats.trend`). Learning to look raises K and the masked entropy, but not the entropy with the
picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from statistics import median
from typing import Any

import numpy as np

from mmreason.stats import rough_z, trend

#: What a joint trend is looked for in.
_TREND = ("entropy", "perception_kl", "masked_entropy")
#: Below this share of the bound, the rough score spares the exact one.
_SCREEN = 0.75
#: Signs in the published order.
SIGNS = ("perception_kl", "clip_high", "entropies", "reward", "perception_kl_variance")


@dataclass(frozen=True, slots=True)
class StepSignals:
    """What a step measured; NaN where it did not (a batch without pictures).

    Attributes:
        perception_kl: mean K over counted tokens.
        clip_high: share of tokens whose ratio was clipped above, 0..1.
        entropy: sampled entropy with the picture, nats per token.
        masked_entropy: the same with the masked picture.
        reward: mean reward.
        perception_kl_variance: variance of K over counted tokens.
    """

    perception_kl: float = math.nan
    clip_high: float = math.nan
    entropy: float = math.nan
    masked_entropy: float = math.nan
    reward: float = math.nan
    perception_kl_variance: float = math.nan


@dataclass(frozen=True, slots=True)
class GuardOptions:
    """Thresholds; what the source gives no number for is marked *ours*.

    Attributes:
        max_perception_kl: a recent mean K above this is an alarm by itself; healthy runs stay near .05, collapsed ones
            pass .8.
        rise_perception_kl, rise_clip_high, rise_entropy, rise_variance: recent / first level at which a sign stands,
            half of the published way on a log scale.
        min_perception_kl, min_clip_high: below these levels no sign, however large the rise: the same half-way points.
        min_entropy, min_variance: likewise; *ours*.
        reward_drop: share of the best recent reward that must be lost; *ours*.
        baseline_steps, recent_steps: first steps, and last ones, whose medians are compared; *ours*.
        trend_steps, min_trend_steps: most and fewest last steps that a joint trend is looked for in; *ours*.
        trend_z, entropy_trend_z: least z-scores of the rise of K and the masked entropy, and of the entropy with the
            picture; *ours*: noise passes 3 once in 700 looks.
        patience_steps: steps in a row before the alarm; a joint trend needs no further patience; *ours*.
        cut: factor on γ at each alarm. Half: .04 collapsed where .02 was best.
        cooldown_steps: steps after an alarm before another; *ours*.
        enabled: false = alarms only, the factor stays 1.
    """

    max_perception_kl: float = 0.5
    rise_perception_kl: float = 4.0
    rise_clip_high: float = 4.0
    rise_entropy: float = 2.0
    rise_variance: float = 2.9
    min_perception_kl: float = 0.2
    min_clip_high: float = 0.002
    min_entropy: float = 0.1
    min_variance: float = 0.01
    reward_drop: float = 0.2
    baseline_steps: int = 10
    recent_steps: int = 5
    trend_steps: int = 48
    min_trend_steps: int = 16
    trend_z: float = 2.0
    entropy_trend_z: float = 3.0
    patience_steps: int = 3
    cut: float = 0.5
    cooldown_steps: int = 20
    enabled: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "enabled":
                continue
            if field.name.endswith("_z"):
                allowed, rule = value > 0, "positive"
            elif field.name.startswith("rise_"):
                allowed, rule = value > 1, "above 1"
            elif field.name.endswith("_steps"):
                allowed, rule = value >= 1, "at least 1"
            elif field.name == "cut":
                allowed, rule = 0 <= value < 1, "in 0 <= cut < 1"
            else:
                allowed, rule = 0 < value < math.inf, "positive and finite"
            if not allowed:
                raise ValueError(f"collapse guard: {field.name} must be {rule}, not {value}")


@dataclass(frozen=True, slots=True)
class Sign:
    """A published sign that stands: its name (one of `SIGNS`), first and recent level, and since which step."""

    name: str
    first: float
    recent: float
    since_step: int

    def __str__(self) -> str:
        return f"{self.name} {self.first:.3g} → {self.recent:.3g} since step {self.since_step}"


@dataclass(frozen=True, slots=True)
class GuardVerdict:
    """What a step tells.

    Attributes:
        signs: that stand, in the published order.
        alarm: text for the user and the log when this step raises the alarm, else empty.
        factor: to multiply γ (and, as PAPO anneals them alike, both entropy coefficients) with from the next step on,
            0..1.
    """

    signs: tuple[Sign, ...]
    alarm: str
    factor: float


class CollapseGuard:
    """Watches one run; see the module's text for what it looks for.

    `observe` every optimizer step once, in order. `factor` starts at 1, is multiplied by `cut` at each alarm and never
    rises.
    """

    def __init__(self, options: GuardOptions | None = None) -> None:
        self.options = options or GuardOptions()
        self.factor = 1.0
        self._first: dict[str, list[float]] = {}
        self._recent: dict[str, list[float]] = {}
        #: The last `trend_steps` numbers of what a joint trend is looked for in.
        self._history: dict[str, list[float]] = {}
        self._best_reward = -math.inf
        self._since: dict[str, int] = {}
        self._standing = 0
        self._alarm_step: int | None = None

    def observe(self, step: int, signals: StepSignals) -> GuardVerdict:
        """Take the numbers of one step.

        Args:
            step: optimizer step.
            signals: numbers that are not finite leave what is known of them as it is.
        """
        for field in fields(signals):
            self._take(field.name, getattr(signals, field.name))
        signs = self._signs(step)
        self._standing = self._standing + 1 if self._is_collapsing(signs) else 0
        alarm = ""
        rested = self._alarm_step is None or step - self._alarm_step >= self.options.cooldown_steps
        rising = self._rising_together()
        if (rising or self._standing >= self.options.patience_steps) and rested and self.factor > 0:
            if self.options.enabled:
                self.factor *= self.options.cut
            self._alarm_step = step
            alarm = self._text(step, signs, rising)
        return GuardVerdict(signs, alarm, self.factor)

    def state_dict(self) -> dict[str, Any]:
        """A JSON object with which a resumed run goes on exactly."""
        return {
            "factor": self.factor,
            "first": {name: list(values) for name, values in self._first.items()},
            "recent": {name: list(values) for name, values in self._recent.items()},
            "history": {name: list(values) for name, values in self._history.items()},
            "best_reward": None if math.isinf(self._best_reward) else self._best_reward,
            "since": dict(self._since),
            "standing": self._standing,
            "alarm_step": self._alarm_step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; the options stay those of this guard.

        Raises:
            ValueError: not such a state.
        """
        try:
            first, recent, history = (
                {str(name): [float(value) for value in values] for name, values in state[part].items()}
                for part in ("first", "recent", "history")
            )
            best, alarm_step = state["best_reward"], state["alarm_step"]
            factor, standing = float(state["factor"]), int(state["standing"])
            since = {str(name): int(step) for name, step in state["since"].items()}
            best_reward = -math.inf if best is None else float(best)
            last_alarm = None if alarm_step is None else int(alarm_step)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"this is no saved state of a collapse guard: {error!r}") from error
        self._first, self._recent, self._history, self._since = first, recent, history, since
        self._best_reward, self._alarm_step = best_reward, last_alarm
        self.factor, self._standing = factor, standing

    def _take(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            return
        first = self._first.setdefault(name, [])
        if len(first) < self.options.baseline_steps:
            first.append(value)
        recent = self._recent.setdefault(name, [])
        recent.append(value)
        del recent[: -self.options.recent_steps]
        if name in _TREND:
            history = self._history.setdefault(name, [])
            history.append(value)
            del history[: -self.options.trend_steps]
        if name == "reward" and len(recent) == self.options.recent_steps:
            self._best_reward = max(self._best_reward, median(recent))

    def _signs(self, step: int) -> tuple[Sign, ...]:
        """Those that stand, in the published order; remembers since when."""
        options = self.options
        found = {
            "perception_kl": self._risen("perception_kl", options.rise_perception_kl, options.min_perception_kl)
            or self._above("perception_kl", options.max_perception_kl),
            "clip_high": self._risen("clip_high", options.rise_clip_high, options.min_clip_high),
            "entropies": self._entropies(),
            "reward": self._reward(),
            "perception_kl_variance": self._risen(
                "perception_kl_variance", options.rise_variance, options.min_variance
            ),
        }
        self._since = {name: self._since.get(name, step) for name, levels in found.items() if levels}
        return tuple(Sign(name, *levels, self._since[name]) for name, levels in found.items() if levels)

    def _levels(self, name: str) -> tuple[float, float] | None:
        """First and recent level, once there are enough steps."""
        first, recent = self._first.get(name, []), self._recent.get(name, [])
        if len(first) < self.options.baseline_steps or len(recent) < self.options.recent_steps:
            return None
        return median(first), median(recent)

    def _risen(self, name: str, rise: float, least: float) -> tuple[float, float] | None:
        levels = self._levels(name)
        return levels if levels and levels[1] >= max(least, rise * levels[0]) else None

    def _above(self, name: str, limit: float) -> tuple[float, float] | None:
        """Needs no first level: a run may collapse in its first steps."""
        recent = self._recent.get(name, [])
        if len(recent) < min(self.options.recent_steps, self.options.patience_steps) or median(recent) <= limit:
            return None
        return median(self._first[name]), median(recent)

    def _entropies(self) -> tuple[float, float] | None:
        """Every one that is measured must have risen; the masked one is shown, if there is one."""
        names = [name for name in ("entropy", "masked_entropy") if name in self._recent]
        risen = [self._risen(name, self.options.rise_entropy, self.options.min_entropy) for name in names]
        return risen[-1] if risen and all(risen) else None

    def _reward(self) -> tuple[float, float] | None:
        levels = self._levels("reward")
        best = self._best_reward
        if levels and levels[1] < best - self.options.reward_drop * abs(best):
            return best, levels[1]
        return None

    def _rising_together(self) -> str:
        """A joint trend in words; empty if there is none."""
        told = []
        for name in _TREND:
            history = self._history.get(name, [])
            if len(history) < self.options.min_trend_steps:
                return ""
            bound = self.options.entropy_trend_z if name == "entropy" else self.options.trend_z
            # The rough score is many times faster, and most steps have no trend.
            if rough_z(np.array(history)) < bound * _SCREEN:
                return ""
            found = trend(np.array(history))
            if found.z < bound:
                return ""
            told.append(f"{name} {found.start:.3g} → {found.end:.3g}")
        return f"over the last {len(self._history['entropy'])} steps all rise: {', '.join(told)}"

    def _is_collapsing(self, signs: tuple[Sign, ...]) -> bool:
        names = {sign.name for sign in signs}
        if "perception_kl" not in names:
            return False
        early = {"clip_high", "entropies", "perception_kl_variance"}
        return bool(names & early) or self._above("perception_kl", self.options.max_perception_kl) is not None

    def _text(self, step: int, signs: tuple[Sign, ...], rising: str) -> str:
        listed = "; ".join([*(str(sign) for sign in signs), *([rising] if rising else [])])
        done = (
            f"Its coefficient is cut to {self.factor:g} of what is set." if self.options.enabled else "Nothing is cut."
        )
        return (
            f"step {step}: the perception term is collapsing ({listed}). {done} "
            "Look at the completions: text that has nothing to do with the question raises this term. Lower the "
            "coefficient, mask less of the picture, or add a reference KL or the entropy terms; if the reward has "
            "fallen, go back to a checkpoint from before."
        )
