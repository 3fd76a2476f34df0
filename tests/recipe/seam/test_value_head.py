"""The critic's attention, with real classes of transformers and verl's engine around them.

What verl does without the wrap is in test_contract_machine.py, a run with a critic in tests/e2e/test_ppo.py.
"""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import Tensor

pytest.importorskip("verl", reason="verl is not installed")

import verl_aem

verl_aem.load()

from verl.utils.model import load_valuehead_model  # noqa: E402
from verl.workers.config import HFModelConfig  # noqa: E402


def critic(model_dir, attention):
    """As verl's FSDP engine makes it (workers/engine/fsdp/transformer_impl.py:295)."""
    config = HFModelConfig(path=str(model_dir), override_config={"attn_implementation": attention})
    config.hf_config.num_labels = 1
    torch.manual_seed(0)
    model = load_valuehead_model(
        local_path=config.local_path, torch_dtype=torch.float32, model_config=config.hf_config, trust_remote_code=False
    )
    return model.eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_critic_takes_the_configured_attention(model_dir, attention):
    model = critic(model_dir, attention)
    assert model.config._attn_implementation == attention
    assert model.dtype == torch.float32 and model.score.out_features == 1
    actor = transformers.AutoModelForCausalLM.from_pretrained(model_dir)
    for name, weight in actor.model.state_dict().items():
        assert torch.equal(model.model.state_dict()[name], weight), name


def test_flash_attention_is_left_to_verl(model_dir):
    with pytest.raises(RuntimeError, match="please install trl"):
        critic(model_dir, "flash_attention_2")


def test_a_model_without_a_token_classifier_is_named():
    config = transformers.MambaConfig(attn_implementation="sdpa")
    with pytest.raises(ValueError, match="MambaConfig"):
        load_valuehead_model("nowhere", torch.float32, config, False)


def test_packed_rows_have_the_values_of_padded_ones(model_dir):
    model = critic(model_dir, "sdpa")
    rows = [torch.tensor([5, 3, 8, 2]), torch.tensor([7, 1])]

    def values(tokens: Tensor, **given: Tensor) -> Tensor:
        with torch.no_grad():
            return model(input_ids=tokens[None], use_cache=False, **given).logits.squeeze((0, -1))

    alone = torch.cat([values(row) for row in rows])
    positions = torch.cat([torch.arange(len(row)) for row in rows])
    packed = values(torch.cat(rows), position_ids=positions[None])
    torch.testing.assert_close(packed, alone)
    assert alone.std() > 0
