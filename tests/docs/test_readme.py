"""What the README and the docs point to exists, and their Python runs. Not covered: that the prose is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_scripts_that_are_named_exist(page):
    for script in re.findall(r"scripts/\w+\.sh", page.read_text(encoding="utf-8")):
        assert (ROOT / script).is_file(), f"{page.name} names {script}"


def test_the_readmes_python_runs():
    code = re.findall(r"```python\n(.*?)```", PAGES[0].read_text(encoding="utf-8"), re.DOTALL)
    assert code
    generator = torch.Generator().manual_seed(0)
    names = {
        "response_mask": torch.ones(4, 3),
        "advantages": torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None].expand(4, 3),
        "entropy": torch.rand(4, 3, generator=generator),
    }
    base = names["advantages"]
    for block in code:
        exec(block, names)
    assert torch.equal(names["advantages"].sign(), base.sign()) and not torch.equal(names["advantages"], base)


def test_every_metric_is_documented():
    from aem_core import aem, find_responses
    from recipe.aem.metrics import aem_metrics

    responses = find_responses(torch.ones(2, 1))
    _, stats = aem(torch.ones(2, 1), torch.tensor([[0.1], [0.9]]), responses, torch.tensor([0, 0]))
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    documented = set()
    for name in re.findall(r"`(aem/[^`*]+)`", text):
        prefix, braces, choices = name.partition("{")
        documented |= {prefix + choice for choice in choices.removesuffix("}").split(",")} if braces else {name}
    assert documented == set(aem_metrics(stats, torch.ones(2), torch.zeros(2, dtype=torch.long)))
