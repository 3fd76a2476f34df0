"""TextWorldExpress: small text games (searching, cooking, sorting …), generated anew for each seed.

TextWorldExpress (Jansen and Côté, 2022, https://github.com/cognitiveailab/TextWorldExpress, Apache-2.0 licence) is a
simulator in Scala; the package `textworld-express` carries it, and it runs on Java. Nothing of it is copied here.

Example:
    >>> from agent_loops.textworld_express import TextWorldExpress
    >>> benchmark = TextWorldExpress("coin", {"numLocations": 8})
    >>> benchmark.task_set.tasks("dev")[0]
    {'game': 'coin', 'seed': 10000}
    >>> environment = benchmark.make()                              # doctest: +SKIP
    >>> environment.reset(benchmark.task_set.tasks("dev")[0]).text  # doctest: +SKIP
"""

from agent_loops.java import JavaError
from agent_loops.jvm import SimulatorError
from agent_loops.textworld_express.benchmark import TextWorldExpress
from agent_loops.textworld_express.environment import TextWorldExpressEnvironment
from agent_loops.textworld_express.simulator import Simulator
from agent_loops.textworld_express.tasks import GAMES, TextWorldExpressTasks

__all__ = [
    "GAMES",
    "JavaError",
    "Simulator",
    "SimulatorError",
    "TextWorldExpress",
    "TextWorldExpressEnvironment",
    "TextWorldExpressTasks",
]
