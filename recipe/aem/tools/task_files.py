"""A run's tasks as verl's parquet files:

python -m recipe.aem.tools.task_files CONFIG DIRECTORY [OVERRIDES...]

The benchmark is the one that the run's configuration names, with all overrides of the run: what chooses tasks for the
environments (`…custom.benchmark.tasks=[boil]`) chooses those that verl draws too.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from agent_loops.dataset import write_parquet
from agent_loops.environment import Benchmark
from agent_loops.reading import reason
from recipe.aem.tools.hydra_config import ConfigurationError, compose


def make_benchmark(config: DictConfig, changes: Mapping[str, Any] | None = None) -> Benchmark:
    """The benchmark of a composed configuration (`actor_rollout_ref.rollout.custom.benchmark`).

    Args:
        config: verl's whole configuration.
        changes: arguments of the benchmark in place of the configuration's.

    Raises:
        ConfigurationError: the configuration names none.
    """
    import hydra

    settings = OmegaConf.select(config, "actor_rollout_ref.rollout.custom.benchmark")
    if settings is None:
        raise ConfigurationError("actor_rollout_ref.rollout.custom.benchmark is not set", "name what is to be played")
    arguments: Any = OmegaConf.to_container(settings, resolve=True)
    return hydra.utils.get_object(arguments.pop("target"))(**{**arguments, **(changes or {})})


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    if len(arguments) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    name, directory, *given = arguments
    # main_ppo's other arguments are options of hydra's, which have no part in the configuration
    overrides = [one for one in given if "=" in one and not one.startswith(("-", "hydra."))]
    try:
        benchmark = make_benchmark(compose(name, overrides))
    except ConfigurationError as error:
        print(f"{error}: {error.remedy}", file=sys.stderr)
        return 1
    except (ValueError, OSError, RuntimeError, TypeError) as error:  # a setting of the benchmark, or its data
        print(f"the benchmark of {name} cannot be opened: {reason(error)}", file=sys.stderr)
        return 1
    try:
        counts = write_parquet(benchmark, Path(directory))
    except (ValueError, OSError) as error:  # data that are read when they are asked for, or the directory
        print(f"the tasks of {name} cannot be written to {directory}: {reason(error)}", file=sys.stderr)
        return 1
    print(f"{directory}: " + ", ".join(f"{count} {split} tasks" for split, count in counts.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
