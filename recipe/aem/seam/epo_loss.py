"""EPO's loss, as verl's workers call it: verl's policy loss plus two entropy terms."""

from __future__ import annotations

from typing import Any

from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.metric import AggregationType, Metric
from verl.workers.config import ActorConfig
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import no_padding_2_padding

from aem_core.epo import epo_entropy, epo_smoothing
from aem_core.errors import AEMRuntimeError
from recipe.aem.methods.epo import EpoSettings

WEIGHT_COLUMN = "epo_weight"
"""The column with each token's weight in the batch's mean entropy."""
STEP_KEY = "aem_epo"
"""The key of a batch's `extra_info` with the step's history and schedule."""


def epo_loss(
    config: ActorConfig,
    model_output: dict[str, Tensor],
    data: TensorDict,
    dp_group: Any = None,
    *,
    settings: EpoSettings,
) -> tuple[Tensor, dict[str, Any]]:
    """Compute the loss of one micro-batch on one data-parallel rank.

        L = L_policy − λ [ L_H − β_k L_smooth ] · n · R,    L_H = Σ w h,    L_smooth = α Σ w P

    n is the number of mini-batches in the batch: the weights w sum to 1 over the batch, so a mini-batch holds 1/n of
    them, while verl's policy loss is a mean over the mini-batch only. With the factor n, the terms have the paper's
    strength relative to L_policy in every update, however many there are: their average over the mini-batches is the
    paper's term. R is the number of ranks, whose gradients FSDP averages; verl's loss has the same factor. Both sums
    add up over micro-batches and ranks, so how a mini-batch is split never matters.

    Source: arXiv 2509.22576, eq. 3 and the total objective. n is our choice; the paper does not speak of mini-batches.

    Args:
        config: verl's settings of the actor.
        model_output: `log_probs` and `entropy`, nested, of whole sequences.
        data: the micro-batch, with the columns and numbers that `recipe.aem.seam.epo` sent.
        dp_group: verl's, unused.
        settings: `algorithm.epo`.

    Returns:
        The loss, differentiable, and verl's metrics with `actor/epo_entropy` (L_H), `actor/epo_smoothing` (L_smooth)
        and `actor/epo_loss` (what EPO adds to the loss).

    Raises:
        AEMRuntimeError: no entropies, or a batch that did not pass through the wrapped trainer.
    """
    policy_loss, metrics = ppo_loss(config=config, model_output=model_output, data=data, dp_group=dp_group)
    entropy = model_output.get("entropy")
    if entropy is None:
        raise AEMRuntimeError("EPO needs the policy's entropies: set actor_rollout_ref.actor.calculate_entropy=True")
    step: Any = tu.get_non_tensor_data(data, STEP_KEY, None)
    if step is None or WEIGHT_COLUMN not in data:
        raise AEMRuntimeError(
            f"the batch holds no {WEIGHT_COLUMN} or no {STEP_KEY}: this trainer does not pass through "
            "verl.trainer.ppo.v1.trainer_base.PPOTrainer._update_actor, which verl-aem wraps"
        )
    entropy_BT = no_padding_2_padding(entropy, data)
    weight_BT = data[WEIGHT_COLUMN].to_padded_tensor(0.0)
    ranks: Any = data["dp_size"]
    share = step["mini_batches"] * ranks
    # without validation, which would wait for the device in every micro-batch
    entropy_term = share * epo_entropy(entropy_BT, weight_BT, validate=False)
    smoothing_term = share * epo_smoothing(
        entropy_BT,
        weight_BT,
        step["reference"],
        lower=settings.lower,
        upper=settings.upper,
        alpha=settings.alpha,
        validate=False,
    )
    added = -settings.coef * (entropy_term - step["beta"] * smoothing_term)
    # summed over micro-batches, averaged over ranks (hence R) and mini-batches (hence n): the batch's value
    terms = {"actor/epo_entropy": entropy_term, "actor/epo_smoothing": smoothing_term, "actor/epo_loss": added}
    metrics.update(Metric.from_dict(terms, aggregation=AggregationType.SUM))
    return policy_loss + added, metrics
