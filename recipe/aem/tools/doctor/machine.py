"""Checks whether this machine has what the run asks for: devices, shared memory for Ray, disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent_loops.finding import Finding

GB = 1e9
_LITTLE_DISK = 20 * GB
_RAY_STOPS_AT = 0.95  # Ray's local_fs_capacity_threshold
_RAY_TAKES = 0.3  # Ray's object store, as a share of memory


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch sees."""

    name: str
    n_bytes: int


def find_gpus() -> list[Gpu]:
    """Return the GPUs that this process may use."""
    import torch

    if not torch.cuda.is_available():
        return []
    properties = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [Gpu(one.name, one.total_memory) for one in properties]


def memory_limits(root: Path = Path("/")) -> tuple[int, int]:
    """Return total and available memory in bytes, of the container where that is less than the machine's.

    Args:
        root: the directory that holds `proc` and `sys`.
    """
    lines = (root / "proc" / "meminfo").read_text().splitlines()
    kilobytes = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in lines if ":" in line)}
    total, available = kilobytes["MemTotal"] << 10, kilobytes["MemAvailable"] << 10
    group = root / "sys" / "fs" / "cgroup"
    for limit, used in (
        (group / "memory.max", group / "memory.current"),
        (group / "memory" / "memory.limit_in_bytes", group / "memory" / "memory.usage_in_bytes"),
    ):
        if limit.is_file() and (text := limit.read_text().strip()).isdecimal() and int(text) < total:
            total = int(text)
            available = min(available, total - int(used.read_text()))
    return total, max(available, 0)


def check_device(gpus: Sequence[Gpu], platform: str, device: str | None, n_gpus: int | None) -> Iterator[Finding]:
    """Compare the devices with what the configuration asks for.

    Args:
        gpus: the GPUs that torch sees.
        platform: VERL_PLATFORM.
        device: `trainer.device`; None without a configuration.
        n_gpus: `trainer.n_gpus_per_node`.
    """
    title = "Device"
    chosen = platform.strip().lower() == "cpu"
    if device not in (None, "cpu") and not gpus:
        yield Finding(
            "failure",
            title,
            f"the configuration is for trainer.device={device} with {n_gpus} of them a node, and torch sees none here",
            "run this on a GPU node; or add machine=cpu (and a small model, AEM_MODEL=…)",
        )
        return
    if device == "cpu" and not chosen:
        yield Finding(
            "warning",
            title,
            "the configuration is for the CPU, and VERL_PLATFORM is not `cpu`, so verl would look for a GPU",
            "export VERL_PLATFORM=cpu (`aem train` and scripts/run_*.sh do so by themselves)",
        )
        return
    if device not in (None, "cpu") and chosen:
        yield Finding(
            "failure",
            title,
            f"VERL_PLATFORM=cpu, but the configuration is for trainer.device={device}",
            "unset VERL_PLATFORM, or add machine=cpu",
        )
        return
    if device not in (None, "cpu") and n_gpus is not None and len(gpus) < n_gpus:
        yield Finding(
            "failure",
            title,
            f"trainer.n_gpus_per_node={n_gpus}, and torch sees {_words(gpus)}",
            f"set trainer.n_gpus_per_node={len(gpus)} (see machine=gpu1), or look at CUDA_VISIBLE_DEVICES",
        )
        return
    if gpus and device != "cpu" and not chosen:
        yield Finding("ok", title, _words(gpus))
    elif chosen or device == "cpu":
        unused = f"; {_words(gpus)} stay unused" if gpus else ""
        yield Finding("ok", title, f"CPU (VERL_PLATFORM=cpu), {len(os.sched_getaffinity(0))} cores{unused}")
    else:
        yield Finding(
            "warning",
            title,
            f"no GPU: {len(os.sched_getaffinity(0))} cores, and VERL_PLATFORM is not set",
            "export VERL_PLATFORM=cpu (`aem train` does so by itself), and train with machine=cpu and a small model",
        )


def check_shared_memory(total: int, free: int, memory: int) -> Finding:
    """Check /dev/shm, where Ray keeps the objects its processes share.

    Args:
        total: its size in bytes; 0 if there is none.
        free: its free bytes.
        memory: of the machine, or of the container.
    """
    wanted = _RAY_TAKES * memory
    found = f"/dev/shm has {free / GB:.1f} GB free of {total / GB:.1f}"
    if free >= wanted:
        return Finding("ok", "Shared memory", found)
    return Finding(
        "warning",
        "Shared memory",
        f"{found}; Ray wants 30 % of the memory there, {wanted / GB:.1f} GB, and is slow on a disk instead",
        f"in a container: docker run --shm-size={wanted / GB:.0f}g; else remove old files of Ray (`ray stop`), or set "
        "ray_kwargs.ray_init.object_store_memory (with a + in front where the configuration lacks it)",
    )


def check_disk(title: str, folder: Path) -> Finding:
    """Check that there is room to write to a folder, whether it exists yet or not."""
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    usage = shutil.disk_usage(place)
    found = f"{usage.free / GB:.0f} GB free of {usage.total / GB:.0f} in {place}"
    full = 1 - usage.free / usage.total
    if full > _RAY_STOPS_AT:
        return Finding(
            "failure", title, f"{found}: {full:.0%} full, and Ray stops at 95 %", "make room, or name another disk"
        )
    if usage.free < _LITTLE_DISK:
        return Finding("warning", title, f"{found}: little for checkpoints", "make room, or name another disk")
    return Finding("ok", title, found)


def check_machine(device: str | None, n_gpus: int | None, checkpoints: Path) -> Iterator[Finding]:
    """Run all checks above on this machine."""
    yield from check_device(find_gpus(), os.environ.get("VERL_PLATFORM", ""), device, n_gpus)
    total, available = memory_limits()
    yield Finding("ok", "Memory", f"{available / GB:.1f} GB available of {total / GB:.1f}")
    shared = Path("/dev/shm")
    usage = shutil.disk_usage(shared) if shared.is_dir() else None
    yield check_shared_memory(usage.total if usage else 0, usage.free if usage else 0, total)
    yield check_disk("Disk for checkpoints", checkpoints)
    yield check_disk("Disk for Ray", Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()))


def _words(gpus: Sequence[Gpu]) -> str:
    if not gpus:
        return "no GPU"
    kinds = {(one.name, round(one.n_bytes / GB)): 0 for one in gpus}
    for one in gpus:
        kinds[one.name, round(one.n_bytes / GB)] += 1
    return ", ".join(f"{count} × {name} ({size} GB)" for (name, size), count in kinds.items())
