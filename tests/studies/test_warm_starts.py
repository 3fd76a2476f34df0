"""studies/*/warm_start.py: the stored clones match the defaults, are complete, and are never mistaken for others."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("verl", reason="verl is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("textworld_express", reason="TextWorldExpress is not installed (pip install 'verl-aem[textworld]')")

from transformers import AutoModelForCausalLM, AutoTokenizer

from agent_loops.java import JavaError, find_java

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.fixture(params=["shop", "order"])
def module(request):
    spec = importlib.util.spec_from_file_location(f"{request.param}_start", STUDIES / request.param / "warm_start.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_kept_clone_can_be_loaded(module):
    model, tokenizer = (kind.from_pretrained(module.KEPT) for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert 150_000 < model.num_parameters() < 250_000
    assert model.config.vocab_size >= len(tokenizer) and tokenizer.chat_template
    facts = json.loads((module.KEPT / "made_by.json").read_text())
    assert facts["cloning_steps"] == module.CLONING_STEPS and 0 < facts["success_at_temperature_1"] < 0.1


def test_other_settings_want_another_clone(module, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["warm_start.py", str(tmp_path / "out"), "--seed", "2"])
    with pytest.raises(SystemExit):
        module.main()
    assert "give --anew, too" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_without_anew_it_is_the_kept_one(module, tmp_path, monkeypatch):
    if module.KEPT.parent.name == "order":
        try:
            find_java("TextWorldExpress")
        except JavaError as error:
            pytest.skip(str(error))
    monkeypatch.setattr(sys, "argv", ["warm_start.py", str(tmp_path)])
    module.main()
    assert {path.name for path in (tmp_path / "tasks").iterdir()} == {"train.parquet", "validation.parquet"}
    for path in module.KEPT.iterdir():
        assert (tmp_path / "warm_start" / path.name).read_bytes() == path.read_bytes()
