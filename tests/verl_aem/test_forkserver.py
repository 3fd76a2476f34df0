"""Forked workers: each behaves like a separately started process, and a run continues if forking is unavailable.

The workers here are small scripts. Not covered: Ray and verl in them, which every run of tests/e2e uses; speed.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recipe.aem.cpu import remedies
from verl_aem import forkserver

pytestmark = pytest.mark.timeout(300)
ROOT = Path(__file__).parents[2]

# what a worker says of itself
SCRIPT = """
import json, os, random, sys
print(json.dumps({
    "arguments": sys.argv, "name": __name__, "file": __file__, "path": sys.path[0], "folder": os.getcwd(),
    "environment": dict(os.environ), "parent": os.getppid(), "group": os.getpgid(0), "id": os.getpid(),
    "input": sys.stdin.read(), "imported": sorted({"early_one", "late_one"} & set(sys.modules)),
    "seen": getattr(sys.modules.get("late_one"), "SEEN", None), "draw": random.random(),
    "numpy": sys.modules["numpy"].random.random() if "numpy" in sys.modules else None,
    "torch": sys.modules["torch"].rand(1).item() if "torch" in sys.modules else None,
}))
print("a warning", file=sys.stderr)
"""
SLEEP = "import sys, time; print(__import__('os').getpid(), flush=True); time.sleep(600)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "early_one.py").write_text("import os; os.environ['OF_THE_IMPORT'] = os.environ['TAKEN'] = 'early'")
    (tmp_path / "late_one.py").write_text("import os; SEEN = os.environ.get('JOB'); os.environ['LATE'] = 'late'")
    (tmp_path / "worker.py").write_text(SCRIPT)
    (tmp_path / "sleep.py").write_text(SLEEP)
    return tmp_path


Start = Callable[..., tuple[subprocess.Popen, list[str]]]


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """`start(early, late)`: a server and the command for a worker."""
    servers = []

    def run(early: tuple[str, ...] = ("early_one",), late: tuple[str, ...] = ("late_one",)):
        path = os.pathsep.join([str(folder), str(ROOT)])
        server, command = forkserver.start(early, late, {**os.environ, "PYTHONPATH": path, "OF_THE_SERVER": "1"})
        servers.append(server)
        return server, ["bash", "-c", f'exec {command} "$@"', "bash"]  # as Ray runs it

    yield run
    for server in servers:
        server.stdin.close()
        server.wait(60)


def ask(command: list[str], folder: Path, *arguments: str, **environment: str) -> dict:
    done = subprocess.run(
        [*command, str(folder / "worker.py"), *arguments],
        env={"PATH": os.environ["PATH"], **environment},
        cwd=folder,
        input="of the caller",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "errors": done.stderr}


def test_a_worker_is_what_its_command_asks_for(start: Start, folder: Path):
    server, command = start()
    worker = ask(command, folder, "--name", "two words", "", JOB="7")
    assert worker["arguments"] == [str(folder / "worker.py"), "--name", "two words", ""]
    assert (worker["name"], worker["file"]) == ("__main__", str(folder / "worker.py"))
    assert worker["folder"] == worker["path"] == str(folder)
    assert worker["input"] == "of the caller" and worker["errors"] == "a warning\n"
    assert worker["imported"] == ["early_one", "late_one"] and worker["parent"] == server.pid
    assert worker["group"] == worker["id"], "Ray ends a worker's whole group"


def test_a_workers_environment_is_its_own_and_what_the_imports_set(start: Start, folder: Path):
    _, command = start()
    first, second = ask(command, folder, JOB="7"), ask(command, folder, JOB="8", TAKEN="mine", LATE="mine")
    assert first["seen"] == second["seen"] == "7", "the late modules are imported in the first worker's environment"
    assert (first["environment"]["JOB"], second["environment"]["JOB"]) == ("7", "8")
    assert "OF_THE_SERVER" not in first["environment"]
    set_by_imports = {"OF_THE_IMPORT": "early", "TAKEN": "early", "LATE": "late"}
    assert set_by_imports.items() <= first["environment"].items()
    assert {"OF_THE_IMPORT": "early", "TAKEN": "mine", "LATE": "mine"}.items() <= second["environment"].items()


def test_workers_draw_numbers_of_their_own(start: Start, folder: Path):
    _, command = start(early=("numpy", "torch"))
    one, other = ask(command, folder), ask(command, folder)
    assert all(one[name] != other[name] for name in ("draw", "numpy", "torch"))


def test_the_command_lasts_as_long_as_the_worker_and_a_killed_group_harms_no_other(start: Start, folder: Path):
    _, command = start()
    waiting = subprocess.Popen([*command, str(folder / "sleep.py")], stdout=subprocess.PIPE, text=True)
    assert waiting.stdout is not None
    worker = int(waiting.stdout.readline())
    assert waiting.poll() is None
    os.killpg(worker, signal.SIGKILL)
    assert waiting.wait(60) == 0
    assert ask(command, folder)["imported"] == ["early_one", "late_one"]


def test_a_command_that_is_killed_while_it_asks_harms_no_other(start: Start, folder: Path):
    _, command = start()
    address = command[2].split()[-2]
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        connection.sendall(b'{"command": [')
    assert ask(command, folder)["imported"] == ["early_one", "late_one"]


def test_without_a_server_the_worker_imports_for_itself(start: Start, folder: Path):
    server, command = start()
    address = Path(command[2].split()[-2])
    assert address.is_socket()
    assert server.stdin is not None
    server.stdin.close()
    assert server.wait(60) == 0 and not address.parent.exists()
    worker = ask(command, folder, JOB="7")
    assert worker["imported"] == [] and worker["environment"]["JOB"] == "7"
    assert "no warm worker" in worker["errors"] and str(address) in worker["errors"]


@pytest.mark.parametrize("where", ["early", "late"])
def test_a_module_that_cannot_be_imported_costs_the_fork_and_not_the_run(start: Start, folder: Path, where: str):
    server, command = start(**{where: ("no_such_module",)})
    worker = ask(command, folder)
    assert worker["imported"] == [] and "no warm worker" in worker["errors"]
    assert server.wait(60) == 1


def test_the_server_ends_with_the_process_that_started_it(folder: Path):
    code = """
