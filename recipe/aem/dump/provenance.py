"""The versions of packages and the properties of the machine on which the numbers of a dump may depend."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import torch

PACKAGES = ("verl-aem", "verl", "torch", "transformers", "vllm", "pyarrow")


def versions() -> dict[str, str]:
    """Return the versions of the installed packages on which an advantage or the tokens depend."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return the properties of the machine on which the order of a sum depends."""
    return {"threads": torch.get_num_threads(), "cpu": torch.backends.cpu.get_cpu_capability()}
