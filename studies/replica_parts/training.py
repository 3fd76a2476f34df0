"""The training loop: rollout, old policy, advantages (the package's own), update, validation."""

from __future__ import annotations

import copy
import random
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any  # transformers annotates its models and tokenizers too loosely to check against

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from aem_core import AemStats
from agent_loops.environment import Benchmark, Task
from agent_loops.episode import EpisodeSettings
from recipe.aem.batch import Batch
from recipe.aem.methods.registry import ESTIMATORS, Settings, enabled_terms
from recipe.aem.seam.checks import GROUP_ESTIMATORS
from recipe.aem.tools.report.turns import eta_squared
from replica_parts.advantages import advantages
from replica_parts.policy import mask_of, old_policy
from replica_parts.rollout import Rollout, Row, as_ended, roll_out
from replica_parts.update import mini_batches, update

# what this loop supports only one value of: the value that a configuration must have
FIXED = {
    "algorithm.use_kl_in_reward": False,
    "algorithm.balance": None,
    "algorithm.updates_per_step": None,
    "algorithm.rollout_correction.bypass_mode": False,
    "actor_rollout_ref.actor.kl_loss_type": "low_var_kl",
    "actor_rollout_ref.actor.ppo_epochs": 1,
    "actor_rollout_ref.actor.loss_agg_mode": "token-mean",
    "actor_rollout_ref.actor.policy_loss.loss_mode": "vanilla",
    "actor_rollout_ref.actor.optim.weight_decay": 0.0,
    "actor_rollout_ref.actor.optim.lr_warmup_steps": -1,
    "actor_rollout_ref.actor.optim.lr_warmup_steps_ratio": 0.0,
    "actor_rollout_ref.actor.optim.lr_scheduler_type": "constant",
    # log-probs are those of the model as it is
    "actor_rollout_ref.rollout.temperature": 1.0,
    "actor_rollout_ref.rollout.val_kwargs.do_sample": True,
    "actor_rollout_ref.rollout.top_p": 1.0,
    "actor_rollout_ref.rollout.top_k": -1,
    "actor_rollout_ref.rollout.custom.episode.layout": "turns",
    "actor_rollout_ref.rollout.custom.episode.compact_filtering": False,
}
ROW_COUNTING = frozenset(GROUP_ESTIMATORS) - {"grpo"} - set(ESTIMATORS)
"""verl's estimators that count every turn as a member of the group. Here advantages are computed once a trajectory."""


class EntropyBonus:
    """An entropy bonus that makes a run's entropy follow a given one, step by step.

        c ← clip(c + gain · (H* − H), −limit, limit)          at each step, from 0

    H is the entropy of the step's rollout and H* the one to be followed; a negative bonus lowers the entropy.
    """

    GAIN, LIMIT = 0.02, 0.05

    def __init__(self, entropies: Mapping[int, float]) -> None:
        self._entropies = entropies
        self._coefficient = 0.0

    def coefficient(self, step: int, entropy: float) -> float:
        moved = self._coefficient + self.GAIN * (self._entropies[step] - entropy)
        self._coefficient = min(max(moved, -self.LIMIT), self.LIMIT)
        return self._coefficient


def check(config: DictConfig) -> None:
    """Refuse settings that this loop does not support, so that a run always matches its configuration."""
    for name, value in FIXED.items():
        given = OmegaConf.select(config, name, default=value)
        if given != value:
            raise ValueError(f"the replica knows {name}={value} only, and the configuration has {given}")
    if (OmegaConf.select(config, "algorithm.filter_groups") or {}).get("enable"):
        raise ValueError("the replica does not filter groups (algorithm.filter_groups.enable)")
    if config.algorithm.adv_estimator in ROW_COUNTING:
        raise ValueError(
            f"algorithm.adv_estimator={config.algorithm.adv_estimator} counts rows in verl, and the replica does not: "
            f"set {config.algorithm.adv_estimator}_trajectories"
        )


