"""A corridor of turns with a table of logits for each state: every entropy and success rate is known exactly.

A response is two tokens, a plan and an action. One action is right, whatever the plan; the reward is 1 at the end of
the corridor and 0 elsewhere. Axis suffixes: R runs (seeds in parallel), K tasks, S states of a task, P plans, A
actions, J trajectories of a group, N responses of all runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

F64 = torch.float64
PLANS = ACTIONS = 4
RIGHT = 0  # the action that leads on
BIAS = 1.5  # of its logit at the start, in nats


@dataclass(frozen=True)
class World:
    """What a wrong action does: `ends` the trajectory, `runs_on` without a chance, or `stays` in the same state."""

    wrong: str
    states: int
    turns: int


WORLDS = (World("ends", 5, 5), World("runs_on", 5, 5), World("stays", 5, 7))


@dataclass(frozen=True)
class Policy:
    """Logits of the plan, (R, K, S, P), and of the action after each plan, (R, K, S, P, A)."""

    plan_RKSP: Tensor
    action_RKSPA: Tensor

    def entropy(self) -> Tensor:
        """H_resp of every state, (R, K, S), nats."""
        plan, action = torch.softmax(self.plan_RKSP, -1), entropy_of(self.action_RKSPA)
        return entropy_of(self.plan_RKSP) + (plan * action).sum(-1)

    def right(self) -> Tensor:
        """The probability of the right action in every state, (R, K, S)."""
        plan = torch.softmax(self.plan_RKSP, -1)
        return (plan * torch.softmax(self.action_RKSPA, -1)[..., RIGHT]).sum(-1)

    def success(self, world: World) -> Tensor:
        """Compute the exact probability of reaching the corridor's end, (R,), averaged over the tasks."""
        right_RKS = self.right()
        if world.wrong != "stays":
            return right_RKS.prod(-1).mean(-1)
        there = torch.zeros(*right_RKS.shape[:2], world.states + 1, dtype=F64)
        there[..., 0] = 1.0
        for _ in range(world.turns):
            moved = there[..., :-1] * right_RKS
            there = torch.cat([there[..., :-1] - moved, there[..., -1:]], -1)
            there[..., 1:] += moved
        return there[..., -1].mean(-1)

    def moved(self, change: Policy, rate: Tensor | float) -> Policy:
        """Return the policy after a step."""
        return replace(
            self,
            plan_RKSP=self.plan_RKSP + rate * change.plan_RKSP,
            action_RKSPA=self.action_RKSPA + rate * change.action_RKSPA,
        )


@dataclass(frozen=True)
class Rollout:
    """The responses of one step, flat; `token_entropy_N2` and `surprisal_N2` are those of plan and action."""

    run_N: Tensor
    task_N: Tensor
    state_N: Tensor
    trajectory_N: Tensor
    plan_N: Tensor
    action_N: Tensor
    token_entropy_N2: Tensor
    surprisal_N2: Tensor
    reward_N: Tensor


def entropy_of(logit_V: Tensor) -> Tensor:
    """Compute the entropies of softmaxes over the last axis."""
    log_V = torch.log_softmax(logit_V, -1)
    return -(log_V.exp() * log_V).sum(-1)


def initial_policy(seeds: Sequence[int], tasks: int, states: int) -> Policy:
    """Return a seed's initial policy: after each plan the logits are scaled by that plan's own exp(N(0, ½²))."""
    plans, actions = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int, generator: torch.Generator = generator) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=F64)

        plans.append(normal(tasks, states, PLANS))
        spread = torch.exp(0.5 * normal(tasks, states, PLANS, 1))
        logits = normal(tasks, states, PLANS, ACTIONS)
        logits[..., RIGHT] += BIAS
        actions.append(spread * logits)
    return Policy(torch.stack(plans), torch.stack(actions))


def roll_out(policy: Policy, world: World, trajectories: int, generator: torch.Generator) -> Rollout:
    """Sample one group of trajectories for every run and task."""
    runs, tasks, _, _ = policy.plan_RKSP.shape
    shape = (runs, tasks, trajectories)
    label_I = torch.arange(math.prod(shape))
    run_I, task_I = label_I // (tasks * trajectories), label_I // trajectories % tasks
    place_I, alive_I, lost_I = (
        torch.zeros_like(label_I),
        torch.ones_like(label_I).bool(),
        torch.zeros_like(label_I).bool(),
    )
    parts = []
    for _ in range(world.turns):
        at = (run_I, task_I, place_I.clamp(max=world.states - 1))
        plan_I, plan_h, plan_s = _sample(policy.plan_RKSP[at], generator)
        action_I, action_h, action_s = _sample(policy.action_RKSPA[(*at, plan_I)], generator)
        columns = (
            *at,
            label_I,
            plan_I,
            action_I,
            torch.stack([plan_h, action_h], 1),
            torch.stack([plan_s, action_s], 1),
        )
        parts.append([column[alive_I] for column in columns])
        right_I = action_I == RIGHT
        if world.wrong == "runs_on":
            lost_I |= ~right_I
            place_I = place_I + 1
        else:
            place_I = torch.where(alive_I & right_I, place_I + 1, place_I)
            alive_I &= right_I if world.wrong == "ends" else place_I < world.states
    run_N, task_N, state_N, trajectory_N, *rest = (torch.cat(column) for column in zip(*parts, strict=True))
    won_I = ((place_I == world.states) & ~lost_I).double()
    return Rollout(run_N, task_N, state_N, trajectory_N, *rest, reward_N=won_I[trajectory_N])


def gradient(policy: Policy, rollout: Rollout, advantage_N: Tensor) -> Policy:
    """Compute the plain policy gradient in the logits: the mean over a run's responses of A ∇ log π."""
    runs, tasks, states, _ = policy.plan_RKSP.shape
    count_R = torch.bincount(rollout.run_N, minlength=runs)
    weight_N1 = (advantage_N / count_R[rollout.run_N])[:, None]
    at = (rollout.run_N, rollout.task_N, rollout.state_N)
    place_N = (at[0] * tasks + at[1]) * states + at[2]

    def score(logit_NV: Tensor, chosen_N: Tensor) -> Tensor:
        one_hot_NV = torch.nn.functional.one_hot(chosen_N, logit_NV.shape[-1])
        return weight_N1 * (one_hot_NV - torch.softmax(logit_NV, -1))

    plan = torch.zeros_like(policy.plan_RKSP)
    plan.view(-1, PLANS).index_add_(0, place_N, score(policy.plan_RKSP[at], rollout.plan_N))
    action = torch.zeros_like(policy.action_RKSPA)
    taken = score(policy.action_RKSPA[(*at, rollout.plan_N)], rollout.action_N)
    action.view(-1, ACTIONS).index_add_(0, place_N * PLANS + rollout.plan_N, taken)
    return Policy(plan, action)


def _sample(logit_IV: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Sample a choice; return it with the entropy of its distribution and its surprisal."""
    log_IV = torch.log_softmax(logit_IV, -1)
    chosen_I = torch.multinomial(log_IV.exp(), 1, generator=generator)
    return chosen_I[:, 0], entropy_of(logit_IV), -log_IV.gather(1, chosen_I)[:, 0]
