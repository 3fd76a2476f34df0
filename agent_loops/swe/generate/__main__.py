"""The command line of the generator: python -m agent_loops.swe.generate DIR."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from agent_loops.swe.generate.make import Options, generate
from agent_loops.swe.generate.packages import Package, bundled_recipe
from agent_loops.swe.grading import GradeSettings
from agent_loops.swe.sandbox import BACKENDS, SandboxSettings
from agent_loops.swe.slots import cores


def main(arguments: list[str] | None = None) -> int:
    """Make tasks as the command line says; the exit status is 0 where every package gave at least one."""
    parser = argparse.ArgumentParser(
        prog="python -m agent_loops.swe.generate",
        description="Software-engineering tasks out of PyPI's source packages. Run again to go on where it stopped.",
    )
    parser.add_argument("directory", type=Path, help="where the tasks go")
    parser.add_argument("--packages", nargs="+", metavar="NAME==VERSION", help="instead of the bundled recipe")
    parser.add_argument("--per-package", type=int, default=7, help="tasks of each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the faults' order (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=cores(), help="packages at once (default: the cores, %(default)s)")
    parser.add_argument("--backend", choices=BACKENDS, default=SandboxSettings.backend, help="the sandbox")
    parser.add_argument("--unconfined", action="store_true", help="allows --backend host: no isolation at all")
    given = parser.parse_args(arguments)
    try:
        packages = [Package.parse(text) for text in given.packages] if given.packages else bundled_recipe()
        sandbox = SandboxSettings(backend=given.backend, unconfined=given.unconfined)
        grading = GradeSettings(sandbox=sandbox)
        options = Options(given.directory, packages, given.per_package, given.seed, grading, given.jobs)
        outcomes = generate(options, report=lambda line: print(line, flush=True))
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\n{'package':<24}{'tasks':>6}{'tried':>7}{'seconds':>9}")
    for one in outcomes:
        print(f"{one.package:<24}{one.kept:>6}{sum(one.tried.values()):>7}{one.seconds:>9.0f}  {one.error}".rstrip())
    print(f"{sum(one.kept for one in outcomes)} tasks of {sum(bool(one.kept) for one in outcomes)} packages")
    return 0 if all(one.kept for one in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
