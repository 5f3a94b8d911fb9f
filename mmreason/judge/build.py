"""From the section `judge` of a run to its judge.

What enters: the section, the policy and what opens pictures. What leaves: a `JudgeService`, or `None` where no judge is
asked for. Models are imported only for the kinds that need them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmreason.config.schema import JudgeConfig
from mmreason.judge.desk import Desk
from mmreason.judge.service import JudgeService

if TYPE_CHECKING:
    from mmreason.images import ImageLoader
    from mmreason.policy.policy import Policy


def build_judge(config: JudgeConfig, policy: Policy, loader: ImageLoader | None = None) -> JudgeService | None:
    """The judge of a run.

    Args:
        config: who answers, and how.
        policy: of the run; `kind: policy` asks it, as it is at that moment.
        loader: opens the pictures of rows that name files.

    Raises:
        ConfigError: the key of an endpoint is not in the environment. ModelError: there is no such model.
    """
    if config.kind == "none":
        return None
    if config.kind == "endpoint":
        from mmreason.judge.endpoint import EndpointBackend

        return JudgeService(config, EndpointBackend(config), loader)
    from mmreason.judge.models import LocalModel, PolicyModel

    model = PolicyModel(policy) if config.kind == "policy" else LocalModel(config)
    return JudgeService(config, Desk(model, config.batch_size), loader)
