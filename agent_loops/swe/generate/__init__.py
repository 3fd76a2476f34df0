"""Generation of software-engineering tasks from PyPI's source packages: each is a small fault put into correct code.

    aem data swe

A fault is kept if a few of the package's own tests detect it, if reverting it makes them pass, and if other changes do
not. The problem statements are synthetic: templates around what the failing tests print.
"""

from agent_loops.swe.generate.make import Options, Outcome, generate
from agent_loops.swe.generate.packages import Package, bundled_recipe

__all__ = ["Options", "Outcome", "Package", "bundled_recipe", "generate"]
