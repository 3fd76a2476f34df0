"""The benchmark script runs, states its targets, and skips without games."""

import json
import subprocess
import sys
from pathlib import Path

from tests.helpers.kitchen import write_games

ROOT = Path(__file__).resolve().parents[3]


def benchmark(*arguments: str | Path) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / "alfworld.py"), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_figures_stand_beside_their_targets(tmp_path: Path) -> None:
    data = write_games(tmp_path / "kitchens", n_train=40)
    shown = benchmark("--data", data, "--games", "5", "--json", tmp_path / "figures.json")
    lines = {line[:36].strip(): line for line in shown.splitlines()}
    assert lines["load and reset, median ms"].endswith("<= 30")
    assert lines["memory, 128 live games, MB"].endswith("<= 100")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["games played"] == 5
    assert 0 < figures["memory, 1 live games, MB"] <= 1.1 * figures["memory, 128 live games, MB"]


def test_it_skips_without_games(tmp_path: Path) -> None:
    assert benchmark("--data", tmp_path).startswith(f"skipped: ALFWorld's games are not at {tmp_path}")