import os, sys
from verl_aem import forkserver
server, command = forkserver.start(["json"], ["json"], os.environ)
print(server.pid, command.split()[-1], flush=True)
os._exit(1)
"""
    said = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True).stdout.split()
    server, address = int(said[0]), Path(said[1])
    while Path(f"/proc/{server}").exists() and "Z" not in Path(f"/proc/{server}/stat").read_text().split()[2]:
        time.sleep(0.05)
    assert not address.parent.exists()


def test_a_server_that_is_asked_to_end_removes_its_folder(start: Start, folder: Path):
    """As whoever ends a run asks what is left of it; its workers have no part in that."""
    server, command = start()
    address = Path(command[2].split()[-2])
    assert ask(command, folder)["imported"] and address.parent.is_dir()
    server.terminate()
    assert server.wait(60) == 0 and not address.parent.exists()


# --- where a run uses it ----------------------------------------------------------------------------------------------


class Init:
    """Stands for ray.init."""

    def __call__(self, *args, **kwargs):
        self.kwargs = kwargs
        return "context"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    calls: list[tuple] = []

    def fake(*args):
        calls.append(args)
        return "server", "python fork"

    monkeypatch.setattr(forkserver, "start", fake)
    monkeypatch.setattr(remedies, "_is_trainer", lambda: True)
    monkeypatch.setattr(remedies, "_SERVERS", [])
    for name in ("AEM_FORK_WORKERS", "OMP_NUM_THREADS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_the_trainers_workers_are_forked(started: list[tuple]):
    init = Init()
    given = {"env_vars": {"NCCL_DEBUG": "WARN"}, "working_dir": None, "py_executable": None}
    assert remedies._fork_workers(init, None, (), {"num_cpus": 16, "runtime_env": given}) == "context"
    assert init.kwargs == {"num_cpus": 16, "runtime_env": {**given, "py_executable": "python fork"}}
    assert given["py_executable"] is None, "the caller's configuration stays"
    ((early, late, environment),) = started
    assert (early, late) == (remedies.LIBRARIES, remedies.WORKER_MODULES) and remedies._SERVERS == ["server"]
    assert environment["NCCL_DEBUG"] == "WARN" and environment["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize("given", [{"runtime_env": {"py_executable": "my python"}}, {"address": "auto"}])
def test_the_users_command_and_cluster_are_left_alone(started: list[tuple], given: dict):
    init = Init()
    remedies._fork_workers(init, None, (), given)
    assert init.kwargs == given and not started


@pytest.mark.parametrize(("name", "value"), [("AEM_FORK_WORKERS", "0"), ("RAY_ADDRESS", "10.0.0.1:6379")])
def test_the_environment_can_turn_it_off(started: list[tuple], monkeypatch: pytest.MonkeyPatch, name: str, value: str):
    monkeypatch.setenv(name, value)
    init = Init()
    remedies._fork_workers(init, None, (), {})
    assert init.kwargs == {} and not started


@pytest.mark.parametrize(("module", "expected"), [("verl.trainer.main_ppo", "True"), ("verl.trainer.other", "False")])
def test_only_verls_own_entry_point_is_the_trainer(tmp_path: Path, module: str, expected: str):
    package = tmp_path / "verl" / "trainer"
    package.mkdir(parents=True)
    for name in ("main_ppo", "other"):
        (package / f"{name}.py").write_text("from recipe.aem.cpu import remedies; print(remedies._is_trainer())")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    (package / "__init__.py").touch()
    (package.parent / "__init__.py").touch()
    done = subprocess.run([sys.executable, "-m", module], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [expected], done.stderr


# --- contracts --------------------------------------------------------------------------------------------------------


def test_the_libraries_leave_ray_alone_and_everything_leaves_a_fork_safe():
    """Ray's library reads the job's number when it is loaded; a thread of an import would not exist in a child."""
    pytest.importorskip("vllm", reason="vllm is not installed")
    code = """
