"""The CPU as one of verl's platforms, with stand-ins for what verl calls on `torch.cuda`."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from verl.plugin.platform import PlatformBase

PLATFORM = "cpu"


class CpuDeviceModule:
    """The names of `torch.cpu`, and stand-ins for the other names of `torch.cuda` that verl calls.

    Needed by workers/engine_workers.py:219, utils/memory_utils.py:41, utils/checkpoint/checkpoint_manager.py:218 and
    others. It equals `torch.cpu`, with which utils/profiler/performance.py:45 and utils/flops_counter.py:77 compare it.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name) if hasattr(torch.cpu, name) else getattr(_DeviceFallback, name)

    def __eq__(self, other: object) -> bool:
        return other is torch.cpu or isinstance(other, CpuDeviceModule)

    def __hash__(self) -> int:
        return hash(torch.cpu)


class _DeviceFallback:
    """Names of `torch.cuda`: "allocated" is the process's resident memory; unneeded calls do nothing."""

    @staticmethod
    def memory_allocated(*_: Any) -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    @staticmethod
    def max_memory_allocated(*_: Any) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    memory_reserved = memory_allocated
    max_memory_reserved = max_memory_allocated

    @staticmethod
    def mem_get_info(*_: Any) -> tuple[int, int]:
        page = os.sysconf("SC_PAGE_SIZE")
        return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page

    @staticmethod
    def get_device_name(*_: Any) -> str:
        return "CPU"

    @staticmethod
    def get_rng_state(*_: Any) -> torch.Tensor:
        return torch.get_rng_state()

    @staticmethod
    def set_rng_state(state: torch.Tensor, *_: Any) -> None:
        torch.set_rng_state(state)

    @staticmethod
    def _nothing(*_: Any) -> None:
        return None

    empty_cache = ipc_collect = set_device = _nothing
    reset_peak_memory_stats = reset_accumulated_memory_stats = _nothing


class PlatformCPU(PlatformBase):
    """The CPU as verl's accelerator: gloo for collectives, a logical Ray "GPU", shared memory for weights."""

    _module = CpuDeviceModule()

    @property
    def device_name(self) -> str:
        return PLATFORM

    @property
    def vendor_name(self) -> str:
        return PLATFORM

    @property
    def device_module(self) -> Any:
        return self._module

    def is_available(self) -> bool:
        return True

    def current_device(self) -> Any:
        # workers/engine/fsdp/transformer_impl.py:730 passes it to `.to()`, where an int would mean cuda:0
        return PLATFORM

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        pass

    def synchronize(self, device_index: int | None = None) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def set_allocator_settings(self, settings: str) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:  # type: ignore[override]  # verl forgot the annotation
        yield

    def profiler_start(self) -> None:
        pass

    def profiler_stop(self) -> None:
        pass

    def ray_resource_name(self) -> str:
        # single_controller/ray/base.py:226 counts only "GPU" and "NPU"; config/machine/cpu.yaml gives Ray logical ones
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        # workers/rollout/vllm_rollout/vllm_rollout.py:143: False selects shared memory for the weight transfer
        return False

    def cudart(self) -> Any:
        return None