@dataclass
class Training:
    """One run: its policy, its tasks, and verl's configuration of it.

    Attributes:
        tokenizer: of the model.
        seed: determines the order of tasks and every sample.
        followed: the entropy at each step that an entropy bonus is to follow.
    """

    config: DictConfig
    model: Any
    tokenizer: Any
    benchmark: Benchmark
    tasks: Sequence[Task]
    validation_tasks: Sequence[Task]
    seed: int
    followed: Mapping[int, float] | None = None

    def __post_init__(self) -> None:
        check(self.config)
        self._actor, self._rollout = self.config.actor_rollout_ref.actor, self.config.actor_rollout_ref.rollout
        self._settings = Settings.from_config(self.config.algorithm)
        self._terms = [(term, term.start()) for term in enabled_terms(self.config.algorithm)]
        self._reference = copy.deepcopy(self.model) if self._actor.use_kl_loss else None
        self._bonus = None if self.followed is None else EntropyBonus(self.followed)
        self._chance = random.Random(self.seed)
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=self._actor.optim.lr, betas=tuple(self._actor.optim.betas), weight_decay=0.0
        )

    def run(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Train in place; yield each step's metrics under verl's names. Step 0 is the validation before training."""
        torch.manual_seed(self.seed)
        # no dropout, and nothing else that differs between the modes
        self.model.eval()
        trainer = self.config.trainer
        queue: list[Task] = []
        yield 0, self._validate(fingerprint=True)
        for step in range(1, trainer.total_training_steps + 1):
            started = time.perf_counter()
            prompts = self.config.data.train_batch_size
            while len(queue) < prompts:
                queue += self._chance.sample(list(self.tasks), len(self.tasks))
            batch, queue = queue[:prompts], queue[prompts:]
            metrics = self._step(step, batch)
            metrics["timing_s/step"] = time.perf_counter() - started
            if step % trainer.test_freq == 0 or step == trainer.total_training_steps:
                metrics |= self._validate()
            yield step, metrics

    def play(self, tasks: Sequence[Task], copies: int, temperature: float) -> Rollout:
        """Play every task `copies` times with the current policy."""
        return roll_out(
            self.model,
            self.tokenizer,
            self.benchmark,
            tasks,
            EpisodeSettings.from_config(self._rollout.custom.episode),
            copies=copies,
            temperature=temperature,
            max_tokens=self.config.data.max_response_length,
        )

    def _validate(self, fingerprint: bool = False) -> dict[str, float]:
        """Play the validation tasks once each; the fingerprint tells whether two runs won the same ones."""
        played = self.play(self.validation_tasks, 1, self._rollout.val_kwargs.temperature)
        metrics = {f"val-core/{self.benchmark.name}/acc/mean@1": fmean(played.won)}
        return metrics | ({"validation/fingerprint": float(zlib.crc32(bytes(played.won)))} if fingerprint else {})

    def _step(self, step: int, tasks: Sequence[Task]) -> dict[str, float]:
        played = self.play(tasks, self._rollout.n, self._rollout.temperature)
        rows = as_ended(played.rows, self._chance)
        mask_BT = mask_of(rows, self.config.data.max_response_length)
        pad = self.tokenizer.pad_token_id
        old_BT, entropy_BT = old_policy(self.model, rows, mask_BT, pad)
        metrics = {
            "training/success": fmean(played.won),
            "num_turns/mean": fmean(played.turns),
            "actor/entropy": float(entropy_BT[mask_BT.bool()].mean()),
        }
        advantage_BT = self._advantages(step, rows, mask_BT, old_BT, entropy_BT, metrics)
        columns = {"response_mask": mask_BT, "entropies": entropy_BT}
        batch = Batch.from_columns([row.key for row in rows], columns, [row.extra for row in rows])
        steps = self.config.trainer.total_training_steps
        terms = [(term, term.prepare(state, batch, step, steps)) for term, state in self._terms]
        coefficient = self._actor.entropy_coeff
        if self._bonus is not None:
            metrics["entropy_coeff"] = coefficient = self._bonus.coefficient(step, metrics["actor/entropy"])
        metrics["actor/grad_norm"] = update(
            self.model,
            self._optimizer,
            rows,
            mask_BT,
            old_BT,
            advantage_BT,
            self._actor,
            mini_batches(
                len(rows), self._actor.ppo_mini_batch_size * self._rollout.n, self._actor.shuffle, self._chance
            ),
            pad,
            terms,
            None if self._reference is None else old_policy(self._reference, rows, mask_BT, pad)[0],
            coefficient,
        )
        return metrics

    def _advantages(
        self,
        step: int,
        rows: Sequence[Row],
        mask_BT: Tensor,
        old_BT: Tensor,
        entropy_BT: Tensor,
        metrics: dict[str, float],
    ) -> Tensor:
        algorithm = self.config.algorithm
        advantage_BT, computed = advantages(rows, mask_BT, old_BT, entropy_BT, algorithm, self._settings, step, metrics)
        if computed is not None and isinstance(computed.stats, AemStats):
            row_N = computed.batch.live.responses.row_N.tolist()
            metrics |= share_of_kinds(
                computed.stats.alpha_N.numpy(),
                [rows[row].group for row in row_N],
                [rows[row].extra["turn_kinds"][0] for row in row_N],
            )
        return advantage_BT


def share_of_kinds(alpha_N: np.ndarray, groups: Sequence[str], kinds: Sequence[str]) -> dict[str, float]:
    """Return the share of α's within-group variance between kinds of turn, and the share expected by chance."""
    found = eta_squared(alpha_N.astype(float), np.array(groups), np.array(kinds))
    names = {"eta2": "aem/alpha/between_kinds", "chance": "aem/alpha/between_kinds_by_chance"}
    return {name: found[key] for key, name in names.items() if found[key] is not None}
