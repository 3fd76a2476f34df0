"""Plays games with the official packages and prints what they answer; needs nothing but them.

    PYTHON official.py DATA < PLANS > RECORDS

Every line of PLANS is {"game": path below DATA, "plays": [[command, …], …]}; every line of RECORDS is the game, the
seconds to load and to reset, and for each play what was seen at first and after each command.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import textworld
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler, AlfredInfos
from textworld.envs.pddl import PddlEnv


def seen(state: Any, score: float, done: bool) -> dict[str, Any]:
    return {
        "text": state["feedback"],
        "commands": state["admissible_commands"],
        "score": score,
        "done": done,
        "won": state["won"],
    }


def record(path: str, plays: list[list[str]]) -> dict[str, Any]:
    infos = textworld.EnvInfos(won=True, admissible_commands=True, extras=["gamefile"])
    environment = AlfredInfos(AlfredDemangler(PddlEnv(infos)))
    started = time.perf_counter()
    environment.load(path)
    loaded = time.perf_counter() - started
    recorded, resets, stepping, steps = [], [], 0.0, 0
    for commands in plays:
        started = time.perf_counter()
        state = environment.reset()
        resets.append(time.perf_counter() - started)
        answers = [seen(state, 0, False)]
        for command in commands:
            started = time.perf_counter()
            state, score, done = environment.step(command)
            stepping += time.perf_counter() - started
            steps += 1
            answers.append(seen(state, score, done))
            if done:
                break
        recorded.append(answers)
    return {"load_s": loaded, "reset_s": resets, "step_s": stepping, "steps": steps, "plays": recorded}


def main(data: str) -> None:
    # the planner writes to standard output from C++
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        plan = json.loads(line)
        answer = {"game": plan["game"], **record(os.path.join(data, plan["game"]), plan["plays"])}
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
