"""What this project depends on in verl where there is no GPU, and for critics, one test per name.

Not covered: the defects of verl on such a machine (test_cpu.py).
"""

from __future__ import annotations

import inspect

import pytest
import torch
from omegaconf import OmegaConf

pytest.importorskip("verl", reason="verl is not installed")

import verl_aem

verl_aem.load()

from verl.trainer.ppo.v1 import replay_buffer  # noqa: E402


def test_engines_are_looked_up_by_a_device_that_the_environment_can_name(monkeypatch):
    import verl.workers.engine  # noqa: F401
    from verl.workers.engine.base import EngineRegistry

    look_up = inspect.unwrap(EngineRegistry.get_engine_cls)  # verl's own, where VERL_PLATFORM=cpu has wrapped it
    monkeypatch.setenv("VERL_ENGINE_DEVICE", "cuda")
    assert look_up("language_model", "fsdp2").__name__.startswith("FSDP")
    monkeypatch.setenv("VERL_ENGINE_DEVICE", "nowhere")
    with pytest.raises(ValueError, match="No engine registered"):  # as remedies._engine_of_cuda expects
        look_up("language_model", "fsdp2")


def test_our_platform_answers_every_question_of_verls():
    from recipe.aem.cpu.platform import PlatformCPU

    missing = PlatformCPU.__abstractmethods__
    assert not missing, f"verl's PlatformBase asks for more now: {sorted(missing)}"
    assert PlatformCPU().device_name == "cpu"


def test_the_reference_models_offload_policy_is_a_name_of_its_module():
    """Source: an engine cannot be built without a process group. The remedy replaces the module's global."""
    from verl.workers.engine.fsdp import transformer_impl

    assert hasattr(transformer_impl, "CPUOffloadPolicy")
    assert "CPUOffloadPolicy(pin_memory=True)" in inspect.getsource(transformer_impl)
    assert "CPUOffloadPolicy" in transformer_impl.FSDPEngine._build_fsdp_module.__code__.co_names


def test_the_replay_buffer_sleeps_its_poll_interval(monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr(replay_buffer.time, "sleep", slept.append)
    buffer = replay_buffer.ReplayBuffer(
        trainer_mode="sync",
        trainer_config=OmegaConf.create({}),
        max_off_policy_threshold=1,
        max_off_policy_strategy="drop",
        sampler_kwargs=OmegaConf.create({}),
    )
    # `recipe.aem.cpu.remedies` may have set this object's own
    assert inspect.signature(replay_buffer.ReplayBuffer).parameters["poll_interval"].default == 2.0
    buffer.poll_interval = 0.25
    buffer._wait_for_next_poll("train", last_debug_time=float("inf"))
    assert slept == [0.25]


def test_verl_loads_every_critic_with_flash_attention(monkeypatch):
    """verl#5210; if this fails, verl has mended it: drop recipe.aem.seam.value_head."""
    import transformers
    from verl.utils.model import load_valuehead_model

    asked = []

    def from_pretrained(**given):
        asked.append(given["attn_implementation"])
        raise ImportError("flash-attn")

    monkeypatch.setattr(transformers.AutoModelForTokenClassification, "from_pretrained", from_pretrained)
    config = transformers.Qwen2Config(attn_implementation="sdpa")
    verls = inspect.unwrap(load_valuehead_model)
    with pytest.raises(RuntimeError, match="please install trl"):
        verls("nowhere", torch.float32, config, trust_remote_code=False)
    assert asked == ["flash_attention_2"]


def test_the_engine_loads_a_critic_by_the_name_that_is_wrapped():
    """Source: an engine needs a process group. Its configuration has the attention, as the actor's has."""
    from verl.utils import model
    from verl.workers.engine.fsdp import transformer_impl

    from recipe.aem.seam import value_head

    assert model.load_valuehead_model._self_wrapper is value_head.with_configured_attention
    parameters = list(inspect.signature(model.load_valuehead_model).parameters)
    assert parameters == ["local_path", "torch_dtype", "model_config", "trust_remote_code"]
    build = inspect.getsource(transformer_impl.FSDPEngine._build_module)
    assert "from verl.utils.model import load_valuehead_model" in build
    assert "model_config=self.model_config.hf_config" in build
