"""Stand-in for `verl.trainer.main_ppo` under `trainer.val_only`: it reads the same overrides and writes the same files.

A task succeeds if the sum of its index, the seed and the repetition is even. STAND_IN selects a fault: `fail`, `lose`
(an episode), `lie` (another figure than the dump's), `silent` (no dump).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pyarrow.parquet as pq

given = dict(argument.lstrip("+").split("=", 1) for argument in sys.argv[1:] if not argument.startswith("--"))
given = {key: value.strip("'") for key, value in given.items()}
mode, rollout = os.environ.get("STAND_IN", ""), "actor_rollout_ref.rollout"
seed, n = int(given[f"{rollout}.seed"]), int(given.get(f"{rollout}.val_kwargs.n", 1))
with Path(os.environ["STAND_IN_CALLS"]).open("a") as file:
    file.write(json.dumps(given | {"VERL_PLATFORM": os.environ.get("VERL_PLATFORM")}) + "\n")
print("train and validate dataloader initialized")
if mode == "fail":
    print("RuntimeError: out of memory")
    sys.exit(3)

rows = pq.read_table(given["data.val_files"]).to_pylist()
episodes = []
for number, row in enumerate(rows):
    place = int(row["reward_model"]["ground_truth"])
    for repetition in range(n):
        if mode == "lose" and number == 0 and repetition == 0:
            continue
        acc = float((place + seed + repetition) % 2 == 0)
        for turn in range(2):
            facts = {"turns": 2.0, "invalid_turns": 0.0, "fault": 0.0, "cut": 0.0}
            kind = {"acc/even": acc, "acc/odd": None} if place % 2 == 0 else {"acc/odd": acc, "acc/even": None}
            uid = {"uid": f"{number:04d}_{repetition}_{turn}"}
            scores = {"gts": str(place), "reward": 10 * acc, "acc": acc, "task_score": (1 + acc) / 2}
            episodes.append({"input": "…", "output": "…", **scores, **facts, **kind, **uid})
print(f"INFO: pending: 0, running: 0, finished: {len(rows)}, failure: 0")
step = int(given["trainer.resume_from_path"].split("global_step_")[1]) if "trainer.resume_from_path" in given else 0
dump = Path(given["trainer.validation_data_dir"])
if mode != "silent":
    dump.mkdir(parents=True, exist_ok=True)
    (dump / f"{step}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in episodes))
wins = sum(one["acc"] for one in episodes if one["uid"].endswith("_0"))
success = wins / (len(rows) * n) + (0.1 if mode == "lie" else 0)
name = rows[0]["data_source"]
Path(os.environ["VERL_FILE_LOGGER_PATH"]).write_text(
    json.dumps({"step": step, "data": {f"val-core/{name}/acc/mean@{n}": success}}) + "\n"
)
