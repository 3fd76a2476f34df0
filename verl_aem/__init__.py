"""What verl and vLLM load at start: the entry points `verl.plugins` and `vllm.general_plugins` lead here.

It stands outside `recipe`, because another installed package may ship a regular package `recipe` (verl-project's
rl-insight does), which then hides our namespace portion; and because verl logs a plug-in that fails to load at DEBUG
only, so the failure has to speak for itself.
"""

from __future__ import annotations

import importlib
import logging
import os
from pathlib import Path

_RECIPE = Path(__file__).resolve().parent.parent / "recipe"


def uncover_recipe() -> None:
    """Add our directory to `recipe`'s search path where another package of that name hides it."""
    recipe = importlib.import_module("recipe")
    if (_RECIPE / "aem").is_dir() and str(_RECIPE) not in list(recipe.__path__):
        recipe.__path__ = [*recipe.__path__, str(_RECIPE)]


def load() -> None:
    """Import `recipe.aem.plugin`, which registers everything; a failure is logged as an error, then raised."""
    try:
        uncover_recipe()
        importlib.import_module("recipe.aem.plugin")
    except Exception:  # whatever it is, it goes on
        logging.getLogger(__name__).exception(
            "verl-aem could not be loaded, so algorithm.adv_estimator=aem is not available in this process. "
            "`python -c 'import recipe; print(recipe.__path__)'` shows where `recipe` comes from; "
            "`pip install --force-reinstall --no-deps verl-aem` repairs a broken install."
        )
        raise


def vllm_plugin() -> None:
    """vLLM calls this in each of its processes; it matters only on a machine without a GPU."""
    if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
        uncover_recipe()
        importlib.import_module("recipe.aem.cpu.remedies").keep_plain_weights()
