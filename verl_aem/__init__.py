"""The targets of the entry points `verl.plugins` and `vllm.general_plugins`, which verl and vLLM load at start.

They are outside `recipe` because another installed package may ship a regular package `recipe` (verl-project's
rl-insight does), which then hides our namespace portion. verl logs a plug-in that fails to load only at DEBUG, so this
module reports the failure itself.
"""

from __future__ import annotations

import importlib
import logging
import os
from pathlib import Path

_RECIPE = Path(__file__).resolve().parent.parent / "recipe"


def uncover_recipe() -> None:
    """Add our directory to `recipe`'s search path if another package of that name hides it."""
    recipe = importlib.import_module("recipe")
    if (_RECIPE / "aem").is_dir() and str(_RECIPE) not in list(recipe.__path__):
        recipe.__path__ = [*recipe.__path__, str(_RECIPE)]


def load() -> None:
    """Import `recipe.aem.plugin`, which registers everything; a failure is logged as an error, then raised."""
    try:
        uncover_recipe()
        importlib.import_module("recipe.aem.plugin")
    except Exception:  # any error, which is re-raised
        logging.getLogger(__name__).exception(
            "verl-aem could not be loaded, so algorithm.adv_estimator=aem is not available in this process. "
            "`python -c 'import recipe; print(recipe.__path__)'` shows where `recipe` comes from; "
            "`pip install --force-reinstall --no-deps verl-aem` repairs a broken install."
        )
        raise


def vllm_plugin() -> None:
    """Install the CPU workaround for vLLM, which calls this in each of its processes, if `VERL_PLATFORM=cpu`."""
    if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
        uncover_recipe()
        importlib.import_module("recipe.aem.cpu.remedies").keep_plain_weights()
