"""Two steps of the 7B script in the transcript layout, on the generated shop: one row of many responses per trajectory.

The worker's loss must receive, response by response, what the plain loops expect (by_hand.py). Not covered: that both
layouts agree (tests/recipe/test_layouts.py), a row's edges (tests/agent_loops/test_transcript.py), learning.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from by_hand import check_step
from engine import Run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

EPISODE = "actor_rollout_ref.rollout.custom.episode"


@pytest.fixture(scope="module")
def run(run_script, shop_data: Path) -> Run:
    return run_script(
        "transcript",
        "run_webshop_7b.sh",
        # the layout: docs/conversations.md
        f"{EPISODE}.layout=transcript",
        f"{EPISODE}.turn_tokens=16",
        "data.max_prompt_length=512",
        "data.max_response_length=1536",
        "actor_rollout_ref.rollout.max_model_len=2048",
        # the small model's: it was shown this prompt, and does not reason in words
        f"{EPISODE}.prompt=webshop/compact",
        f"{EPISODE}.require_think=false",
        f"{EPISODE}.max_turns=5",
        # it wins nothing yet; charged by its length, every response has an advantage of its own
        f"{EPISODE}.overlong_buffer=1.0",
        f"{EPISODE}.overlong_penalty=5.0",
        "data.train_batch_size=4",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        env={"WEBSHOP_DATA": str(shop_data)},
    )


def test_two_steps_of_transcripts(run: Run):
    assert sorted(run.metrics) == [1, 2]
    lengths = []
    for step, metrics in run.metrics.items():
        checked = check_step(run.probes, step, metrics)
        assert (checked.rows, checked.padding) == (16, 0), "a row a trajectory"
        assert math.isfinite(metrics["actor/pg_loss"]) and math.isfinite(metrics["actor/kl_loss"])
        # the engine went on from the very tokens that the trainer sees: else these would differ by far more
        assert metrics["training/rollout_probs_diff_max"] < 1e-4
        assert checked.guarded < len(checked.ranges), "entropies have to differ for α to say anything"
        assert sum(abs(one.base) > 0.1 for one in checked.responses) > len(checked.responses) / 2
        rows = json.loads((run.probes / f"step_{step:03d}.json").read_text())
        for row in rows:
            spans = row["extra_fields"]["response_spans"]
            assert row["key"].endswith("_0") and row["extra_fields"]["fault"] == ""
            owned = {place for start, stop in spans for place in range(start, stop)}
            assert row["response_mask"] == [int(place in owned) for place in range(len(row["response_mask"]))]
            # verl's reward is on the last token, which the model wrote
            assert spans[-1][1] == len(row["response_mask"]) <= 1536
            assert len(row["extra_fields"]["turn_penalties"]) == len(spans)
            assert max(stop - start for start, stop in spans) <= 16
            lengths.append(len(spans))
    assert max(lengths) > 1 and sum(lengths) > 1.5 * len(lengths), lengths
