"""The tool of the digit task (test_other_loops.py), for verl's `multi_turn.function_tool_path`."""

import random

from verl.tools.function_tool import function_tool


@function_tool
def roll() -> str:
    """Roll the die."""
    return random.choice(["high", "low"])
