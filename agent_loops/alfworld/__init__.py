"""ALFWorld's text games in native Python: the official `game.tw-pddl` files without TextWorld, a planner or a lock.

The games, their texts and their rules are ALFWorld's (Shridhar et al., 2021, https://github.com/alfworld/alfworld, MIT
licence), played by TextWorld (Côté et al., 2018, https://github.com/microsoft/TextWorld, MIT licence); this engine
reads the rules from the files. The code is this project's own.

Example:
    >>> from agent_loops.alfworld import Alfworld
    >>> benchmark = Alfworld("data/alfworld")                              # doctest: +SKIP
    >>> environment = benchmark.make()                                     # doctest: +SKIP
    >>> environment.reset(benchmark.task_set.tasks("train")[0]).actions    # doctest: +SKIP
    >>> environment.step("go to fridge 1").observation.text                # doctest: +SKIP
"""

from agent_loops.alfworld.benchmark import Alfworld
from agent_loops.alfworld.environment import AlfworldEnvironment
from agent_loops.alfworld.game import Game, GameError, Play, load_game
from agent_loops.alfworld.tasks import KINDS, AlfworldTasks, find_games

__all__ = [
    "KINDS",
    "Alfworld",
    "AlfworldEnvironment",
    "AlfworldTasks",
    "Game",
    "GameError",
    "Play",
    "find_games",
    "load_game",
]
