"""A configuration as hydra composes it for the trainer, without the trainer."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

YAML = (".yaml", ".yml")


class ConfigurationError(ValueError):
    """There is no such configuration; `remedy` says what to write instead."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


def shipped() -> list[str]:
    """The names of our configurations."""
    names = (file.name for file in files("recipe.aem.config").iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def is_path(config: str) -> bool:
    """Is a configuration meant as a file, and not as the name of one of ours?"""
    return config.endswith(YAML)


def compose(config: str, overrides: Sequence[str]) -> DictConfig:
    """Compose a configuration; interpolations stand as they are written.

    Args:
        config: one of `shipped()`, or the path of a YAML file.
        overrides: hydra's.

    Raises:
        ConfigurationError: there is none, or an override does not fit.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    GlobalHydra.instance().clear()
    if is_path(config):
        path = Path(config).expanduser()
        if not path.is_file():
            raise ConfigurationError(f"there is no configuration {config}", "name a file, or one of ours")
        name, start = path.stem, hydra.initialize_config_dir(str(path.parent.absolute()), version_base=None)
    elif config in shipped():
        name, start = config, hydra.initialize_config_module("recipe.aem.config", version_base=None)
    else:
        raise ConfigurationError(
            f"there is no configuration {config!r}", f"choose one of {', '.join(shipped())}; overrides come after it"
        )
    try:
        with start:
            return hydra.compose(name, list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        said = [line.strip() for line in str(error).splitlines() if line.strip()][:3]
        if override := getattr(error, "override", None):  # where hydra cannot read one
            said.insert(0, f"{override}:")
        raise ConfigurationError(" ".join(said), "correct that override; docs/methods.md lists the settings") from error
