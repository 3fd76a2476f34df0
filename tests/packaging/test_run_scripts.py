"""scripts/run_*.sh, with a set-up and a python that only say what they were asked: which commands, which settings, and
the one line where something is missing.

Not covered: training itself (tests/e2e/test_script.py), and the set-up (test_setup_script.py).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agent_loops.locks import held
from tests.helpers.surroundings import ROOT

SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("run_*.sh"))
# in the place of the environment's python: notes its arguments, and leaves a checkpoint where verl would
PYTHON = """#!/usr/bin/env bash
printf '%s\\n' "$*" >>"$CALLS"
case "$*" in *main_ppo*) env | grep -E '^(AEM|VERL|ALFWORLD|WEBSHOP|SCIENCEWORLD|SWE)_' | sort >>"$CALLS"
    mkdir -p "$AEM_OUTPUT/checkpoints" && echo 5 >"$AEM_OUTPUT/checkpoints/latest_checkpointed_iteration.txt";; esac
"""
# as PYTHON, but for the lock
LOCKING = PYTHON + 'case "$*" in *agent_loops.locks*) PYTHONPATH=ROOT exec PYTHON "$@";; esac\n'
JAVA = "#!/usr/bin/env bash\nexit 0\n"


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def checkout(tmp_path):
    """A checkout with the real scripts but for the set-up, and an environment."""
    root = tmp_path / "check out"
    shutil.copytree(ROOT / "scripts", root / "scripts")
    (root / "scripts" / "setup.sh").write_text(
        'mkdir -p "$AEM_VENV/.aem-setup"; echo "$STACK" >"$AEM_VENV/.aem-setup/stack"\n'
    )
    executable(root / ".venv" / "bin" / "python", PYTHON)
    executable(tmp_path / "jdk" / "bin" / "java", JAVA)
    executable(tmp_path / "bwrap" / "bwrap", JAVA)
    (tmp_path / "games").mkdir()
    return root


@pytest.fixture
def run(checkout, tmp_path):
    """Runs a script in `tmp_path`; returns exit code, standard output, standard error and the calls of python."""

    def call(script: str, *arguments: str, **variables: str):
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        given = {"STACK": "gpu", "AEM_OUTPUT": str(tmp_path / "out"), "JAVA_HOME": str(tmp_path / "jdk"), **variables}
        path = f"{tmp_path}/bwrap:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", str(checkout / "scripts" / script), *arguments],
            cwd=tmp_path, env={"PATH": path, "CALLS": str(calls), **given}, capture_output=True, text=True
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr, calls.read_text().splitlines() if calls.exists() else []

    return call


def test_every_script_has_its_configuration_and_names_itself():
    assert len(SCRIPTS) == 6
    for script in SCRIPTS:
        config = script.removeprefix("run_").removesuffix(".sh")
        assert (ROOT / "recipe" / "aem" / "config" / f"{config}.yaml").is_file()
        text = (ROOT / "scripts" / script).read_text()
        assert text.endswith(f'run_benchmark {config} "$@"\n')
        assert set(part for part in text.split() if part.startswith("scripts/run_")) == {f"scripts/{script}"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_makes_the_tasks_then_trains_then_says_how_to_evaluate(script, run, tmp_path, checkout):
    config = script.removeprefix("run_").removesuffix(".sh")
    benchmark = config.partition("_")[0]
    code, out, err, calls = run(script, "method=gigpo", "a.b=c d", ALFWORLD_DATA="games", AEM_MODEL="my model")
    assert code == 0, err
    tasks = next(number for number, call in enumerate(calls) if "recipe.aem.tools.task_files" in call)
    engine = next(number for number, call in enumerate(calls) if "main_ppo" in call)
    output = tmp_path / "out"
    assert (
        tasks < engine
        and calls[tasks] == f"-m recipe.aem.tools.task_files {config} {output}/tasks method=gigpo a.b=c d"
    )
    assert f"--config-name={config} " in calls[engine] and calls[engine].endswith(" method=gigpo a.b=c d")
    assert f"trainer.default_local_dir={output}/checkpoints trainer.experiment_name={config}_gigpo" in calls[engine]
    assert f"VERL_FILE_LOGGER_PATH={output}/metrics.jsonl" in calls[engine:]
    assert f"{benchmark.upper()}_PARQUET={output}/tasks" in calls[engine:]

    words = shlex.split(out.splitlines()[-1])
    data = {
        "alfworld": [f"ALFWORLD_DATA={tmp_path}/games"],
        "webshop": [f"WEBSHOP_DATA={checkout}/outputs/webshop"],
        "scienceworld": [],
        "swe": [f"SWE_TASKS={checkout}/outputs/swe"],
    }
    assert words == [
        f"AEM_OUTPUT={output}", *data[benchmark], "AEM_MODEL=my model", "bash", f"scripts/{script}",
        "method=gigpo", "a.b=c d", "trainer.val_only=true", "trainer.val_before_train=true",
    ]  # fmt: skip
    again = run(script, "trainer.val_only=true", ALFWORLD_DATA="games")
    assert f"VERL_FILE_LOGGER_PATH={output}/metrics.jsonl" in again[3], "no metrics were written, so the name is free"
    assert again[:2] == (0, "")


def test_two_runs_on_one_output_are_refused(run, tmp_path, checkout):
    """The second before it writes anything, by name and number of the first; once that has ended, it runs."""
    executable(
        checkout / ".venv" / "bin" / "python",
        LOCKING.replace("ROOT", str(ROOT)).replace('PYTHON "', f'{sys.executable} "'),
    )
    with held(tmp_path / "out", "x"):
        code, out, err, calls = run("run_alfworld_7b.sh", ALFWORLD_DATA="games")
    assert (code, out) == (1, "") and err.count("\n") == 1
    assert f"{tmp_path}/out is in use by process {os.getpid()} on " in err and "set AEM_OUTPUT to another folder" in err
    assert not any("recipe.aem.tools.task_files" in call or "main_ppo" in call for call in calls)
    assert not list((tmp_path / "out").glob("[!.]*")), "nothing was written"
    code, _, err, calls = run("run_alfworld_7b.sh", ALFWORLD_DATA="games")
    assert code == 0 and any("main_ppo" in call for call in calls), err
    with held(tmp_path / "out", "x"):
        pass


def test_what_trains_is_looked_after(run):
    calls = run("run_alfworld_7b.sh", ALFWORLD_DATA="games")[3]
    engine = next(call for call in calls if "main_ppo" in call)
    assert re.match(r"-I -S \S.*/recipe/aem/tools/supervise\.py \d+ --say interrupted; .* -- python -m verl", engine)


def test_metrics_of_an_earlier_run_are_kept(run, tmp_path):
    (tmp_path / "out").mkdir()
    for name in ("metrics.jsonl", "metrics.2.jsonl"):
        (tmp_path / "out" / name).write_text("")
    calls = run("run_alfworld_7b.sh", ALFWORLD_DATA="games")[3]
    assert f"VERL_FILE_LOGGER_PATH={tmp_path}/out/metrics.3.jsonl" in calls


@pytest.mark.parametrize("script", ["run_alfworld_7b.sh", "run_alfworld_1.5b.sh"])
@pytest.mark.parametrize("data", ["", "nowhere"])
def test_alfworld_without_games_stops_before_anything_else(script, data, run, checkout):
    code, out, err, calls = run(script, ALFWORLD_DATA=data)
    assert (code, out, calls) == (1, "", []) and err.count("\n") == 1
    assert "ALFWORLD_DATA" in err and "Run `aem data alfworld`" in err
    assert not (checkout / ".venv" / ".aem-setup").exists(), "the set-up must not have begun"


def test_scienceworld_without_java_stops_before_anything_else(run, tmp_path, checkout):
    for name in ("bash", "dirname", "basename"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or name)
    code, out, err, calls = run("run_scienceworld_7b.sh", JAVA_HOME="", PATH=str(tmp_path / "bin"))
    assert (code, out, calls) == (1, "", []) and err.count("\n") == 1
    assert "runs on Java" in err and "apt-get install" in err and "JAVA_HOME" in err
    assert not (checkout / ".venv" / ".aem-setup").exists()


def test_scienceworld_without_its_package(run, checkout):
    executable(checkout / ".venv" / "bin" / "python", "#!/usr/bin/env bash\nexit 1\n")
    code, out, err, _ = run("run_scienceworld_7b.sh")
    assert (code, out) == (1, "") and err.count("\n") == 1 and "[gpu,scienceworld]" in err


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_a_gpu_it_asks_for_the_machine_file(script, run):
    code, _, err, calls = run(script, STACK="cpu", ALFWORLD_DATA="games")
    assert (code, calls) == (1, []) and "add machine=cpu" in err
    code, _, err, calls = run(script, "machine=cpu", STACK="cpu", ALFWORLD_DATA="games")
    assert code == 0 and any(call.endswith(" machine=cpu") for call in calls), err


def test_swe_without_bubblewrap_stops_before_anything_else(run, tmp_path, checkout):
    (tmp_path / "bin").mkdir()
    for name in ("bash", "dirname", "basename", "realpath", "grep", "env", "sort", "mkdir", "cat"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or name)
    path = str(tmp_path / "bin")
    code, out, err, calls = run("run_swe_32b.sh", PATH=path)
    assert (code, out, calls) == (1, "", []) and err.count("\n") == 1
    assert "apt-get install bubblewrap" in err and "SWE_BACKEND=docker" in err
    assert not (checkout / ".venv" / ".aem-setup").exists()
    assert run("run_swe_32b.sh", PATH=path, SWE_BACKEND="docker")[0] == 0
    setting = "actor_rollout_ref.rollout.custom.benchmark.sandbox.backend"
    assert run("run_swe_32b.sh", f"{setting}=swerex_modal", PATH=path)[0] == 0
    assert run("run_swe_32b.sh", f"{setting}=bubblewrap", PATH=path, SWE_BACKEND="docker")[0] == 1


def test_swe_without_its_packages(run, checkout):
    executable(checkout / ".venv" / "bin" / "python", "#!/usr/bin/env bash\nexit 1\n")
    code, out, err, _ = run("run_swe_32b.sh")
    assert (code, out) == (1, "") and err.count("\n") == 1 and "[gpu,swe]" in err


def test_swe_takes_tasks_of_ones_own_and_makes_some_otherwise(run, tmp_path, checkout):
    calls = run("run_swe_32b.sh")[3]
    assert any(call.endswith(f" -m agent_loops.swe.generate {checkout}/outputs/swe") for call in calls)
    (tmp_path / "verified").write_text("")
    code, out, _, calls = run("run_swe_32b.sh", SWE_TASKS="my tasks", SWE_VALIDATION="verified", SWE_BACKEND="docker")
    assert code == 0 and not any("generate" in call for call in calls)
    assert {f"SWE_TASKS={tmp_path}/my tasks", f"SWE_VALIDATION={tmp_path}/verified"} <= set(calls)
    words = shlex.split(out.splitlines()[-1])
    for word in (f"SWE_TASKS={tmp_path}/my tasks", f"SWE_VALIDATION={tmp_path}/verified", "SWE_BACKEND=docker"):
        assert word in words
    code, _, err, _ = run("run_swe_32b.sh", SWE_VALIDATION="nowhere")
    assert code == 1 and "nowhere does not exist" in err


@pytest.mark.parametrize(("script", "method"), [("run_swe_32b.sh", "aem_grpopp"), ("run_webshop_7b.sh", "aem")])
def test_a_runs_folder_is_named_after_the_method_that_it_has_by_default(script, method, run):
    assert any(f"trainer.experiment_name={script[4:-3]}_{method} " in f"{call} " for call in run(script)[3])


def test_a_cluster_that_is_there_is_told_the_knobs(run, tmp_path):
    """Ray's processes on other nodes, or of another day, have not this shell's environment."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    odd = r"it's\here, {a: b} and $more"
    (tmp_path / odd).mkdir()
    calls = run("run_alfworld_7b.sh", "a=b", ALFWORLD_DATA=odd, RAY_ADDRESS="10.0.0.1:6379")[3]
    engine = next(call for call in calls if "main_ppo" in call)
    assert engine.endswith(" a=b")
    prefix = "++ray_kwargs.ray_init.runtime_env.env_vars."
    told = [f"{prefix}{part}".strip() for part in engine.removesuffix(" a=b").split(prefix)[1:]]
    parsed = {one.key_or_group: one.value() for one in OverridesParser.create().parse_overrides(told)}
    names = {key.rpartition(".")[2]: value for key, value in parsed.items()}
    assert names["ALFWORLD_DATA"] == str(tmp_path / odd) and names["ALFWORLD_PARQUET"] == f"{tmp_path}/out/tasks"
    assert names["VERL_FILE_LOGGER_PATH"] == f"{tmp_path}/out/metrics.jsonl" and "AEM_OUTPUT" in names
    assert not any(prefix in call for call in run("run_alfworld_7b.sh", ALFWORLD_DATA=odd)[3])


