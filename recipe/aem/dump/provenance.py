"""What the numbers of a dump may depend on: versions of packages, and the machine."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import torch

PACKAGES = ("verl-aem", "verl", "torch", "transformers", "vllm", "pyarrow")


def versions() -> dict[str, str]:
    """Of the packages that an advantage or the tokens depend on, as far as they are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """On what the order of a sum depends."""
    return {"threads": torch.get_num_threads(), "cpu": torch.backends.cpu.get_cpu_capability()}
