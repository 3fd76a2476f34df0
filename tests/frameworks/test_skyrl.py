"""examples/skyrl_aem.py with the installed SkyRL: its trainer's method, on a batch that SkyRL's own functions laid out.

Not covered: a training, which needs GPUs; that SkyRL's workers fill `action_log_probs` as its code says.
"""

from __future__ import annotations

import re

import pytest

from tests.helpers.by_hand import alphas, messages, per_token
from tests.helpers.surroundings import ROOT

pytestmark = [pytest.mark.release, pytest.mark.timeout(900)]  # the first test waits for the run
PAGE = (ROOT / "docs" / "frameworks.md").read_text(encoding="utf-8")
((VERSION, GYM),) = set(re.findall(r"skyrl==([\d.]+) skyrl-gym==([\d.]+\d)", PAGE))


@pytest.fixture(scope="module")
def facts(run_with) -> dict:
    return run_with("skyrl_run.py", [f"skyrl=={VERSION}", f"skyrl-gym=={GYM}"])


def test_skyrl_uses_the_trainer(facts):
    assert facts["version"] == VERSION
    assert facts["trainer"] == ["AEMTrainer", facts["wanted"]]


def test_why_it_is_no_entry_of_the_registry(facts):
    """As the page says: an estimator gets neither entropies nor log-probabilities. If it ever does, it is simpler."""
    passed = set(re.findall(r"(\w+)=\w+,", facts["estimator"].partition("return estimator_func(")[2]))
    assert {"token_level_rewards", "response_mask", "index"} <= passed
    assert not [name for name in passed if "entrop" in name or "prob" in name]


def test_alpha_times_the_base(facts):
    surprisal_BT = [[-value for value in row] for row in facts["log_probs"]]
    expected = alphas(surprisal_BT, facts["mask"], facts["uids"])
    assert max(expected) > 1.1 and len({facts["uids"][row] for row, _ in messages(facts["mask"])}) == 2
    for row, factor_T in enumerate(per_token(expected, facts["mask"])):
        scaled_T = [factor * base for factor, base in zip(factor_T, facts["base"][row], strict=True)]
        assert facts["aem"][row] == pytest.approx(scaled_T, abs=1e-5)


def test_without_log_probabilities_it_says_what_to_change(facts):
    assert "policy_loss_type" in facts["refused"]
