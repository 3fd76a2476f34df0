"""What a configuration names, and whether it is there: data, base model, machine."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.aem.tools.evaluate import EvaluationError
from recipe.aem.tools.evaluate.checkpoint import Checkpoint

if TYPE_CHECKING:
    from omegaconf import DictConfig

CUSTOM = "actor_rollout_ref.rollout.custom"
NAMES = ("webshop", "alfworld", "scienceworld", "swe")
# the setting that names a benchmark's data, and the variable that it waits for
DATA = {
    "webshop": (f"{CUSTOM}.benchmark.data_dir", "WEBSHOP_DATA"),
    "alfworld": (f"{CUSTOM}.benchmark.data_dir", "ALFWORLD_DATA"),
    "swe": (f"{CUSTOM}.benchmark.tasks", "SWE_TASKS"),
}
_FETCH = {
    "webshop": "Name the shop of the training: --data DIR, or WEBSHOP_DATA; `aem data webshop` fetches WebShop's own",
    "alfworld": "Name the games: --data DIR, or ALFWORLD_DATA; `aem data alfworld` fetches them",
    "swe": "Name the tasks: --data PATH, or SWE_TASKS; docs/swe.md says how to have some",
}


def select(config: DictConfig, key: str) -> Any:
    """A value; None where it is missing, or waits for a variable of the environment."""
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationResolutionError

    try:
        return OmegaConf.select(config, key)
    except InterpolationResolutionError:
        return None


def kind_of(config: DictConfig, name: str) -> str:
    """The benchmark by its module: `webshop` of `agent_loops.webshop.WebShop`; of a foreign one, the target itself."""
    loop = config.actor_rollout_ref.rollout.agent.default_agent_loop
    target = str(select(config, f"{CUSTOM}.benchmark.target") or "")
    if loop != "environment" or not target:
        raise EvaluationError(f"{name} plays no benchmark of this package: its agent loop is {loop}, not environment")
    return next((kind for kind in NAMES if f".{kind}." in target), target)


def check_data(kind: str, config: DictConfig, given: bool) -> None:
    """Are the benchmark's files, and what plays them, there?

    Args:
        kind: of `kind_of`; a foreign one looks after itself when it opens.
        config: composed.
        given: the data were named by --data.

    Raises:
        EvaluationError: something is missing; says what to do, as scripts/run_*.sh do.
    """
    if kind == "scienceworld":
        _check_scienceworld()
    if kind == "swe" and importlib.util.find_spec("swebench") is None:
        raise EvaluationError("what grades is not installed: pip install 'verl-aem[swe]'")
    backend = select(config, f"{CUSTOM}.benchmark.sandbox.backend") if kind == "swe" else None
    if backend == "bubblewrap" and shutil.which("bwrap") is None:
        raise EvaluationError(
            "agents' commands run in bubblewrap, and there is no `bwrap` here: apt-get install bubblewrap, or name "
            "another sandbox: SWE_BACKEND=docker (docs/swe.md)"
        )
    if kind not in DATA:
        return
    setting, variable = DATA[kind]
    value = select(config, setting)
    if value is None:
        raise EvaluationError(f"{variable} is not set. {_FETCH[kind]}")
    if not Path(str(value)).exists():
        where = "--data" if given else variable
        raise EvaluationError(f"{where}: {value} does not exist. {_FETCH[kind]}")


def _check_scienceworld() -> None:
    from recipe.aem.tools.doctor.data import check_scienceworld

    for finding in check_scienceworld():
        if finding.level == "failure":
            raise EvaluationError(f"{finding.detail}: {finding.remedy}")


def base_model(config: DictConfig, checkpoint: Checkpoint) -> str:
    """What verl loads first: a folder, or a hub's name.

    Raises:
        EvaluationError: nothing names it, or the folder is not there.
    """
    path = select(config, "actor_rollout_ref.model.path")
    if path is None:
        raise EvaluationError(
            f"{checkpoint.path} holds weights only: name the model that was trained, with --model or AEM_MODEL"
        )
    text = str(path)
    if text.startswith(("/", ".", "~")) and not Path(text).expanduser().is_dir():
        raise EvaluationError(f"the base model {text} is not a folder: correct --model or AEM_MODEL")
    return text


def check_device(device: str, name: str) -> None:
    """Refuse a configuration for GPUs where there is none.

    Raises:
        EvaluationError: there is none.
    """
    if device != "cuda":
        return
    import torch

    if not torch.cuda.is_available():
        raise EvaluationError(
            f"no GPU here, and {name} wants some: add machine=cpu (for a small model), or run this on a GPU node"
        )