# --- several nodes ----------------------------------------------------------------------------------------------------

SRUN = """#!/usr/bin/env bash
printf 'srun %s\\n' "$*" >>"$CALLS"
while [[ $1 == --* ]]; do case $1 in --export=ALL,*) export "${1#--export=ALL,}" ;; esac; shift; done
case $1 in
hostname) echo '10.0.0.1 192.168.0.1' ;;
ray) exec sleep 60 ;;
bash) [ "$2" = -c ] || exec "$@" ;;
*) exec "$@" ;;
esac
"""


@pytest.fixture
def cluster(tmp_path, checkout, monkeypatch):
    """Slurm's commands and Ray's, which only say what they were asked."""
    bin_ = tmp_path / "bwrap"
    executable(bin_ / "srun", SRUN)
    executable(bin_ / "scontrol", "#!/usr/bin/env bash\nprintf '%s\\n' $3\n")
    executable(checkout / ".venv" / "bin" / "ray", '#!/usr/bin/env bash\nprintf "ray|%s" "$@" >>"$CALLS"\n')


@pytest.mark.parametrize("nodes", ["n1", "n1 n2 n3"])
def test_slurm_starts_ray_on_every_node_and_the_run_on_the_first(nodes, cluster, run, checkout):
    count = len(nodes.split())
    given = {"SLURM_SUBMIT_DIR": str(checkout), "SLURM_JOB_NODELIST": nodes, "SWE_TASKS": "/data"}
    code, _, err, calls = run("slurm_swe_32b.sh", "method=grpopp", **given)
    assert code == 0, err
    starts = [call for call in calls if "ray start" in call]
    assert len(starts) == min(count, 2)
    (head,) = (call for call in starts if "--head" in call)
    assert "--nodelist=n1 ray start --head --node-ip-address=10.0.0.1 --port=6379 --num-gpus=8 --block" in head
    if count > 1:
        (others,) = (call for call in starts if "--head" not in call)
        assert "--nodes=2" in others and "--nodelist=n2,n3" in others and "--address=10.0.0.1:6379" in others
    waited = next(
        number for number, call in enumerate(calls) if call.startswith("-c ") or "import sys, time, ray" in call
    )
    engine = next(number for number, call in enumerate(calls) if "main_ppo" in call)
    assert waited < engine and f"trainer.nnodes={count} method=grpopp" in calls[engine]
    assert "env_vars.SWE_TASKS='/data'" in calls[engine]


