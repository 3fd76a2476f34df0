"""A replica of the engine's training loop in plain PyTorch, for many seeds of a study on small models.

python studies/replica.py studies/study.yaml --out outputs/replica [--seeds 20] [--jobs 2] [--only …]
python studies/replica.py studies/study.yaml --out outputs/replica --seeds 20 --csv studies/results/replica.csv

What decides a comparison is the product's own: episodes and prompts (`agent_loops.episode`), the form of the rows, and
the advantages (`recipe.aem.seam.advantage.compute_advantages`, which runs inside verl). Written anew are sampling
(transformers in place of vLLM) and the update (verl's vanilla policy loss and AdamW in place of its engine), because a
start of verl takes longer than a whole run here. Every setting comes from the configuration that verl would be given,
and what this loop does not do is refused. Unlike in the engine, a seed fixes every sample.

Two settings are known here only, and verl must not get them: `+algorithm.alpha_of_kind=true` (`aem_of_kind`), AEM's α
averaged over each kind of turn in a group, and `+algorithm.entropy_curve=METHOD`, an entropy bonus that follows the
entropy of METHOD's run.

A cell is one file, `OUT/BENCHMARK/METHOD/seedN.jsonl`, which appears whole or not at all.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from agent_loops.workers import die_with_parent
from recipe.aem.tools.study.cells import Cell, cells, select
from recipe.aem.tools.study.file import Study, read_study
from recipe.aem.tools.study.results import Result, as_csv, rows
from recipe.aem.tools.study.state import State

if TYPE_CHECKING:
    from replica_parts.training import Training


ENTROPY_CURVE = "entropy_curve"
"""A setting under `algorithm` that names the method whose run of the same seed is followed in entropy."""
HERE_ONLY = {"aem_of_kind": ("method=aem", "+algorithm.alpha_of_kind=true")}


def study_of(path: Path, seeds: Sequence[int] | None = None) -> Study:
    """Return a study with these seeds instead of its own, and if AEM is in it with AEM's variants of the replica."""
    study = read_study(path)
    more = {name: of for name, of in HERE_ONLY.items() if "aem" in study.methods and name not in study.methods}
    return dataclasses.replace(study, seeds=tuple(seeds or study.seeds), methods={**study.methods, **more})


def path_of(cell: Cell) -> Path:
    return cell.folder.with_suffix(".jsonl")


def training_of(cell: Cell) -> Training:
    """Return a cell's training, not yet started."""
    os.environ.update(cell.env)
    import hydra.utils
    import pyarrow.parquet as pq
    import torch
    from omegaconf import OmegaConf
    from replica_parts.training import Training
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    from recipe.aem.tools.hydra_config import compose

    torch.set_num_threads(1)
    disable_progress_bar()
    config = compose(cell.config, cell.asked)
    followed = config.algorithm.get(ENTROPY_CURVE)
    benchmark: Any = OmegaConf.to_container(config.actor_rollout_ref.rollout.custom.benchmark, resolve=True)

    def tasks(file: str) -> list:
        return [extra["task"] for extra in pq.read_table(file).column("extra_info").to_pylist()]

    model = config.actor_rollout_ref.model.path
    return Training(
        config,
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        AutoTokenizer.from_pretrained(model),
        hydra.utils.get_object(benchmark.pop("target"))(**benchmark),
        tasks(config.data.train_files),
        tasks(config.data.val_files)[: config.data.val_max_samples],
        cell.seed,
        None if followed is None else entropies(path_of(cell).parents[1] / followed / f"seed{cell.seed}.jsonl"),
    )


def entropies(path: Path) -> dict[int, float]:
    """Return a finished run's entropy at each step."""
    if not path.exists():
        raise SystemExit(f"{path} is not there, and its entropy is to be followed: run that cell first")
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {line["step"]: line["data"]["actor/entropy"] for line in lines if line["step"]}


def train(cell: Cell) -> float:
    """Train a cell in a worker; return the seconds it took. The environment is left as it was."""
    started = time.perf_counter()
    with mock.patch.dict(os.environ):  # which the configuration reads, and `training_of` sets
        training = training_of(cell)
        path = path_of(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        # two that train the same cell must not write into one file
        partial = path.with_suffix(f".{os.getpid()}.partial")
        with partial.open("w", encoding="utf-8") as file:
            for step, metrics in training.run():
                file.write(json.dumps({"step": step, "data": metrics}) + "\n")
                file.flush()
        partial.replace(path)
    return time.perf_counter() - started


def run_all(todo: list[Cell], jobs: int) -> None:
    """Train cells, `jobs` at a time, in processes that end with this one, however it ends."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, fresh, _end_with, (os.getpid(),)) as pool:
        for cell, seconds in zip(todo, pool.map(train, todo), strict=True):
            print(f"{datetime.now():%H:%M:%S} {cell.name} {seconds:.0f} s", flush=True)


def _end_with(parent: int) -> None:
    """End this process when its parent ends, or now if it has ended already."""
    die_with_parent()
    if os.getppid() != parent:
        os._exit(1)


def results(all_cells: list[Cell]) -> list[Result]:
    """Return the cells as `aem study` reads its own."""
    found = []
    for cell in all_cells:
        if path_of(cell).exists():
            lines = [json.loads(line) for line in path_of(cell).read_text(encoding="utf-8").splitlines()]
            found.append(Result(cell, State("done"), {line["step"]: line["data"] for line in lines}))
        else:
            found.append(Result(cell, State("to do"), {}))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, help="so many, from 0 on, in place of the file's")
    parser.add_argument("--only", action="append", default=[], help="as in aem study run")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--csv", type=Path, help="write what is there and train nothing")
    options = parser.parse_args()
    study = study_of(options.study, range(options.seeds) if options.seeds else None)
    every = cells(study, options.out)
    chosen = select(study, every, options.only)
    found = results([cell for cell in every if cell in chosen])
    if options.csv:
        options.csv.parent.mkdir(parents=True, exist_ok=True)
        options.csv.write_text(as_csv(rows(study, found)), encoding="utf-8")
        return
    run_all([result.cell for result in found if result.state.kind != "done"], options.jobs)


if __name__ == "__main__":
    main()