import importlib, sys, threading
from pathlib import Path
from recipe.aem.cpu import remedies
for name in remedies.LIBRARIES:
    importlib.import_module(name)
print("ray" in sys.modules, "verl" in sys.modules, "vllm" in sys.modules)
for name in remedies.WORKER_MODULES:
    importlib.import_module(name)
import torch
own, *_ = threads = [path.read_text().strip() for path in sorted(Path("/proc/self/task").glob("*/comm"))]
names = set(threads) - {own}
print(threading.active_count(), torch.get_num_threads(), *names)
"""
    environment = {**os.environ, "VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("False", "True", "1 "))]
    assert lines == ["False False False", "1 1 jemalloc_bg_thd"], done.stdout + done.stderr


def test_ray_takes_the_command_of_its_workers_and_runs_it_in_a_shell():
    pytest.importorskip("ray", reason="ray is not installed")
    import inspect

    from ray._private.runtime_env.context import RuntimeEnvContext
    from ray.runtime_env import RuntimeEnv

    assert RuntimeEnv(py_executable="python -I 'a b'")["py_executable"] == "python -I 'a b'"
    source = inspect.getsource(RuntimeEnvContext.exec_worker)
    assert '["exec", self.py_executable]' in source and 'os.execvp("bash"' in source


def test_ray_still_has_the_setting_for_workers_that_nobody_asked_for():
    """A name that Ray does not know would be ignored in silence."""
    ray = pytest.importorskip("ray", reason="ray is not installed")
    (name,) = [name.removeprefix("RAY_") for name in remedies.ENVIRONMENT if name.startswith("RAY_")]
    raylet = Path(ray.__file__).parent / "core/src/ray/raylet/raylet"
    with raylet.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        assert content.find(name.encode()) >= 0


def test_vllm_takes_its_executor_by_the_full_name_only():
    """`machine=cpu`; where "uni" is enough, write that."""
    pytest.importorskip("vllm", reason="vllm is not installed")
    code = """
import inspect
from pathlib import Path
from omegaconf import OmegaConf
from vllm.platforms.cpu import CpuPlatform
from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm.v1.executor.abstract import Executor
rollout = OmegaConf.load("recipe/aem/config/machine/cpu.yaml").actor_rollout_ref.rollout
executor = resolve_obj_by_qualname(rollout.engine_kwargs.vllm.distributed_executor_backend)
assert rollout.tensor_model_parallel_size == 1
print(executor.__name__, issubclass(executor, Executor))
print('distributed_executor_backend == "uni"' in inspect.getsource(CpuPlatform.check_and_update_config))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split()[-3:] == ["UniProcExecutor", "True", "True"], done.stderr
