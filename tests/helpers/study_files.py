"""A study on a stand-in for verl's trainer: a script that reads its overrides and writes verl's metrics lines.

Environment variables change its behaviour: FAIL ends it with an error, SHORT ends it before the last step, HANG keeps
it busy at a step with a child process until it is ended, CHECKPOINT leaves verl's checkpoint marker at that step.
"""

from __future__ import annotations

from pathlib import Path

TRAINER = """
import json, os, pathlib, subprocess, sys, time

settings = dict(word.split("=", 1) for word in sys.argv[1:] if not word.startswith("--"))
seed, steps = int(settings["data.seed"]), int(settings.get("trainer.total_training_steps", 4))
lam = float(settings.get("algorithm.aem.lam", 1))
folder = pathlib.Path(settings["trainer.default_local_dir"].strip("'"))
mark = folder / "latest_checkpointed_iteration.txt"
first = int(mark.read_text()) if settings["trainer.resume_mode"] == "auto" and mark.exists() else 0
print("lam", lam, "seed", seed, "from step", first)
if os.environ.get("FAIL") in (settings.get("+method", "x"), "all"):
    raise SystemExit("no such goal: [7]")
with open(os.environ["VERL_FILE_LOGGER_PATH"], "w", buffering=1) as file:
    for step in range(first, steps + 1 - bool(os.environ.get("SHORT"))):
        data = {"success": 0.1 * step + 0.01 * seed + 0.05 * lam}
        if step > first or first == 0:
            data |= {"actor/entropy": 1 / (1 + step), "aem/alpha/max": 1 + lam, "aem/alpha/min": None}
        file.write(json.dumps({"step": step, "data": data}) + "\\n")
        if os.environ.get("CHECKPOINT") == str(step) and not first:
            folder.mkdir(parents=True, exist_ok=True)
            mark.write_text(str(step))
        if os.environ.get("HANG") == str(step) and not first:
            subprocess.Popen(["sleep", "567.25"])
            time.sleep(600)
"""

CONFIG = """
algorithm: {aem: {lam: 1.0}, dump: {dir: null}}
data: {seed: null, train_files: "${oc.env:TASKS}/train.parquet"}
actor_rollout_ref: {rollout: {seed: 42}, model: {path: "${oc.env:AEM_MODEL,none}"}}
trainer: {total_training_steps: 4, logger: [console], default_local_dir: x, resume_mode: auto, experiment_name: x}
"""

STUDY = """
name: small
config: {config}
benchmarks: {{shop: {{env: {{TASKS: {tasks}}}}}}}
methods: {{grpo: [algorithm.aem.lam=0], aem: [algorithm.aem.lam=1]}}
seeds: [0, 1, 2]
baseline: grpo
metrics: {{success: success, entropy: {{series: actor/entropy, summary: mean_last_2}}}}
keep: [aem/alpha/*]
"""


def write_study(folder: Path, **changed: str) -> Path:
    """Write a study file with its configuration, data and trainer.

    Args:
        folder: the folder for all files.
        changed: lines that replace those beginning with the same key, or are added.
    """
    (folder / "trainer.py").write_text(TRAINER)
    (folder / "plain.yaml").write_text(CONFIG)
    (folder / "tasks").mkdir(exist_ok=True)
    (folder / "tasks" / "train.parquet").write_text("tasks")
    lines = STUDY.format(config=folder / "plain.yaml", tasks=folder / "tasks").strip().splitlines()
    for key, value in changed.items():
        lines = [line for line in lines if not line.startswith(f"{key}:")] + ([f"{key}: {value}"] if value else [])
    path = folder / "study.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path
