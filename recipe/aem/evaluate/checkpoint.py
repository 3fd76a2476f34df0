"""What a checkpoint's name stands for: a Hugging Face model, or what verl saved in training."""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from recipe.aem.evaluate import EvaluationError

TRACKER = "latest_checkpointed_iteration.txt"
_SHARD = re.compile(r"model_world_size_(\d+)_rank_(\d+)\.pt")
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# what has to be the same in a base model for a checkpoint's weights to fit it
_SHAPE = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")


@dataclass(frozen=True)
class Checkpoint:
    """Weights to evaluate.

    Attributes:
        kind: `hf`, or `verl` (sharded, to be loaded onto a base model).
        path: the folder as an absolute path, or the hub's name.
        step: of the training; 0 for `hf`.
        world_size: how many processes wrote it, and have to read it; 0 for `hf`.
        identity: the files' names, sizes and times of change, or the hub's commit: other weights, another identity.
    """

    kind: Literal["hf", "verl"]
    path: str
    step: int
    world_size: int
    identity: list[Any]


def resolve(name: str) -> Checkpoint:
    """Find a checkpoint, and see that it is whole.

    Args:
        name: a Hugging Face folder or hub name; a `global_step_N`, a folder of them, or the output of a run.

    Raises:
        EvaluationError: there is none, or it is not whole.
    """
    path = Path(name).expanduser()
    if not path.exists():
        return _from_hub(name)
    if path.is_file():
        raise EvaluationError(f"{path} is a file; a checkpoint is a folder: a Hugging Face model, or a global_step_N")
    path = path.resolve()
    if path.name == "actor" and path.parent.name.startswith("global_step_"):
        path = path.parent
    if re.fullmatch(r"global_step_\d+", path.name):
        return _of_verl(path)
    if (path / "config.json").is_file():
        return _of_hf(path)
    for folder in (path, path / "checkpoints"):
        if (folder / TRACKER).is_file():
            step = (folder / TRACKER).read_text().strip()
            if not (folder / f"global_step_{step}").is_dir():
                raise EvaluationError(f"{folder / TRACKER} names step {step}, and there is no global_step_{step} in it")
            return _of_verl(folder / f"global_step_{step}")
    steps = sorted(one.name for one in path.glob("global_step_*"))
    if steps:
        raise EvaluationError(
            f"{path} has {', '.join(steps)} but no {TRACKER}, which verl writes when a checkpoint is complete; "
            "name the step's folder to evaluate it all the same"
        )
    raise EvaluationError(
        f"{path} holds no checkpoint: looked for config.json (a Hugging Face model), {TRACKER} here and in "
        "checkpoints/ (a run of verl), or a folder that is called global_step_N"
    )


def check_fits(checkpoint: Checkpoint, base: str, processes: int) -> None:
    """Can verl load the checkpoint in this configuration?

    Args:
        checkpoint: of verl; another kind passes.
        base: the base model, a folder or a hub name (which is not looked into).
        processes: how many the trainer will have.

    Raises:
        EvaluationError: it cannot.
    """
    if checkpoint.kind == "hf":
        return
    if checkpoint.world_size != processes:
        target = f"{checkpoint.path}/hf"
        raise EvaluationError(
            f"{checkpoint.path} was written by {checkpoint.world_size} processes, and verl can read it only with as "
            f"many; here are trainer.nnodes × trainer.n_gpus_per_node = {processes}. Set these, or merge it: "
            f"python -m verl.model_merger merge --backend fsdp --local_dir {checkpoint.path}/actor --target_dir "
            f"{target}; then aem eval {target}"
        )
    theirs, ours = Path(checkpoint.path, "actor", "huggingface", "config.json"), Path(base, "config.json")
    if not (theirs.is_file() and ours.is_file()):
        return
    one, other = (json.loads(file.read_text()) for file in (theirs, ours))
    for key in _SHAPE:
        if one.get(key) != other.get(key):
            raise EvaluationError(
                f"{base} is not the base of {checkpoint.path}: its {key} is {other.get(key)}, the checkpoint's "
                f"{one.get(key)}. Name the model that was trained: --model, or AEM_MODEL"
            )


def _of_hf(path: Path) -> Checkpoint:
    weights = sorted([*path.glob("*.safetensors"), *path.glob("pytorch_model*.bin")])
    if not weights:
        hint = ""
        if path.name == "huggingface" and path.parent.name == "actor":
            hint = f"; verl keeps the weights beside it: aem eval {path.parent.parent}"
        raise EvaluationError(f"{path} has a config.json and no weights (*.safetensors){hint}")
    for file in weights:
        if not file.stat().st_size:
            raise EvaluationError(f"{file} is empty: the checkpoint is unfinished")
    index = path / "model.safetensors.index.json"
    if index.is_file():
        wanted = set(json.loads(index.read_text())["weight_map"].values())
        if missing := sorted(wanted - {file.name for file in weights}):
            raise EvaluationError(f"{path} is unfinished: {index.name} names {missing[0]}, which is not there")
    return Checkpoint("hf", str(path), 0, 0, _identity(path, [path / "config.json", *weights]))


def _of_verl(path: Path) -> Checkpoint:
    actor = path / "actor"
    found: dict[int, list[Path]] = {}
    for file in actor.glob("model_world_size_*_rank_*.pt"):
        if match := _SHARD.fullmatch(file.name):
            found.setdefault(int(match[1]), []).append(file)
    if not found:
        raise EvaluationError(
            f"{path} is unfinished, or not of verl's FSDP trainer: there is no actor/model_world_size_N_rank_0.pt"
        )
    # the trainer reads those of its own size; an older set beside them is of an earlier run in the same folder
    size = max(found, key=lambda one: max(file.stat().st_mtime_ns for file in found[one]))
    shards = [actor / f"model_world_size_{size}_rank_{rank}.pt" for rank in range(size)]
    for shard in shards:
        if not shard.is_file():
            raise EvaluationError(f"{path} is unfinished: {shard.name} is missing ({len(found[size])} of {size} there)")
        if not zipfile.is_zipfile(shard):  # torch writes the directory, which stands at the end, last
            raise EvaluationError(f"{path} is unfinished: {shard} is cut short")
    return Checkpoint("verl", str(path), int(path.name.removeprefix("global_step_")), size, _identity(path, shards))


def _from_hub(name: str) -> Checkpoint:
    looked = f"there is no checkpoint {name}: no such folder"
    if not _HUB.fullmatch(name):
        raise EvaluationError(f"{looked}, and it is not a hub's name such as Qwen/Qwen2.5-1.5B-Instruct")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        file = Path(hf_hub_download(name, "config.json"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        said = " ".join(str(error).split())[:200]
        raise EvaluationError(f"{looked}, and the Hugging Face hub gives no such model ({said})") from None
    return Checkpoint("hf", name, 0, 0, [file.parent.name])  # the cache's folders are called by their commits


def _identity(folder: Path, files: list[Path]) -> list[Any]:
    states = [(file, file.stat()) for file in files]
    return [[str(file.relative_to(folder)), state.st_size, state.st_mtime_ns] for file, state in states]
