"""Builds the distributions, and installs each in one way, once."""

from __future__ import annotations

import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.surroundings import ROOT, Environment, run


@dataclass(frozen=True)
class Distributions:
    wheel: Path
    sdist: Path
    source: Path  # the sdist, unpacked


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """What `python -m build` makes of the checkout: an sdist, and a wheel from that sdist."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(out, filter="data")
    return Distributions(wheel, sdist, out / sdist.name.removesuffix(".tar.gz"))


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "environment")


@pytest.fixture(scope="session")
def with_wheel(distributions: Distributions, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment in which the wheel is installed; a test that changes it takes a `copy`."""
    environment = Environment(tmp_path_factory.mktemp("wheel") / "environment")
    environment.install(distributions.wheel)
    return environment


@pytest.fixture(scope="session")
def editable(distributions: Distributions, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """One in which the unpacked sdist is installed in place; likewise."""
    environment = Environment(tmp_path_factory.mktemp("editable") / "environment")
    environment.install("--editable", distributions.source)
    return environment
