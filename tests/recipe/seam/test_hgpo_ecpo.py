"""HGPO and ECPO on rows of verl's batch: penalties, masked turns, both layouts, what they need, what is modulated.

Not covered: their arithmetic (tests/aem_core), the shipped configurations (tests/recipe/methods).
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("verl", reason="verl is not installed")

from aem_core.errors import AEMValueError
from recipe.aem.batch import Batch
from recipe.aem.methods.aem import AemSettings
from recipe.aem.methods.ecpo import EcpoSettings
from recipe.aem.methods.empg import EmpgSettings
from recipe.aem.methods.hgpo import HgpoSettings
from recipe.aem.methods.registry import Settings
from recipe.aem.seam.advantage import AdvantageStep, compute_advantages

# Two trajectories of a group by turns: (observation, action, the environment's reward, penalty); outcomes 10 and 0.
WON = [("start", "go", 0.0, 0.0), ("shelf", "take", 0.0, -0.5), ("table", "put", 7.0, 0.0)]
LOST = [("start", "go", 0.0, 0.0), ("shelf", "look", 2.0, 0.0), ("table", "put", 7.0, 0.0)]


def advantages(settings: Settings, transcript: bool = False, masked: bool = False, without: str = "", entropy=None):
    """The advantage of each of the six turns, the winner's first, and the metrics.

    Args:
        settings: the run's.
        transcript: a row a trajectory; else a row a turn, the rows in mixed order.
        masked: whether the loser's turns are masked.
        without: a key that the loop does not leave.
        entropy: of the tokens of each turn.
    """
    rows = []
    for session, (turns, outcome) in enumerate(((WON, 10.0), (LOST, 0.0))):
        for place, of_row in enumerate([turns] if transcript else [[turn] for turn in turns]):
            observations, actions, rewards, penalties = (list(column) for column in zip(*of_row, strict=True))
            extra = {
                "response_spans": [[2 * number, 2 * number + 2] for number in range(len(of_row))],
                **{"anchors": observations, "actions": actions, "turn_rewards": rewards, "turn_penalties": penalties},
            }
            extra.pop(without, None)
            rows.append((f"u_{session}_{place}", extra, outcome, masked and outcome == 0))
    if not transcript:
        rows = [rows[number] for number in (4, 0, 3, 2, 5, 1)]
    width = 2 * (3 if transcript else 1)
    mask = torch.ones(len(rows), width, dtype=torch.int64)
    reward, entropies = torch.zeros(len(rows), width), torch.full((len(rows), width), 0.5)
    for number, (key, _, outcome, off) in enumerate(rows):
        reward[number, -1] = outcome
        mask[number] *= not off
        session, place = (int(part) for part in key.split("_")[1:])
        for turn in range(width // 2):
            if entropy:
                entropies[number, 2 * turn : 2 * turn + 2] = entropy[3 * session + place + turn]
    tokens = {"response_mask": mask, "entropies": entropies}
    batch = Batch.from_columns([key for key, *_ in rows], tokens, [extra for _, extra, *_ in rows])
    advance = AdvantageStep(batch, settings, step=1)
    found, _ = compute_advantages(advance, reward, mask, {})
    by_key = {
        (key, turn): found[number, 2 * turn].item()
        for number, (key, *_) in enumerate(rows)
        for turn in range(width // 2)
    }
    return [by_key[key] for key in sorted(by_key)], advance.metrics


def hgpo(**settings):
    return Settings.of("hgpo", HgpoSettings(**{"by_std": False, "gamma": 0.5, **settings}))


def ecpo(**settings):
    return Settings.of("ecpo", EcpoSettings(**{"by_std": False, "gamma": 0.5, **settings}))


@pytest.mark.parametrize("transcript", [False, True])
def test_hgpo_by_hand(transcript):
    # Returns 2.5, 5 − 0.5, 10 against 0.5 · 2, 2, 0 (the environment's 7 at the end is not counted): level 1, which the
    # other levels repeat, ±0.75, ±1.25, ±5.
    values, metrics = advantages(hgpo(), transcript)
    assert values == pytest.approx([0.75, 1.25, 5.0, -0.75, -1.25, -5.0])
    assert metrics["hgpo/step/shared_mean"] == 2.0 and metrics["hgpo/step/levels_mean"] == 2.0
    assert metrics["hgpo/step/alone"] == metrics["hgpo/step/zero"] == 0.0
    assert metrics["hgpo/step/abs_mean"] == pytest.approx(7 / 3) and metrics["hgpo/step/set_size_mean"] == 2.0
    # without the environment's rewards 2.5, 4.5, 10 against 0, 0, 0
    values, _ = advantages(hgpo(step_rewards=0.0), transcript)
    assert values == pytest.approx([1.25, 2.25, 5.0, -1.25, -2.25, -5.0])


@pytest.mark.parametrize("transcript", [False, True])
def test_hgpos_trajectory_term_is_grpo_rows(transcript):
    # Rewards 10, 9.5, 10, 0, 0, 0: mean 59/12. Weights 1; 2; 3; 4, the levels equal.
    rows = [reward - 59 / 12 for reward in (10, 9.5, 10, 0, 0, 0)]
    steps = [0.75, 1.25, 5.0, -0.75, -1.25, -5.0]
    expected = [(row + 2 * step) / 3 for row, step in zip(rows[::3], steps[::3], strict=True)]
    values, _ = advantages(hgpo(trajectory_term=True, history_length=0), transcript)
    assert values[::3] == pytest.approx(expected)
    values, _ = advantages(hgpo(trajectory_term=True), transcript)
    assert values[2] == pytest.approx((rows[2] + 9 * 5) / 10)


@pytest.mark.parametrize("transcript", [False, True])
def test_ecpo_by_hand(transcript):
    # Rewards as above, mean 59/12. "start" and "table" have one action each: no step term. At "shelf" returns 4.5 and 2
    # of two actions: μ = 3.25, ρ = 1, a third of ±1.25.
    values, metrics = advantages(ecpo(), transcript)
    rows = [reward - 59 / 12 for reward in (10, 9.5, 10, 0, 0, 0)]
    assert values == pytest.approx([rows[0], rows[1] + 1.25 / 3, rows[2], rows[3], rows[4] - 1.25 / 3, rows[5]])
    assert metrics["ecpo/step/one_action"] == pytest.approx(2 / 3) == metrics["ecpo/step/zero"]
    assert metrics["ecpo/step/gate_mean"] == pytest.approx(1 / 3) and metrics["ecpo/step/alone"] == 0.0
    weighed, _ = advantages(ecpo(weight=3.0, kappa=0.0), transcript)
    assert weighed[1] == pytest.approx(rows[1] + 3 * 1.25)


@pytest.mark.parametrize("settings", [hgpo(), ecpo()], ids=["hgpo", "ecpo"])
@pytest.mark.parametrize("transcript", [False, True])
def test_masked_turns_stay_in_the_statistics_and_the_histories(settings, transcript):
    whole, _ = advantages(settings, transcript)
    values, metrics = advantages(settings, transcript, masked=True)
    assert values[:3] == whole[:3] and values[3:] == [0.0] * 3
    assert metrics[f"{settings.estimator}/step/set_size_mean"] == 2.0


@pytest.mark.parametrize("settings", [hgpo(), ecpo()], ids=["hgpo", "ecpo"])
def test_they_can_be_modulated(settings):
    name = settings.estimator
    base, _ = advantages(settings)
    entropy = [0.2, 0.4, 0.6, 0.8, 1.0, 1.2]
    over = Settings.of("aem", AemSettings(name), settings.blocks[name])
    modulated, metrics = advantages(over, entropy=entropy)
    weight = torch.tensor([-step / 5 for step in range(6)]).exp()
    alpha = (weight / weight.mean()).tolist()
    assert modulated == pytest.approx([a * value for a, value in zip(alpha, base, strict=True)], rel=1e-5)
    assert {f"{name}/step/alone", "aem/alpha/mean"} <= set(metrics)
    scaled = Settings.of("empg", EmpgSettings(name, bonus=False, recentre=False), settings.blocks[name])
    modulated, metrics = advantages(scaled, entropy=entropy)
    assert modulated == pytest.approx([a * value for a, value in zip(alpha, base, strict=True)], rel=1e-5)
    assert {f"{name}/step/alone", "empg/scale/mean"} <= set(metrics)


@pytest.mark.parametrize(
    ("settings", "without"), [(hgpo(), "anchors"), (ecpo(), "anchors"), (ecpo(), "actions")], ids=str
)
def test_what_the_loop_must_have_recorded(settings, without):
    message = rf"{settings.estimator} compares .* extra_fields\['{without}'\]: use the agent loop `environment`"
    with pytest.raises(AEMValueError, match=message):
        advantages(settings, without=without)
