"""Software-engineering tasks out of PyPI's source packages: each is one small fault, put into code that was right.

    aem data swe

A fault is kept when a few of the package's own tests see it, when taking it back makes them pass, and when other
changes do not. The problem statements are synthetic: templates around what the failing tests print.
"""

from agent_loops.swe.generate.make import Options, Outcome, generate
from agent_loops.swe.generate.packages import Package, bundled_recipe

__all__ = ["Options", "Outcome", "Package", "bundled_recipe", "generate"]
