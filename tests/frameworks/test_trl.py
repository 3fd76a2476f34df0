"""examples/trl_aem.py in TRL's GRPOTrainer: five steps on a small model that calls tools, and what its loss then reads.

Not covered: several processes, vLLM, that anything is learned.
"""

from __future__ import annotations

import math
import re
from collections import Counter

import pytest

from tests.helpers.by_hand import alphas, messages, per_token
from tests.helpers.surroundings import ROOT

pytestmark = [pytest.mark.release, pytest.mark.timeout(900)]  # the first test waits for the run
EXAMPLE = (ROOT / "examples" / "trl_aem.py").read_text(encoding="utf-8")
(VERSION,) = re.findall(r"trl==([\d.]+)", EXAMPLE)


@pytest.fixture(scope="module")
def facts(run_with) -> dict:
    return run_with("trl_run.py", [f"trl=={VERSION}"])


def test_the_example_is_short_and_the_page_names_its_version():
    assert len(EXAMPLE.splitlines()) < 80
    page = (ROOT / "docs" / "frameworks.md").read_text(encoding="utf-8")
    assert set(re.findall(r"trl==([\d.]+)|TRL ([\d.]+\d)", page)) <= {(VERSION, ""), ("", VERSION)}
    assert f"trl=={VERSION}" in page


def test_what_it_leans_on_in_trl(facts):
    """The private names, and the order of the arguments that the example passes by place."""
    assert facts["version"] == VERSION
    signatures = facts["signatures"]
    assert signatures["_generate_and_score_completions"].startswith("(self, inputs")
    expected = "(self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False"
    assert signatures["_get_per_token_logps_and_entropies"].startswith(expected)


def test_five_steps_with_tools(facts):
    steps = [entry for entry in facts["log"] if "loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4, 5] and len(facts["generations"]) == 5
    assert all(math.isfinite(entry["loss"]) and entry["grad_norm"] > 0 for entry in steps)
    assert all(0 <= entry["aem/modulated"] <= 1 <= entry["aem/alpha_max"] for entry in steps)
    in_a_row = [Counter(row for row, _ in messages(seen["mask"])) for seen in facts["generations"]]
    assert max(max(counts.values()) for counts in in_a_row) >= 3  # two calls and an end, or more
    assert sum(entry["tools/call_frequency"] for entry in steps) > 0
    # the messages differ in entropy, and rewards within a group, so that there is something to modulate
    assert any(entry["aem/modulated"] > 0 and entry["frac_reward_zero_std"] < 1 for entry in steps)


def test_alpha_is_aem_cores_on_the_logged_entropies(facts):
    for seen in facts["generations"]:
        assert seen["group"] == [row // facts["group"] for row in range(len(seen["mask"]))]
        assert (seen["lam"], seen["min_range"]) == (1.0, 0.1)
        expected = alphas(seen["entropy"], seen["mask"], seen["group"])
        assert seen["alpha"] == pytest.approx(expected, rel=1e-4)
        for alpha_T, base_T, given_on_T in zip(
            per_token(expected, seen["mask"]), seen["base"], seen["given_on"], strict=True
        ):
            scaled_T = [alpha * base for alpha, base in zip(alpha_T, base_T, strict=True)]
            assert given_on_T == pytest.approx(scaled_T, rel=1e-4, abs=1e-6)


def test_the_entropies_are_the_policys(facts):
    """Compared with −Σ p log p from logits of each row alone, without padding, at TRL's temperature."""
    for seen in facts["generations"]:
        for row, entropies in enumerate(seen["by_hand"]):
            assert seen["entropy"][row][: len(entropies)] == pytest.approx(entropies, abs=1e-4)


def test_the_base_is_trls_own_advantage(facts):
    for seen in facts["generations"]:
        for start in range(0, len(seen["rewards"]), facts["group"]):
            rewards = seen["rewards"][start : start + facts["group"]]
            centre = sum(rewards) / len(rewards)
            spread = math.sqrt(sum((reward - centre) ** 2 for reward in rewards) / (len(rewards) - 1))
            for row, reward in enumerate(rewards, start):
                assert seen["base"][row][0] == pytest.approx((reward - centre) / (spread + 1e-4), abs=1e-4)


def test_trls_loss_reads_each_tokens_advantage(facts):
    assert len(facts["losses"]) == 10  # two micro-batches a step
    assert any(abs(loss) > 1e-3 for loss, _ in facts["losses"])
    for loss, expected in facts["losses"]:
        assert loss == pytest.approx(expected, abs=1e-5)
