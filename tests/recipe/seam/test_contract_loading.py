"""What this project depends on in how verl loads plug-ins, keeps settings and writes metrics, one test per name."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

pytest.importorskip("verl", reason="verl is not installed")

import verl_aem

verl_aem.load()


def test_the_rollouts_free_slot_stays_plain_data():
    from verl.utils.config import omega_conf_to_dataclass

    custom = {"benchmark": {"target": "collections.OrderedDict", "data_dir": "x"}, "episode": {"max_turns": 3}}
    config = {"_target_": "verl.workers.config.RolloutConfig", "name": "vllm", "mode": "async", "custom": custom}
    kept = omega_conf_to_dataclass(OmegaConf.create(config)).custom
    assert kept == custom and kept["benchmark"]["target"] == "collections.OrderedDict"


def test_a_target_of_hydras_in_the_free_slot_would_be_made():
    """Why the benchmark is named by `target`: `_target_` would open it wherever verl reads its rollout settings."""
    from verl.utils.config import omega_conf_to_dataclass

    config = {
        "_target_": "verl.workers.config.RolloutConfig",
        "name": "vllm",
        "mode": "async",
        "custom": {"benchmark": {"_target_": "fractions.Fraction", "numerator": 3}},
    }
    assert type(omega_conf_to_dataclass(OmegaConf.create(config)).custom["benchmark"]).__name__ == "Fraction"


def test_verl_imports_what_an_entry_point_names_calls_nothing_and_hides_its_errors(tmp_path):
    info = tmp_path / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[verl.plugins]\nplain = plain_plugin\nbroken = broken_plugin\n")
    (tmp_path / "plain_plugin.py").write_text("print('imported')\ndef load(): print('called')\n")
    (tmp_path / "broken_plugin.py").write_text("raise RuntimeError('hidden')\n")
    (tmp_path / "by_name.py").write_text("print('by name')\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "VERL_USE_EXTERNAL_MODULES": "by_name"}
    environment.pop("VERL_USE_EXTERNAL_PLUGINS", None)
    done = subprocess.run(
        [sys.executable, "-c", "import verl; print(verl.__version__)"],
        env=environment, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout.split()
    assert "imported" in said and "called" not in said
    assert done.stdout.index("by name") < done.stdout.index("imported")
    assert "hidden" not in done.stderr, "verl speaks of a broken plug-in now; verl_aem.load need not"


def test_a_line_of_metrics_that_does_not_fit_waits(tmp_path, monkeypatch):
    """recipe.aem.seam.full_disk puts itself round these two, and writes verl's own bytes to `fp`."""
    from verl.utils.tracking import FileLogger

    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path / "metrics.jsonl"))
    one = FileLogger("project", "experiment")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    one.log({"a": 1.5}, step=1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))  # half of the second line
    try:
        one.log(data={"a": 2.5}, step=2)
        text = (tmp_path / "metrics.jsonl").read_text()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, heard)
    first, second = '{"step":1,"data":{"a":1.5}}\n', '{"step":2,"data":{"a":2.5}}\n'
    assert len(first) < 50 < len(first + second) and text == first
    one.finish()
    assert (tmp_path / "metrics.jsonl").read_text() == first + second