def test_slurm_wants_the_checkout(cluster, run, tmp_path):
    code, _, err, calls = run("slurm_swe_32b.sh", SLURM_SUBMIT_DIR=str(tmp_path))
    assert (code, calls) == (1, []) and "is not the checkout" in err
    code, _, err, _ = run("slurm_swe_32b.sh")
    assert code == 1 and "submit this file with sbatch" in err


def test_a_ray_job_gets_the_knobs_and_the_nodes(cluster, run, checkout):
    given = {"RAY_DASHBOARD": "http://head:8265", "NODES": "4", "SWE_TASKS": "/my data", "HF_TOKEN": "secret"}
    code, _, err, calls = run("ray_swe_32b.sh", "method=grpopp", **given)
    assert code == 0, err
    words = "\n".join(calls).split("ray|")[1:]
    assert words[:5] == ["job", "submit", "--address", "http://head:8265", "--no-wait"]
    assert words[5:7] == ["--", "env"] and "SWE_TASKS=/my data" in words
    assert words[-4:] == ["bash", f"{checkout}/scripts/run_swe_32b.sh", "trainer.nnodes=4", "method=grpopp"]
    assert not any("secret" in word for word in words)
    for missing in ("NODES", "RAY_DASHBOARD"):
        code, _, err, calls = run("ray_swe_32b.sh", **{**given, missing: ""})
        assert code == 1 and missing in err and not calls
