"""What a scripted policy answers: an admissible action, in the required format. Nothing of verl is imported here."""

from __future__ import annotations

import random
import re

from agent_loops.environment import Observation
from agent_loops.episode import EpisodeSettings

FREE_COMMAND = "look around"
"""Where a benchmark lists no actions."""
_SLOT = re.compile(r"<[^<>]*>")


def choose_action(observation: Observation, instruction: str, choose: random.Random) -> str:
    """An admissible action. What it leaves open (`search[<your query>]`) is filled with words of the task."""
    actions = list(observation.actions)
    if not actions:
        return FREE_COMMAND
    # "Find me …" is how WebShop's begin
    words = " ".join(re.findall(r"[a-z]+", instruction.lower())[2:6]) or "lamp"
    return _SLOT.sub(words, choose.choice(actions))


def answer(settings: EpisodeSettings, action: str) -> str:
    """A response in the format that the episode asks for."""
    thought = "<think>the doctor tries an admissible action</think>" if settings.require_think else ""
    if settings.action_format == "function_calls":
        return thought + (action if action.startswith("<function=") else "<function=finish></function>")
    return f"{thought}<action>{action}</action>"
