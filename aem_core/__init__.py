"""Entropy modulation for agentic reinforcement learning, as pure functions from tensors to tensors.

Axis suffixes, used in every name: B rows of the batch, T response tokens of a row, N responses of the batch, M response
tokens of the batch (those of all responses), G groups. Entropies and log-probabilities are in nats.

Every function returns new, detached tensors in float32 or wider, changes none of its inputs, and works on whatever
device they are on. What stands off a response (padding, NaN) never matters. Errors are `AEMError`s.

Example:
    >>> import torch
    >>> responses = find_responses(torch.tensor([[1, 1, 0], [1, 0, 1]]))
    >>> entropy_BT = torch.tensor([[0.2, 0.4, 0.0], [0.9, 0.0, 1.1]])
    >>> advantage_BT = torch.tensor([[1.0, 1.0, 0.0], [-1.0, 0.0, -1.0]])
    >>> rescaled_BT, stats = aem(advantage_BT, entropy_BT, responses, group_B=torch.tensor([0, 0]))
    >>> stats.alpha_N
    tensor([1.6302, 0.7701, 0.5997])
"""

from aem_core.aem import AemStats, Direction, Scope, aem, modulation_coefficients, rescale_advantages
from aem_core.errors import AEMError, AEMValueError
from aem_core.responses import Responses, find_responses
from aem_core.surprisal import relative_surprisal, response_entropies, response_log_probs

__all__ = [
    "AEMError",
    "AEMValueError",
    "AemStats",
    "Direction",
    "Responses",
    "Scope",
    "aem",
    "find_responses",
    "modulation_coefficients",
    "relative_surprisal",
    "rescale_advantages",
    "response_entropies",
    "response_log_probs",
]
