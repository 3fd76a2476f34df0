"""Selection of findings, reports of a process with the plug-in loaded, and the processes that a test started."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

from agent_loops.finding import Finding
from recipe.aem.methods.registry import ESTIMATORS

ROOT = Path(__file__).resolve().parents[2]
GOOD = {
    "plugins": "",
    "modules": "",
    "platform": "",
    "error": "",
    "load_error": "",
    "entry_point": True,
    "loaded": True,
    "plugin_file": str(ROOT / "recipe/aem/plugin.py"),
    "recipes": [],
    "estimators": dict.fromkeys(ESTIMATORS, "recipe.aem.seam.wraps") | {"grpo": "verl.trainer.ppo.core_algos"},
    "loop": "agent_loops.loop.EnvironmentAgentLoop",
    "wrapped": {"PPOTrainer._compute_advantage": "recipe.aem.seam.wraps"},
}


def one(findings) -> Finding:
    (finding,) = list(findings)
    return finding


def levels(findings):
    return [finding.level for finding in findings]


def by_title(findings):
    return {finding.title: finding for finding in findings}


def marked(mark: str) -> list[str]:
    """Return the command lines of the running processes that inherited AEM_TEST_MARK with this value."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        with contextlib.suppress(psutil.Error):
            if process.environ().get("AEM_TEST_MARK") == mark and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.info["cmdline"] or []))
    return found
