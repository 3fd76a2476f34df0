"""What these tests share: made-up kitchens, and the official games where this machine has them."""

import os
import tarfile
from pathlib import Path

import pytest

from tests.helpers.kitchen import write_games

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def kitchens(tmp_path: Path) -> Path:
    return write_games(tmp_path / "alfworld")


@pytest.fixture(scope="session")
def official_data() -> Path:
    """A directory with the official games' archive and the recorded plays."""
    directory = Path(os.environ.get("AEM_ALFWORLD_DATA", ROOT.parent / "shared" / "data" / "alfworld"))
    if not (directory / "json_2.1.1.tar.xz").is_file():
        pytest.skip(f"ALFWorld's games are not at {directory}; set AEM_ALFWORLD_DATA to where they are")
    return directory


@pytest.fixture(scope="session")
def official_games(official_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official games, unpacked."""
    directory = tmp_path_factory.mktemp("alfworld")
    with tarfile.open(official_data / "json_2.1.1.tar.xz") as archive:
        archive.extractall(directory, filter="data")
    return directory / "json_2.1.1"
