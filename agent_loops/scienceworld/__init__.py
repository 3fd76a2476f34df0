"""ScienceWorld: 30 elementary-school science tasks in a simulated house, played by text commands.

ScienceWorld (Wang et al., 2022, https://github.com/allenai/ScienceWorld, Apache-2.0 licence) is a simulator in Scala;
the package `scienceworld` carries it, and it runs on Java. Nothing of it is copied here.

Example:
    >>> from agent_loops.scienceworld import ScienceWorld
    >>> benchmark = ScienceWorld(tasks="boil")
    >>> benchmark.task_set.tasks("dev")[0]
    {'task': 'boil', 'variation': 14, 'simplification': 'easy'}
    >>> environment = benchmark.make()                              # doctest: +SKIP
    >>> environment.reset(benchmark.task_set.tasks("dev")[0]).text  # doctest: +SKIP
"""

from agent_loops.java import JavaError
from agent_loops.jvm import SimulatorError
from agent_loops.scienceworld.benchmark import ScienceWorld
from agent_loops.scienceworld.environment import ScienceWorldEnvironment
from agent_loops.scienceworld.simulator import Game, Simulator
from agent_loops.scienceworld.tasks import VARIATIONS, ScienceWorldTasks

__all__ = [
    "VARIATIONS",
    "Game",
    "JavaError",
    "ScienceWorld",
    "ScienceWorldEnvironment",
    "ScienceWorldTasks",
    "Simulator",
    "SimulatorError",
]
