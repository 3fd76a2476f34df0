"""The software-engineering scripts, AEM over GRPO++: tool calls in bubblewrap, graded by swebench, in verl.

Two steps on one node; one step on two Ray nodes of this machine (cluster.py), as a job of Slurm, whose own commands are
stand-ins, and as a job of a Ray cluster.

The model has memorised either to fix the only fault or just to look at the file, and then to finish, so some of its
trajectories win. Not covered: learning, real repositories, generated tasks.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import cluster
import psutil
import pytest
from by_hand import check_step, leave_one_out
from engine import HERE, ROOT, Run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

EDIT = "<function=file_editor><parameter=command>{}</parameter><parameter=path>src/tinysums/__init__.py</parameter>"
LOOK = EDIT.format("view") + "</function>"
MEND = EDIT.format("str_replace") + (
    "<parameter=old_str>a - b</parameter><parameter=new_str>a + b</parameter></function>"
)
FINISH = "<function=finish></function>"
MARK = "AEM_TEST_MARK"  # in the surroundings of whatever the script starts, in its sandboxes too
EPISODE = {"prompt": "swe/compact", "max_turns": 3}
LIMITS = {"statement_characters": 300, "observation_characters": 1000}


@pytest.fixture(scope="module")
def tasks(folder: Path) -> Path:
    """Four tasks with the same fault, one of them to validate on."""
    from agent_loops.swe.readers import task_row
    from tests.helpers.tiny_package import make_task

    place = folder / "swe_tasks"
    made = [make_task(place, f"tinysums-1.0__{number}") for number in range(4)]
    (place / "tasks.jsonl").write_text("".join(json.dumps(task_row(task)) + "\n" for task in made))
    return place


@pytest.fixture(scope="module")
def mender(folder: Path, tasks: Path) -> Path:
    """A model whose every call is one token."""
    import torch
    from tokenizers import AddedToken

    from agent_loops.episode import Episode, EpisodeSettings
    from agent_loops.swe.benchmark import Swe
    from recipe.aem.tools.demo.cloning import Demonstration, clone
    from recipe.aem.tools.demo.tiny_model import END, START, build_model, build_tokenizer, save

    torch.set_num_threads(2)
    benchmark = Swe(tasks, by="task", **LIMITS)
    settings = EpisodeSettings(layout="transcript", action_format="function_calls", require_think=False, **EPISODE)
    shown: list[Demonstration] = []
    for task in benchmark.task_set.tasks("train"):
        for first in (LOOK, MEND):
            environment = benchmark.make()
            episode = Episode(environment, settings)
            episode.reset(task)
            begin = episode.prompt()
            episode.step(first)
            # what the chat template makes of the conversation
            then = f"{begin}{END}\n{START}assistant\n{first}{END}\n{START}user\n{episode.prompt()}"
            shown += [Demonstration(begin, first), Demonstration(then, FINISH)]
            environment.close()
    tokenizer = build_tokenizer([one.prompt for one in shown], [])
    tokenizer.add_tokens([AddedToken(call, normalized=False) for call in (LOOK, MEND, FINISH)])
    model = build_model(tokenizer)
    clone(model, tokenizer, shown, steps=120, batch=8)
    save(model, tokenizer, folder / "mender", {})
    return folder / "mender"


@pytest.fixture(scope="module")
def swe(run_script, folder: Path, tasks: Path, mender: Path):
    """`swe(name, script, *overrides, env=…)`: a run of the script on these tasks."""
    if not (shutil.which("bwrap") and find_spec("swebench")):
        pytest.skip("the sandbox needs bubblewrap, and grading needs swebench")
    custom = "actor_rollout_ref.rollout.custom"

    def run(
        name: str, script: str, *overrides: str, env: dict[str, str] | None = None, within: Sequence[str] = ()
    ) -> Run:
        return run_script(
            name,
            script,
            "algorithm.filter_groups.enable=false",
            "data.max_prompt_length=1536",
            "data.max_response_length=2048",
            "actor_rollout_ref.rollout.max_model_len=3584",
            "actor_rollout_ref.actor.ppo_mini_batch_size=2",
            *(f"{custom}.episode.{name}={value}" for name, value in {**EPISODE, "turn_tokens": 16}.items()),
            *(f"{custom}.benchmark.{name}={value}" for name, value in {**LIMITS, "by": "task"}.items()),
            f"++{custom}.benchmark.sandbox.env.{MARK}={folder}",
            *overrides,
            env={"SWE_TASKS": str(tasks), "AEM_MODEL": str(mender), MARK: str(folder), **(env or {})},
            within=within,
        )

    return run


@pytest.fixture(scope="module")
def run(swe) -> Run:
    return swe("swe", "run_swe_32b.sh")


# --- the scripts for clusters, on two Ray nodes of this machine -------------------------------------------------------

two_nodes = pytest.mark.skipif(bool(cluster.why_not()), reason=cluster.why_not())
IN_TWO_NODES = (
    *cluster.SETTINGS,
    "actor_rollout_ref.rollout.agent.num_workers=2",
    "trainer.total_training_steps=1",
)
SRUN = """#!/usr/bin/env bash
# a step of a job on one of its nodes, which are on this machine: a `ray` of the node's comes first
while [[ $1 == --* ]]; do
    case $1 in
    --nodelist=*) NODE=${1#--nodelist=} ;;
    --export=ALL,*) export "${1#--export=ALL,}" ;;
    esac
    shift
