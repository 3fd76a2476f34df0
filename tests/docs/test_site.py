"""The documentation site builds without a warning and holds every public function. Not covered: how it looks."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import aem_core

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed; `bash scripts/setup.sh --dev` installs it")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_every_public_name_of_aem_core_has_its_place(site):
    pages = "".join(path.read_text(encoding="utf-8") for path in (site / "core").rglob("*.html"))
    anchors = set(re.findall(r'id="(aem_core[\w.]*)"', pages))
    for name in aem_core.__all__:
        item = getattr(aem_core, name)
        if hasattr(item, "__module__") and item.__module__.startswith("aem_core"):
            assert f"{item.__module__}.{name}" in anchors, name


def test_every_method_file_is_described():
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)`", text[text.index("## Method files") :]))
    assert {path.stem for path in (ROOT / "recipe/aem/config/method").glob("*.yaml")} <= named
