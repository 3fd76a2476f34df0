"""How long aem_core takes on one CPU thread, beside one pass over the same tensors and beside a loop over rows.

    python benchmarks/core.py [--rows 800 3200 6400] [--tokens 512] [--repetitions 7] [--json FILE]

Two layouts: `turns`, one response a row, of 1/8 to all of the row's tokens; `transcript`, ten responses a row with the
environment's tokens between them. Time is the thread's own (user and system): on an idle machine the wall's, on a busy
one without the waiting for a core. Every repetition times everything once, in turn, so that what else the machine does
hits all alike; a figure is the median over repetitions, a ratio the median of the ratios within a repetition. Memory is
the peak of what was allocated during the call, its result included, in units of one B×T float32 tensor.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from aem_core import Responses, aem, find_responses

LAYOUTS = ("turns", "transcript")
ROLLOUTS = 8  # rows per prompt group in `transcript`; trajectories per prompt group in `turns`
TURNS = 10  # per trajectory, in both layouts

AEM, CHECKED, PASS, LOOP, SLICES = "aem", "aem, validate=True", "one pass", "loop over rows", "loop over slices"
PASS_LIMIT = 8.0  # at most, relative to the single pass
LOOP_LIMIT = 15.0  # at least, relative to the loop
GROWTH_LIMIT = 1.1  # at most, relative to linear growth
MEMORY_LIMIT = 4.0  # at most, in B×T float32 tensors: the result, and three values per token if all are in responses


@dataclass(frozen=True)
class Batch:
    """A batch of one layout, with its responses also as spans."""

    advantage_BT: Tensor
    entropy_BT: Tensor
    mask_BT: Tensor
    group_B: Tensor
    spans: list[list[tuple[int, int]]]
    responses: Responses
    trajectory_N: Tensor
    turn_N: Tensor


def make_batch(layout: str, rows: int, tokens: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    row_B = torch.arange(rows)
    if layout == "turns":
        stop_B = torch.randint(max(1, tokens // 8), tokens + 1, (rows,), generator=generator)
        spans = [[(0, stop)] for stop in stop_B.tolist()]
        trajectory_B, turn_B = row_B // TURNS, row_B % TURNS
    else:
        stride = tokens // TURNS
        length_BS = torch.randint(stride // 4, stride, (rows, TURNS), generator=generator)
        spans = [
            [(i * stride, i * stride + length) for i, length in enumerate(lengths)] for lengths in length_BS.tolist()
        ]
        trajectory_B, turn_B = row_B, torch.zeros_like(row_B)
    mask_BT = (Responses.from_spans(spans, (rows, tokens)).index_BT >= 0).to(torch.int64)  # int64, as verl has it
    responses = find_responses(mask_BT)
    return Batch(
        advantage_BT=torch.randn(rows, 1, generator=generator) * mask_BT,
        entropy_BT=torch.rand(rows, tokens, generator=generator),
        mask_BT=mask_BT,
        group_B=trajectory_B // ROLLOUTS,
        spans=spans,
        responses=responses,
        trajectory_N=trajectory_B[responses.row_N],
        turn_N=turn_B[responses.row_N] + responses.span_N,
    )


def one_pass(batch: Batch, mask_BT: Tensor) -> Tensor:
    return (batch.entropy_BT + batch.advantage_BT) * mask_BT


def loop_over_rows(batch: Batch) -> Tensor:
    """Compute what `aem` computes, from the same inputs, one response of a row at a time."""
    index_BT = batch.responses.index_BT
    on_response = [(row, index_BT[row] == number) for number, row in enumerate(batch.responses.row_N.tolist())]
    return modulate_in_loop(batch, on_response)


def loop_over_slices(batch: Batch) -> Tensor:
    """Compute the same where no response has a hole, so that spans describe it completely: the fastest loop."""
    spans = [(row, slice(*span)) for row, row_spans in enumerate(batch.spans) for span in row_spans]
    return modulate_in_loop(batch, spans)


def modulate_in_loop(
    batch: Batch, responses: Sequence[tuple[int, Tensor | slice]], lam: float = 1.0, min_range: float = 0.1
) -> Tensor:
    members = defaultdict(list)
    group_of = batch.group_B.tolist()
    for row, tokens in responses:
        members[group_of[row]].append((row, tokens, batch.entropy_BT[row][tokens].mean()))
    result_BT = batch.advantage_BT.clone()
    for group in members.values():
        entropy_N = torch.stack([entropy for _, _, entropy in group])
        low, high = entropy_N.min(), entropy_N.max()
        if high - low < min_range:
            continue
        weight_N = torch.exp(-lam * (entropy_N - low) / (high - low))
        alpha_N = weight_N / weight_N.mean()
        for (row, tokens, _), alpha in zip(group, alpha_N, strict=True):
            result_BT[row][tokens] *= alpha
    return result_BT


def contenders(batch: Batch) -> dict[str, Callable[[], object]]:
    shape = (len(batch.mask_BT), batch.mask_BT.shape[1])
    inputs = (batch.advantage_BT, batch.entropy_BT, batch.responses)
    float_mask_BT = batch.mask_BT.float()
    calls: dict[str, Callable[[], object]] = {
        PASS: lambda: one_pass(batch, float_mask_BT),
        AEM: lambda: aem(*inputs, batch.group_B, validate=False),
        CHECKED: lambda: aem(*inputs, batch.group_B),
        "find_responses": lambda: find_responses(batch.mask_BT),
        "Responses.from_spans": lambda: Responses.from_spans(batch.spans, shape),
        "Responses.from_spans, mask": lambda: Responses.from_spans(batch.spans, shape, batch.mask_BT),
        LOOP: lambda: loop_over_rows(batch),
        SLICES: lambda: loop_over_slices(batch),
    }
    if importlib.util.find_spec("aem_core.empg"):
        from aem_core.empg import empg

        calls["empg"] = lambda: empg(*inputs, batch.trajectory_N, batch.turn_N, validate=False)
    return calls


def check_agreement(batch: Batch) -> None:
    """Check that the loops compute the same as `aem`; otherwise timing them would be pointless."""
    rescaled_BT, stats = aem(batch.advantage_BT, batch.entropy_BT, batch.responses, batch.group_B)
    assert not stats.guarded_N.all()
    for loop in (loop_over_rows, loop_over_slices):
        torch.testing.assert_close(rescaled_BT, loop(batch), rtol=1e-4, atol=1e-5)


def timed(call: Callable[[], object]) -> float:
    """Return CPU seconds, the best of three consecutive calls: the first may meet cold caches or a used heap."""
    seconds = []
    for _ in range(3):
        start = time.thread_time()
        call()
        seconds.append(time.thread_time() - start)
    return min(seconds)


def peak_memory(call: Callable[[], object]) -> int:
    """Return the peak bytes allocated on the CPU in the call, beyond those before it, including the kernels' own."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    held = peak = 0
    for _, size in changes:
        held += size
        peak = max(peak, held)
    return peak


