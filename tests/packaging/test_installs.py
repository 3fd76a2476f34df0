"""verl finds `aem` in every kind of install, even if another regular package is called `recipe`.

Each case is a new environment and a new process in a neutral folder. Not covered: that pip can fetch the requirements
(scripts/setup.sh does it for real before these tests run).
"""

from __future__ import annotations

import json
import re
import shutil
import sysconfig
from pathlib import Path

import pytest

from tests.helpers.surroundings import Environment, run

LOOK = """
import json
from importlib.metadata import entry_points
import verl.trainer.ppo.core_algos as core
found = {"registered": "aem" in core.ADV_ESTIMATOR_REGISTRY}
try:
    import aem_core, agent_loops, recipe.aem, recipe.aem.plugin, verl_aem
    found["files"] = [aem_core.__file__, agent_loops.__file__, recipe.aem.plugin.__file__, verl_aem.__file__]
    (point,) = entry_points(group="vllm.general_plugins", name="aem")
    found["vllm_plugin"] = callable(point.load())
except ImportError as error:
    found["error"] = str(error)
try:
    import recipe.neighbour
    found["neighbour"] = recipe.neighbour.__file__
except ImportError:
    pass
print("FOUND", json.dumps(found))
"""


def look(environment: Environment, cwd: Path, **variables: str) -> dict:
    done = run(environment.python, "-c", LOOK, cwd=cwd, **variables)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    return json.loads(line.removeprefix("FOUND "))


def assert_ours(found: dict, where: Path) -> None:
    assert found["registered"], found
    assert "error" not in found
    assert found["vllm_plugin"]
    for file in found["files"]:
        assert Path(file).is_relative_to(where), (file, where)


def test_an_environment_without_the_package_lacks_it(environment, tmp_path):
    """The control: nothing of the running environment's own verl-aem leaks into the environments below."""
    if (Path(sysconfig.get_path("purelib")) / "verl_aem").exists():
        pytest.skip("the running environment holds a copy of verl-aem, not an editable install")
    found = look(environment, tmp_path)
    assert not found["registered"]
    assert "files" not in found


@pytest.mark.parametrize("neighbour", [False, True], ids=["alone", "beside_a_regular_recipe"])
@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_install(kind, neighbour, with_wheel, editable, distributions, tmp_path):
    environment = editable if kind == "editable" else with_wheel
    if neighbour:
        environment = environment.copy(tmp_path / "environment")
        environment.add_other_recipe(environment.packages)
    found = look(environment, tmp_path)
    assert_ours(found, distributions.source if kind == "editable" else environment.packages)
    if neighbour:
        assert Path(found["neighbour"]).is_relative_to(environment.packages)


def test_a_regular_recipe_in_front_of_ours(with_wheel, tmp_path):
    with_wheel.add_other_recipe(tmp_path / "elsewhere")
    found = look(with_wheel, tmp_path, PYTHONPATH=str(tmp_path / "elsewhere"))
    assert_ours(found, with_wheel.packages)
    assert Path(found["neighbour"]).is_relative_to(tmp_path / "elsewhere")


def test_named_module_in_place_of_the_entry_point(with_wheel, tmp_path):
    found = look(with_wheel, tmp_path, VERL_USE_EXTERNAL_MODULES="recipe.aem.plugin", VERL_USE_EXTERNAL_PLUGINS="none")
    assert_ours(found, with_wheel.packages)
    # the control: without the name, `none` means none
    assert not look(with_wheel, tmp_path, VERL_USE_EXTERNAL_PLUGINS="none")["registered"]


def test_a_plugin_that_fails_to_load_is_loud(with_wheel, tmp_path):
    environment = with_wheel.copy(tmp_path / "environment")
    plugin = environment.packages / "recipe" / "aem" / "plugin.py"
    plugin.write_text("raise RuntimeError('sabotaged')\n")
    shutil.rmtree(plugin.parent / "__pycache__", ignore_errors=True)
    done = run(environment.python, "-c", "import verl; print('verl goes on')", cwd=tmp_path)
    assert "verl goes on" in done.stdout  # verl swallows the failure
    assert re.search("^ERROR.*verl-aem could not be loaded", done.stderr, re.MULTILINE)
    assert "Traceback" in done.stderr
    assert "RuntimeError: sabotaged" in done.stderr
