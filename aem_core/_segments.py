"""Sums, extrema and labels over segments (a response's tokens, a group's responses), without a loop.

No function here waits for a GPU: every output size is known on the host.
"""

from __future__ import annotations

import torch
from torch import Tensor


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision, else the dtype itself: what a computation on `dtype` runs in."""
    return torch.promote_types(dtype, torch.float32)


def segment_sum(value_M: Tensor, segment_M: Tensor, count: int) -> Tensor:
    return value_M.new_zeros(count).index_add_(0, segment_M, value_M)


def run_sum(value_M: Tensor, length_N: Tensor) -> Tensor:
    """The sums of consecutive runs of `length_N` values, which together must be all of them.

    Several times as fast as `segment_sum` for long runs, and on a GPU, where that one adds in any order, always the
    same.
    """
    # unsafe=True skips the comparison of the lengths with the number of values, for which the host would have to wait.
    return torch.segment_reduce(value_M, "sum", lengths=length_N, unsafe=True)


def segment_min(value_M: Tensor, segment_M: Tensor, count: int) -> Tensor:
    """+inf in a segment without elements."""
    return value_M.new_full((count,), torch.inf).scatter_reduce_(0, segment_M, value_M, "amin")


def segment_max(value_M: Tensor, segment_M: Tensor, count: int) -> Tensor:
    """−inf in a segment without elements."""
    return value_M.new_full((count,), -torch.inf).scatter_reduce_(0, segment_M, value_M, "amax")


def dense_labels(label_N: Tensor) -> Tensor:
    """Renumbers labels 0 … G−1 in ascending order; unlike torch.unique it never has to learn G on the host."""
    sorted_N, order_N = torch.sort(label_N.to(torch.int64), stable=True)
    number_N = torch.zeros_like(sorted_N)
    number_N[1:] = sorted_N[1:] != sorted_N[:-1]
    return torch.empty_like(order_N).scatter_(0, order_N, number_N.cumsum(0))


def shuffle_within(value_N: Tensor, segment_N: Tensor, seed: int) -> Tensor:
    """Permutes the values among the members of each segment; the global random state is neither read nor changed."""
    generator = torch.Generator(device=value_N.device).manual_seed(seed)
    random_N = torch.argsort(torch.rand(len(value_N), generator=generator, device=value_N.device))
    # Two orders that agree on the segment at every place and disagree, at random, within it.
    to_N = torch.argsort(segment_N, stable=True)
    from_N = random_N[torch.argsort(segment_N[random_N], stable=True)]
    return torch.empty_like(value_N).scatter_(0, to_N, value_N[from_N])
