"""A configuration as hydra composes it for the trainer, without the trainer."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from aem_core.errors import AEMError, AEMValueError
from agent_loops.reading import harmless, read_bytes, reason

if TYPE_CHECKING:
    from omegaconf import DictConfig

YAML = (".yaml", ".yml")
MOST_BYTES = 4 << 20
MOST_NODES = 200_000
"""Of a configuration's YAML once its aliases are written out: ours have a few hundred."""


class ConfigurationError(AEMError, ValueError):
    """There is no such configuration; `remedy` says what to write instead."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(harmless(message))
        self.remedy = remedy


def shipped() -> list[str]:
    """The names of our configurations."""
    names = (file.name for file in files("recipe.aem.config").iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def is_path(config: str) -> bool:
    """Is a configuration meant as a file, and not as the name of one of ours?"""
    return config.endswith(YAML)


def plain_yaml(path: Path) -> str:
    """The text of a YAML file whose aliases cannot blow it up: ten lines of them can stand for a billion values.

    Raises:
        OSError: it cannot be read, or is no plain file.
        ValueError: it is no UTF-8 text, no YAML, or stands for too much.
        RecursionError: it is nested too deeply.
    """
    import yaml

    text = read_bytes(path, MOST_BYTES).decode("utf-8")
    sizes: dict[int, int] = {}

    def size(node: yaml.Node | None) -> int:
        if not isinstance(node, yaml.CollectionNode):
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = MOST_NODES + 1  # a node within itself
            parts = (
                node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
            )
            sizes[id(node)] = 1 + sum(map(size, parts))
        return sizes[id(node)]

    try:
        written_out = size(yaml.compose(text, yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise AEMValueError(reason(error)) from None
    if written_out > MOST_NODES:
        raise AEMValueError(f"it stands for more than {MOST_NODES:,} values, or holds itself: look at its aliases (*)")
    return text


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
    from yaml import YAMLError

    GlobalHydra.instance().clear()
    if is_path(config):
        path = Path(config).expanduser()
        if not path.is_file():
            raise ConfigurationError(f"there is no configuration {config}", "name a file, or one of ours")
        try:
            plain_yaml(path)
        except RecursionError:
            raise ConfigurationError(f"{path} is nested too deeply", "mend that file") from None
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{path} cannot be read: {reason(error)}", "mend that file") from None
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
    except RecursionError:
        raise ConfigurationError(f"{config} is nested too deeply", "mend that file, or the override") from None
    # the last ones come from the loaders of YAML, for values that cannot be converted
    except (HydraException, OmegaConfBaseException, YAMLError, OSError, ValueError, TypeError, AttributeError) as error:
        said = [line.strip() for line in str(error).splitlines() if line.strip()][:3]
        if override := getattr(error, "override", None):  # where hydra cannot read one
            said.insert(0, f"{override}:")
        raise ConfigurationError(" ".join(said), "correct that override; docs/methods.md lists the settings") from error
