"""The outcome of the digit task (test_other_loops.py), for verl's `reward.custom_reward_function`."""

import re


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_):
    """The last number said, from 0 to 1: chance alone makes the rewards differ. The tokenizer drops the blank."""
    digits = re.findall(r"number\s*(\d)", solution_str)
    return int(digits[-1]) / 9 if digits else 0.0