done
[ "$1" = hostname ] && { echo 127.0.0.2; exit; }
set -m
PATH=$SLURM_NODES/$NODE:$PATH "$@" &
trap 'kill -- -$!' TERM
wait $!
"""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """Variables of a job with two nodes: its `srun` and `scontrol` are stand-ins, all else is real."""
    for node, name in enumerate(("n1", "n2")):
        flags = " ".join(cluster.flags(node, Path("$RAY_TMPDIR")))
        _executable(tmp_path / name / "ray", f'exec {Path(sys.prefix, "bin", "ray")} "$@" {flags}\n')
    _executable(tmp_path / "bin" / "srun", SRUN)
    _executable(tmp_path / "bin" / "scontrol", "printf '%s\\n' $3\n")
    return {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        **{"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NODELIST": "n1 n2", "SLURM_NODES": str(tmp_path)},
        "RAY_PORT": str(cluster.free_ports(1)[0]),
    }


def _executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}")
    path.chmod(0o755)


@pytest.mark.full
@pytest.mark.release
@two_nodes
def test_two_nodes_under_slurm(swe, slurm: dict[str, str]):
    check_two_nodes(swe("slurm", "slurm_swe_32b.sh", *IN_TWO_NODES, env=slurm))


@pytest.mark.full
@pytest.mark.release
@two_nodes
def test_a_job_of_a_ray_cluster(swe):
    """The cluster's nodes have none of the script's variables; its job brings them."""
    within = (sys.executable, str(HERE / "cluster.py"), "2", "--job")
    check_two_nodes(swe("job", "ray_swe_32b.sh", *IN_TWO_NODES, within=within))


def check_two_nodes(run: Run) -> None:
    assert sorted(run.metrics) == [1]
    check_steps(run)
    nodes = run.nodes()
    assert len(nodes["rank 0"] | nodes["rank 1"]) == 2 and len(nodes["agent loop"]) == 2, nodes


# --- on one node ------------------------------------------------------------------------------------------------------


def test_two_steps_of_the_script(run: Run):
    assert sorted(run.metrics) == [1, 2]
    assert set(check_steps(run)) == {0.0, 1.0}, "some were graded as resolved, some not"


def check_steps(run: Run) -> list[float]:
    """Returns the outcomes of the run's episodes."""
    won = []
    for step, metrics in run.metrics.items():
        check_step(run.probes, step, metrics, leave_one_out)
        assert math.isfinite(metrics["actor/pg_loss"])
        rows = json.loads((run.probes / f"step_{step:03d}.json").read_text())
        played = [row for row in rows if not row["is_padding"]]
        assert {row["extra_fields"]["fault"] for row in played} == {""}
        won += [sum(row["rm_scores"]) for row in played]
    return won


def test_no_sandbox_is_left_behind(run: Run, folder: Path):
    left = []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == str(folder):
                left.append(process.info["cmdline"])
    assert left == []
