"""The benchmark script runs, states its targets, and skips without data."""

import json
import subprocess
import sys
from pathlib import Path

from agent_loops.webshop import load_catalogue
from agent_loops.webshop.goals import count_goals

ROOT = Path(__file__).resolve().parents[3]


def benchmark(*arguments: str | Path) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / "webshop.py"), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_figures_stand_beside_their_targets(generated_dir: Path, tmp_path: Path) -> None:
    shown = benchmark("--data", generated_dir, "--episodes", "10", "--json", tmp_path / "figures.json")
    lines = {line[:32].strip(): line for line in shown.splitlines()}
    assert lines["steps/s, one process"].endswith(">= 2000")
    assert lines["reset, median ms"].endswith("<= 1")
    assert lines["memory, 128 episodes, MB"].endswith("<= 150")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["products"], figures["goals"]) == (360, 4000)
    assert 0 < figures["memory, 1 episode, MB"] <= 1.1 * figures["memory, 128 episodes, MB"]
    assert figures["memory, 128 episodes, MB"] <= 150


def test_it_skips_without_data(tmp_path: Path) -> None:
    assert benchmark("--data", tmp_path).startswith(f"skipped: WebShop's data are not at {tmp_path}")


def test_a_large_catalogue_is_made_prepared_and_measured(tmp_path: Path) -> None:
    benchmark("--make-large", tmp_path / "data", "--products", "1500")
    catalogue = load_catalogue(tmp_path / "data")
    assert len(catalogue.products) == 1500
    assert len(catalogue.goals) == sum(map(count_goals, catalogue.products))
    shown = benchmark("--large", tmp_path / "data", "--cache", tmp_path / "cache")
    lines = {line[:32].strip(): line for line in shown.splitlines()}
    assert lines["open, s"].endswith("<= 1")
    assert "search, median ms" in lines and "1,500" in lines["products"]
