"""A generating process is killed in the middle of a step: the run ends by itself, names the process, and saves nothing.

Not covered: a process that hangs instead of ending (tests/recipe/seam/test_trajectories.py), several nodes.
"""

from __future__ import annotations

import os
import threading
import time

import psutil
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.release, pytest.mark.timeout(900)]
# seconds from the kill to the end of the run, with all of its processes, however busy the machine is; a run that hangs
# would take the 600 of engine.TIMEOUT
BOUND = 300


def _find(name: str) -> psutil.Process:
    (found,) = [one for one in psutil.Process(os.getpid()).children(recursive=True) if name in " ".join(one.cmdline())]
    return found


class Killer(threading.Thread):
    """Kills a process of the run once something is there; `at` is when."""

    def __init__(self, name: str, when):
        super().__init__(daemon=True)
        self.name_of_process, self.when = name, when
        self.at = float("inf")

    def run(self) -> None:
        while not self.when():
            time.sleep(0.05)
        _find(self.name_of_process).kill()
        self.at = time.monotonic()


@pytest.mark.parametrize(
    ("process", "said"),
    [
        ("VLLM::EngineCore", "the vLLM engine (EngineCore) of replica 0 has died"),
        ("ray::AgentLoopWorkerTQ", "agent loop worker 0 has died"),
    ],
)
def test_a_run_ends_when_a_process_that_generates_is_killed(train_shopper, folder, process, said):
    name = f"killed_{process.rpartition(':')[2]}"
    metrics, checkpoints = folder / f"{name}.jsonl", folder / f"{name}_checkpoints"
    # the line of the first step is written when the second one's prompts are about to be handed out
    killer = Killer(process, lambda: metrics.exists() and metrics.read_text().count("\n") == 1)
    killer.start()
    with pytest.raises(AssertionError, match="ended with status 1"):
        train_shopper(
            name,
            "trainer.total_training_steps=3",
            "trainer.save_freq=1",
            f"trainer.default_local_dir={checkpoints}",
        )
    seconds = time.monotonic() - killer.at
    print(f"{name}: the run ended {seconds:.0f} s after the kill")
    log = (folder / f"{name}.log").read_text(errors="replace")
    assert said in log and 0 < seconds < BOUND
    assert (checkpoints / "latest_checkpointed_iteration.txt").read_text() == "1"
    assert [one.name for one in checkpoints.glob("global_step_*")] == ["global_step_1"]
    assert metrics.read_text().count("\n") == 1
