"""studies/replica.py: its parts against verl's own and against plain computations, and whole runs on a toy task.

Not covered: that its curves resemble the engine's; docs/evidence/learning.md compares them.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("verl", reason="verl is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import replica
from replica_parts import kinds, policy, rollout, training, update
from replica_parts.rollout import Row
from toy_task import PROMPT, Echo, EchoBenchmark, build

from aem_core import AemStats
from agent_loops.episode import EpisodeSettings
from recipe.aem.batch import Batch
from recipe.aem.seam.advantage import Computed
from recipe.aem.tools.hydra_config import compose

STUDIES = Path(replica.__file__).parent


def rows_of(tokenizer, count=70, seed=0):
    chance = random.Random(seed)
    ids = list(range(len(tokenizer) - 5))
    return [
        Row(f"0_{n}_0", "0", chance.choices(ids, k=chance.randint(2, 20)), chance.choices(ids, k=chance.randint(1, 6)))
        for n in range(count)
    ]


def test_log_probs_and_entropies_are_those_of_each_row_alone(weights, tokenizer):
    model, rows = build(tokenizer, weights), rows_of(tokenizer)
    mask_BT = policy.mask_of(rows, 6)
    log_prob_BT, entropy_BT = policy.old_policy(model, rows, mask_BT, tokenizer.pad_token_id)
    for number, row in enumerate(rows):
        logits = model(torch.tensor([row.ids])).logits[0, len(row.prompt) - 1 : -1]
        log = torch.log_softmax(logits, -1)
        expected = log[range(len(row.response)), row.response]
        assert int(mask_BT[number].sum()) == len(row.response)
        torch.testing.assert_close(log_prob_BT[number, : len(row.response)], expected, rtol=0, atol=1e-4)
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        torch.testing.assert_close(entropy_BT[number, : len(row.response)], entropy, rtol=0, atol=1e-4)
    assert (log_prob_BT[mask_BT == 0] == 0).all() and len(rows) > policy.FORWARD_ROWS


@pytest.mark.parametrize("clips", [{}, {"clip_ratio_low": 0.1, "clip_ratio_high": 0.28, "clip_ratio_c": 1.5}])
def test_the_loss_is_verls(clips, environment):
    from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla
    from verl.utils.config import omega_conf_to_dataclass

    overrides = [f"actor_rollout_ref.actor.{name}={value}" for name, value in clips.items()]
    actor = compose("webshop_demo", overrides).actor_rollout_ref.actor
    generator = torch.Generator().manual_seed(0)
    old_BT, new_BT, advantage_BT = (2 * torch.randn(9, 7, generator=generator) for _ in range(3))
    mask_BT = torch.rand(9, 7, generator=generator) < 0.6
    expected, _ = compute_policy_loss_vanilla(
        old_BT, new_BT, advantage_BT, mask_BT.float(), "token-mean", omega_conf_to_dataclass(actor)
    )
    on = mask_BT
    got = update.policy_loss(new_BT[on], old_BT[on], advantage_BT[on], actor).mean()
    torch.testing.assert_close(got, expected)


def test_the_kl_loss_is_verls():
    from verl.trainer.ppo.core_algos import kl_penalty

    generator = torch.Generator().manual_seed(0)
    new_M, reference_M = (8 * torch.randn(200, generator=generator) for _ in range(2))
    torch.testing.assert_close(update.low_var_kl(new_M, reference_M), kl_penalty(new_M, reference_M, "low_var_kl"))


def test_the_kl_loss_counts_once_the_policy_has_moved(make):
    def norms(*overrides):
        run = make("method=grpo", "actor_rollout_ref.actor.ppo_mini_batch_size=1", *overrides).run()
        return [metrics["actor/grad_norm"] for step, metrics in run if step]

    switched_on = "actor_rollout_ref.actor.use_kl_loss=true"
    plain = norms()
    zero, strong = (norms(switched_on, f"actor_rollout_ref.actor.kl_loss_coef={coef}") for coef in (0, 5))
    assert plain == zero and plain != strong


def test_an_entropy_bonus_follows_another_run(make):
    runs = {}
    for target in (0.0, 5.0):
        run = make("method=grpo", steps=12, followed=dict.fromkeys(range(1, 13), target)).run()
        runs[target] = [metrics for step, metrics in run if step]
    assert runs[0.0][0]["actor/entropy"] == runs[5.0][0]["actor/entropy"], "the first step is on the same rollouts"
    assert runs[0.0][0]["entropy_coeff"] == pytest.approx(-0.02 * runs[0.0][0]["actor/entropy"])
    assert runs[5.0][-1]["entropy_coeff"] == training.EntropyBonus.LIMIT
    assert runs[0.0][-1]["actor/entropy"] < runs[5.0][-1]["actor/entropy"]


def test_an_update_does_not_depend_on_the_size_of_its_forward_passes(tokenizer, weights, monkeypatch, make):
    actor = make().config.actor_rollout_ref.actor
    rows = rows_of(tokenizer, 24)
    mask_BT = policy.mask_of(rows, 6)
    advantage_BT = torch.randn(mask_BT.shape, generator=torch.Generator().manual_seed(1))
    ends = []
    for size in (64, 5):
        monkeypatch.setattr(policy, "FORWARD_ROWS", size)
        model = build(tokenizer, weights)
        old_BT, _ = policy.old_policy(model, rows, mask_BT, tokenizer.pad_token_id)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        norm = update.update(
            model,
            optimizer,
            rows,
            mask_BT,
            old_BT,
            advantage_BT,
            actor,
            [list(range(12)), list(range(12, 24))],
            tokenizer.pad_token_id,
        )
        ends.append((norm, torch.cat([weight.detach().flatten() for weight in model.parameters()])))
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-4)
    torch.testing.assert_close(ends[0][1], ends[1][1], rtol=0, atol=1e-5)


def test_rows_are_what_the_engine_would_have(weights, tokenizer, tmp_path):
    template = tmp_path / "echo.jinja"
    template.write_text(PROMPT)
    torch.manual_seed(0)
    settings = EpisodeSettings(prompt=str(template), require_think=False, max_turns=2, history_length=1)
    played = rollout.roll_out(
        build(tokenizer, weights),
        tokenizer,
        EchoBenchmark(),
        [{"number": 0}, {"number": 1}],
        settings,
        copies=3,
        temperature=1.0,
        max_tokens=4,
    )
    assert [row.key for row in played.rows[:3]] == ["0_0_0", "0_0_1", "0_1_0"] and len(played.rows) == 12
    assert played.turns == [2] * 6 and {row.group for row in played.rows} == {"0", "1"}
    for row in played.rows:
        assert 1 <= len(row.response) <= 4 and row.extra["response_spans"] == [[0, len(row.response)]]
        assert tokenizer.eos_token_id not in row.response[:-1] and tokenizer.pad_token_id not in row.prompt
        assert row.extra["anchors"] == [f"say {Echo.words[int(row.group)]}"]
        shown = tokenizer.decode(row.prompt)
        assert "repeat" in shown and shown.endswith("assistant\n")


def test_rows_stand_in_the_order_in_which_trajectories_end():
    rows = [Row(f"0_{t}_{n}", "0", [1], [2]) for t, turns in enumerate((3, 1, 2, 1, 3)) for n in range(turns)]
    again = rollout.as_ended(rows, random.Random(3))
    assert [row.key[-1] for row in again] == list("0001012012"), "the shorter first, and each together"
    orders = {tuple(row.key for row in rollout.as_ended(rows, random.Random(seed))) for seed in range(20)}
    assert len(orders) == 4, "equal lengths in any order"


def test_masked_rows_stand_at_the_end_or_everywhere():
    assert update.mini_batches(10, 4, False, random.Random(0)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    spread = update.mini_batches(1000 - 300, 250, True, random.Random(0))
    assert sorted(number for part in spread for number in part) == list(range(700))
    assert len(spread) == 3 and all(210 < len(part) <= 250 for part in spread)
    assert update.mini_batches(1, 4, True, random.Random(0)) == [[0]]


def test_a_seed_fixes_a_run_and_strength_zero_is_the_base(make):
    runs = {
        "first": list(make("method=grpo").run()),
        "again": list(make("method=grpo").run()),
        "another": list(make("method=grpo", seed=1).run()),
        "zero": list(make("method=aem", "algorithm.aem.lam=0").run()),
        "aem": list(make("method=aem", "algorithm.aem.min_range=0").run()),
    }
    kept = {
        name: [{key: value for key, value in data.items() if not key.startswith(("timing", "aem/"))} for _, data in run]
        for name, run in runs.items()
    }
    assert [step for step, _ in runs["first"]] == [0, 1, 2]
    assert kept["first"] == kept["again"] == kept["zero"]
    assert kept["first"][0] == kept["aem"][0] and kept["first"][2] != kept["aem"][2]
    assert kept["first"][1:] != kept["another"][1:]
    assert {"val-core/echo/acc/mean@1", "training/success", "actor/entropy", "actor/grad_norm"} <= set(kept["first"][1])
    assert 0 <= runs["aem"][1][1]["aem/alpha/between_kinds"] <= 1 and "aem/alpha/q95" in runs["aem"][1][1]


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=empg"],
        ["method=gigpo"],
        ["method=epo"],
        ["method=skywork"],
        ["method=aer_like"],
        ["method=aem", "algorithm.aem.relative_to=anchor"],
        replica.HERE_ONLY["aem_of_kind"],
    ],
    ids=lambda overrides: overrides[0] + str(len(overrides)),
)
def test_every_method_of_the_study_runs(make, overrides):
    steps = list(make(*overrides).run())
    assert len(steps) == 3 and steps[2][1]["actor/grad_norm"] >= 0


def test_alpha_of_the_kind_is_used_and_reported(make):
    whole, kind = (
        [metrics for _, metrics in make(*overrides, "algorithm.aem.min_range=0").run()]
        for overrides in (["method=aem"], replica.HERE_ONLY["aem_of_kind"])
    )
    assert whole[1]["training/success"] == kind[1]["training/success"], "the first step is on the same rollouts"
    assert kind[1]["aem/alpha/between_kinds"] > whole[1]["aem/alpha/between_kinds"]
    assert kind[1]["actor/grad_norm"] != whole[1]["actor/grad_norm"]
    for steps in (whole, kind):  # one set has the shift of the α that is used: over grpo_rows, mean α·A
        for metrics in steps[1:]:
            assert metrics["aem/groups/shift_mean"] == pytest.approx(metrics["aem/advantage/modulated_mean"], abs=1e-6)
    assert kind[1]["aem/groups/shift_mean"] != whole[1]["aem/groups/shift_mean"]


def test_alpha_of_the_kind_is_a_mean_inside_its_group():
    rows = [
        Row(f"{group}_{number}_0", str(group), [1], [2], {"turn_kinds": [kind]})
        for group, kinds in enumerate(("aab", "ba"))
        for number, kind in enumerate(kinds)
    ]
    alpha_N = torch.tensor([0.5, 1.0, 1.5, 0.8, 1.2])
    nothing_N = torch.zeros(5)
    stats = AemStats(alpha_N, nothing_N, torch.tensor([0, 0, 0, 1, 1]), nothing_N, nothing_N.bool())
    ones_BT = torch.ones(5, 1)
    batch = Batch.from_columns([row.key for row in rows], {"response_mask": ones_BT})
    computed = Computed(batch, ones_BT, ones_BT, ones_BT, stats)
    assert kinds.of_the_kind(rows, computed).alpha_N.tolist() == pytest.approx([0.75, 0.75, 1.5, 0.8, 1.2])


def test_epo_changes_the_update(make):
    plain, strong = (
        list(make("method=epo", f"algorithm.epo.coef={coef}", steps=2).run())[1][1]["actor/grad_norm"]
        for coef in (0.0, 5.0)
    )
    assert plain != strong


def test_entropy_control_changes_the_update(make):
    """The target is above any entropy, so the first step raises the coefficient by δ and the second has the bonus."""
    plain, strong = (
        list(make("method=skywork", "algorithm.entropy_control.target=100", f"algorithm.entropy_control.delta={delta}",
                  "algorithm.entropy_control.c_max=5", steps=2).run())
        for delta in (0.0, 5.0)
    )  # fmt: skip
    assert plain[1][1]["actor/grad_norm"] == strong[1][1]["actor/grad_norm"]
    assert plain[2][1]["actor/grad_norm"] != strong[2][1]["actor/grad_norm"]


def test_it_learns(make):
    played = [
        data["training/success"]
        for _, data in make("method=grpo", "data.train_batch_size=8", steps=20).run()
        if data.get("training/success") is not None
    ]
    assert sum(played[-5:]) > sum(played[:5]) + 1, played


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method=gspo", "knows .*loss_agg_mode=token-mean only, and the configuration has seq-mean"),
        ("actor_rollout_ref.actor.kl_loss_type=kl", "kl_loss_type=low_var_kl only"),
        ("actor_rollout_ref.rollout.custom.episode.layout=transcript", "layout=turns only"),
        ("method=dapo", "knows|filter"),
        ("algorithm.balance=trajectory", "balance=None only, and the configuration has trajectory"),
        ("algorithm.updates_per_step=2", "updates_per_step=None only"),
        ("actor_rollout_ref.rollout.temperature=0.5", "temperature=1.0 only"),
        ("actor_rollout_ref.rollout.val_kwargs.do_sample=false", "do_sample=True only"),
        ("actor_rollout_ref.rollout.custom.episode.compact_filtering=true", "compact_filtering=False only"),
        ("algorithm.adv_estimator=rloo", "rloo counts rows in verl, .* set rloo_trajectories"),
    ],
)
def test_what_it_does_not_do_is_refused(make, override, message):
    with pytest.raises(ValueError, match=message):
        make(override)


# --- the runner -------------------------------------------------------------------------------------------------------

STUDY = """
name: toy
config: webshop_demo
benchmarks: {echo: {env: {WEBSHOP_DATA: a, WEBSHOP_PARQUET: b, AEM_MODEL: c}}}
methods: {grpo: [method=grpo], aem: [method=aem]}
seeds: [0]
baseline: grpo
metrics: {success: {series: "val-core/*/acc/mean@1", summary: auc}}
"""


def test_the_csv_holds_what_is_there(tmp_path, monkeypatch):
    (tmp_path / "study.yaml").write_text(STUDY)
    done = tmp_path / "out" / "echo" / "aem" / "seed1.jsonl"
    done.parent.mkdir(parents=True)
    done.write_text(
        "".join(json.dumps({"step": s, "data": {"val-core/echo/acc/mean@1": s / 4}}) + "\n" for s in (0, 1))
    )
    done.with_name("seed2.17.partial").write_text('{"step": 0')
    arguments = [str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out"), "--seeds", "3"]
    monkeypatch.setattr(sys, "argv", ["replica.py", *arguments, "--csv", str(tmp_path / "csv" / "toy.csv")])
    replica.main()
    assert (tmp_path / "csv" / "toy.csv").read_text().splitlines() == [
        "benchmark,method,seed,step,metric,value",
        "echo,aem,1,0,success,0",
        "echo,aem,1,1,success,0.25",
    ]


def test_a_cell_leaves_nothing_to_those_after_it(tmp_path, monkeypatch):
    (tmp_path / "study.yaml").write_text(STUDY)
    seen = []

    def stand_in(cell):
        seen.append(os.environ.get("ECHOED"))
        os.environ["ECHOED"] = str(cell.seed)
        return SimpleNamespace(run=lambda: iter([(0, {"said": float(os.environ["ECHOED"])})]))

    monkeypatch.setattr(replica, "training_of", stand_in)
    study = replica.study_of(tmp_path / "study.yaml", [1, 2])
    todo = replica.cells(study, tmp_path / "out")
    for cell in todo:
        assert replica.train(cell) >= 0
        assert json.loads(replica.path_of(cell).read_text())["data"] == {"said": cell.seed}
    assert seen == [None] * len(todo) and len(todo) > 1
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_a_worker_whose_parent_has_ended_ends_too():
    """That the kernel ends it later is tested for the environments' workers, whose function this is."""
    code = "import os, replica; replica._end_with({}); print('alive')"
    for parent, status, said in (("os.getppid()", 0, "alive\n"), ("-1", 1, "")):
        done = subprocess.run(
            [sys.executable, "-c", code.format(parent)], cwd=STUDIES, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (status, said), done.stderr


def test_the_entropy_that_is_followed_is_of_a_finished_run(tmp_path):
    path = tmp_path / "seed1.jsonl"
    with pytest.raises(SystemExit, match=r"seed1\.jsonl is not there"):
        replica.entropies(path)
    path.write_text('{"step": 0, "data": {}}\n{"step": 1, "data": {"actor/entropy": 0.5}}\n')
    assert replica.entropies(path) == {1: 0.5}


def test_the_study_is_one_that_both_can_run(monkeypatch):
    monkeypatch.chdir(STUDIES.parent)
    study = replica.read_study(STUDIES / "study.yaml")
    found = [cell for cell in replica.cells(study, Path("unused")) if cell.seed == 0]
    assert len(found) == 2 * 10
    steps = {"shop": 40, "order": 30}
    for cell in found:
        for name, value in cell.env.items():
            monkeypatch.setenv(name, value)
        config = compose(cell.config, cell.asked)
        training.check(config)
        rollout_of = config.actor_rollout_ref.rollout
        assert config.trainer.total_training_steps == steps[cell.benchmark]
        assert (rollout_of.val_kwargs.temperature, config.data.val_max_samples, config.trainer.test_freq) == (1, 128, 5)
        assert (config.data.train_batch_size, rollout_of.n, config.actor_rollout_ref.actor.optim.lr) == (8, 8, 5e-4)


def test_the_study_of_warm_starts_differs_in_nothing_else(monkeypatch):
    monkeypatch.chdir(STUDIES.parent)
    other = replica.study_of(STUDIES / "warm_starts.yaml")
    study = replica.study_of(STUDIES / "study.yaml", other.seeds)
    assert (other.seeds, study.metrics, study.keep) == (tuple(range(1, 11)), other.metrics, other.keep)
    asked, others = (
        {cell.name: cell for cell in replica.cells(of, Path("unused")) if cell.method in ("grpo", "aem")}
        for of in (study, other)
    )
    assert asked.keys() == others.keys()
    for name, cell in others.items():
        assert cell.identity == asked[name].identity
        # a path that exists is made absolute
        env, own = (
            {key: value.removeprefix(f"{STUDIES.parent}/") for key, value in one.env.items()}
            for one in (asked[name], cell)
        )
        folder = f"outputs/warm_starts/{cell.benchmark}/seed{cell.seed}"
        assert {key: value.replace(folder, f"outputs/{cell.benchmark}") for key, value in own.items()} == env != own
