"""A study's cells: one training each, with everything passed to the trainer."""

from __future__ import annotations

import difflib
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from recipe.aem.tools.study.composed import Composed, compose
from recipe.aem.tools.study.file import SEED, Study, StudyError

SEEDS = (
    "data.seed",  # the order of the tasks
    "actor_rollout_ref.rollout.seed",  # the sampling
    "actor_rollout_ref.actor.data_loader_seed",  # the order within an update, with actor.shuffle=True
    "actor_rollout_ref.actor.fsdp_config.seed",  # with full_determinism=True
    "actor_rollout_ref.actor.megatron.seed",
    "critic.data_loader_seed",
    "critic.fsdp.seed",
    "critic.megatron.seed",
)
"""verl's seeds; a cell sets those that its configuration has."""

_AXES = ("benchmark", "method", "seed")


@dataclass(frozen=True)
class Cell:
    """One training of a study: its folder, the overrides in the study file, and the variables that the file sets."""

    study: str
    benchmark: str
    method: str
    seed: int
    folder: Path
    config: str
    asked: tuple[str, ...]
    env: Mapping[str, str]

    @property
    def name(self) -> str:
        return f"{self.benchmark}/{self.method}/seed{self.seed}"

    @property
    def lock(self) -> Path:
        """The lock file, next to the folder, because the folder is renamed."""
        return self.folder.with_name(f".{self.folder.name}.lock")

    @property
    def identity(self) -> dict[str, Any]:
        """What the study file says about the cell, as JSON."""
        return {"config": self.config, "overrides": list(self.asked), "seed": self.seed}

    @cached_property
    def composed(self) -> Composed:
        """The cell's configuration as hydra composes it, before the study's own settings.

        Raises:
            StudyError: it cannot be composed, or does not determine when the training ends.
        """
        try:
            composed = compose(self.config, self.asked)
            total = composed.settings.get("trainer.total_training_steps")
            if not isinstance(total, int):
                raise StudyError("set trainer.total_training_steps in `overrides`: a cell is done at its last step")
            for variable, default in composed.variables.items():
                if default is None and variable not in self.env and variable not in os.environ:
                    raise StudyError(f"{self.config} reads the variable {variable}: set it, here or under `env`")
        except StudyError as error:
            raise StudyError(f"{self.name}: {error}") from None
        return composed

    @property
    def last_step(self) -> int:
        return self.composed.settings["trainer.total_training_steps"]

    def overrides(self, resume: bool = False) -> list[str]:
        """Return all overrides for the trainer: the file's, then the study's own, which take precedence."""
        settings = self.composed.settings
        own = [f"{key}={self.seed}" for key in SEEDS if key in settings]
        loggers = settings.get("trainer.logger", [])
        loggers = [loggers] if isinstance(loggers, str) else list(loggers)
        if "file" not in loggers:
            own.append(f"trainer.logger=[{','.join([*loggers, 'file'])}]")
        own += [
            f"trainer.experiment_name={self.study}_{self.benchmark}_{self.method}_seed{self.seed}",
            f"trainer.default_local_dir='{self.folder.absolute() / 'checkpoints'}'",
            f"trainer.resume_mode={'auto' if resume else 'disable'}",
        ]
        return [*self.asked, *own]


def cells(study: Study, out: Path) -> list[Cell]:
    """Return all cells, seed by seed, so that an unfinished study compares the methods on the same seeds."""
    found = []
    for seed in study.seeds:
        for benchmark, of in study.benchmarks.items():
            env = {name: _absolute(value.replace(SEED, str(seed))) for name, value in of.env.items()}
            for method, overrides in study.methods.items():
                asked = (*study.overrides, *of.overrides, *overrides)
                found.append(
                    Cell(
                        study=study.name,
                        benchmark=benchmark,
                        method=method,
                        seed=seed,
                        folder=out / benchmark / method / f"seed{seed}",
                        config=of.config,
                        asked=tuple(item.replace(SEED, str(seed)) for item in asked),
                        env=env,
                    )
                )
    return found


def select(study: Study, all_cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """Return the cells that match one of the filters `axis=value|value,axis=value`; all cells without a filter.

    Raises:
        StudyError: a filter is malformed, or names something that the study does not have; or two filters have no axis
            in common, which is hardly meant as "either".
    """
    if not only:
        return list(all_cells)
    known = {
        "benchmark": list(study.benchmarks),
        "method": list(study.methods),
        "seed": [str(seed) for seed in study.seeds],
    }
    filters = [_filter(text, known) for text in only]
    for (first, one), (second, other) in itertools.combinations(zip(only, filters, strict=True), 2):
        if not one.keys() & other.keys():
            raise StudyError(
                f'--only {first} --only {second} would be all cells of either; for those of both: --only "{first},'
                f'{second}"'
            )
    return [
        cell
        for cell in all_cells
        if any(all(str(getattr(cell, axis)) in values for axis, values in item.items()) for item in filters)
    ]


def _filter(text: str, known: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for part in text.split(","):
        axis, equals, values = part.strip().partition("=")
        if not equals or axis not in _AXES:
            raise StudyError(f"--only {text}: method=NAME, seed=N and benchmark=NAME are expected, joined by commas")
        found[axis] = values.split("|")
        for value in found[axis]:
            if value not in known[axis]:
                close = difflib.get_close_matches(value, known[axis], n=1) or [", ".join(known[axis])]
                raise StudyError(f"--only {text}: the study has no {axis} {value}; it has {close[0]}")
    return found


def _absolute(value: str) -> str:
    """Return an existing path as absolute, because Ray's processes may run elsewhere; anything else unchanged."""
    if not re.match(r"~|\.{1,2}/|[^:\s]+/", value):
        return value
    path = Path(value).expanduser()
    return str(path.absolute()) if path.exists() else value