def measure(layout: str, all_rows: Sequence[int], tokens: int, repetitions: int) -> dict:
    """Return the CPU seconds of every contender at every size, one per repetition, and the peak memory of some."""
    batches = {rows: make_batch(layout, rows, tokens) for rows in all_rows}
    check_agreement(batches[all_rows[0]])
    calls = {rows: contenders(batch) for rows, batch in batches.items()}
    seconds: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(repetitions):
        for rows in all_rows:
            for name, call in calls[rows].items():
                seconds[name][rows].append(timed(call))
    memory = {
        name: {rows: peak_memory(calls[rows][name]) / (rows * tokens * 4) for rows in all_rows} for name in (PASS, AEM)
    }
    share = {rows: len(batch.responses.token_M) / (rows * tokens) for rows, batch in batches.items()}
    return {"seconds": {name: dict(of_rows) for name, of_rows in seconds.items()}, "memory": memory, "share": share}


def ratio(over: list[float], under: list[float]) -> float:
    return median(a / b for a, b in zip(over, under, strict=True))


def growth(of_rows: dict[int, list[float]]) -> list[float]:
    """Return the time at each size relative to proportional growth from the first size."""
    first, *_ = of_rows
    return [ratio(seconds, of_rows[first]) * first / rows for rows, seconds in of_rows.items()]


def figures(result: dict, all_rows: Sequence[int]) -> list[tuple[str, list[float], float, bool]]:
    """Return name, value at each size, target, and whether the target is an upper bound."""
    seconds = result["seconds"]
    return [
        ("aem / one pass", [ratio(seconds[AEM][rows], seconds[PASS][rows]) for rows in all_rows], PASS_LIMIT, True),
        ("loop / aem", [ratio(seconds[LOOP][rows], seconds[AEM][rows]) for rows in all_rows], LOOP_LIMIT, False),
        ("growth of aem / linear", growth(seconds[AEM]), GROWTH_LIMIT, True),
        ("peak memory of aem, B×T float32", [result["memory"][AEM][rows] for rows in all_rows], MEMORY_LIMIT, True),
    ]


def print_table(layout: str, result: dict, all_rows: Sequence[int], tokens: int) -> None:
    share = result["share"][all_rows[-1]]
    print(f"\n{layout}: {tokens} tokens a row, {share:.0%} of them on a response")
    print(f"{'median, ms of CPU time':<34}" + "".join(f"{f'{rows:,} rows':>12}" for rows in all_rows))
    for name, of_rows in result["seconds"].items():
        print(f"{name:<34}" + "".join(f"{1e3 * median(of_rows[rows]):>12.2f}" for rows in all_rows))
    print(f"{'figure':<34}" + " " * 12 * len(all_rows) + f"{'target':>9}")
    for name, values, target, upper in figures(result, all_rows):
        met = all(value <= target if upper else value >= target for value in values)
        bound = f"{'≤' if upper else '≥'} {target:g}"
        print(
            f"{name:<34}" + "".join(f"{value:>12.2f}" for value in values) + f"{bound:>9}  {'met' if met else 'MISSED'}"
        )
    print(f"{'growth of one pass / linear':<34}" + "".join(f"{one:>12.2f}" for one in growth(result["seconds"][PASS])))
    peaks = "".join(f"{result['memory'][PASS][rows]:>12.2f}" for rows in all_rows)
    print(f"{'peak memory of one pass':<34}{peaks}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[800, 3200, 6400])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write everything measured here, every repetition of it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": cpu_name(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
    }
    print(f"{machine['processor']}, {machine['cores']} cores of which one is used; torch {machine['torch']}; ", end="")
    print(f"load before {machine['load_before']:.1f}; {options.repetitions} repetitions")
    results = {}
    for layout in LAYOUTS:
        results[layout] = measure(layout, options.rows, options.tokens, options.repetitions)
        print_table(layout, results[layout], options.rows, options.tokens)
    machine["load_after"] = os.getloadavg()[0]
    if options.json:
        settings = {"rows": options.rows, "tokens": options.tokens, "repetitions": options.repetitions}
        options.json.write_text(json.dumps({"machine": machine, "settings": settings, "layouts": results}, indent=1))


def cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
