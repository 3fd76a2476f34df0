"""The losses of the shipped methods, by verl's own functions with the composed settings.

Not covered: those of EPO and of entropy control (tests/recipe/seam).
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("verl", reason="verl is not installed")

from tests.helpers.methods import compose, gradients


@pytest.mark.parametrize("method", ["dapo", "aem_dapo", "grpopp", "aem_grpopp"])
def test_clip_higher(method):
    """A good token is pushed until π/π_old = 1.28, a bad one until 0.8: upwards there is more room than downwards."""
    config = compose("webshop_7b", method)
    log_ratio = torch.tensor([1.27, 1.29, 0.81, 0.79]).log().tolist()
    moved = gradients(config, [log_ratio], [[1.0, 1.0, -1.0, -1.0]])[0] != 0
    assert moved.tolist() == [True, False, True, False]


@pytest.mark.parametrize("method", ["dapo", "aem_dapo"])
def test_dapo_weighs_every_token_alike(method):
    """Token mean: five tokens in two responses, each a fifth of the loss whatever the length of its response."""
    gradient = gradients(compose("webshop_7b", method), [[0.0] * 4, [0.0]], [[1.0] * 4, [1.0]])
    assert gradient[gradient != 0].tolist() == pytest.approx([-0.2] * 5)


@pytest.mark.parametrize("method", ["gspo", "aem_gspo", "sampo"])
def test_gspo_weighs_the_tokens_of_a_response_by_its_one_ratio(method):
    """Token log-ratios +0.1 and −0.0998: the sequence's is their mean, 1e-4, within the clip though each token is not.

    Both tokens get −A · exp(1e-4) / (2 tokens · 2 rows).
    """
    config = compose("webshop_7b", method)
    gradient = gradients(config, [[0.1, -0.0998], [0.0]], [[1.0, 1.0], [1.0]])
    both = -torch.exp(torch.tensor(1e-4, dtype=torch.float64)).item() / 4
    assert gradient[0].tolist() == pytest.approx([both, both], rel=1e-12)
    # a mean over responses: the response of one token weighs as much as the two tokens together
    assert gradient[1, 0].item() == pytest.approx(-0.5)


@pytest.mark.parametrize("method", ["gspo", "aem_gspo", "sampo"])
def test_gspo_clips_whole_responses_three_and_four_in_ten_thousand_away(method):
    config = compose("webshop_7b", method)
    # the mean log-ratio of the first two rows passes 4e-4 just not and just, of the last two −3e-4
    log_ratio = [[3.9e-4, 3.9e-4], [8.2e-4, 0.0], [-5.8e-4, 0.0], [-3.1e-4, -3.1e-4]]
    gradient = gradients(config, log_ratio, [[1.0, 1.0], [1.0, 1.0], [-1.0, -1.0], [-1.0, -1.0]])
    assert (gradient != 0).tolist() == [[True, True], [False, False], [True, True], [False, False]]


LOG_RATIO, RATIO = [0.6, 0.6, 0.1, -0.1, -0.6, -0.6], torch.tensor([0.6, 0.6, 0.1, -0.1, -0.6, -0.6]).double().exp()
"""With log π_old = 0 these are log π too; their mean is 0, and so is that of the advantages below, so that a token's
covariance is the product of the two. Without a clip its gradient is −A · ratio / 6 tokens."""


def test_clip_cov_lets_go_of_one_token_between_its_bounds():
    """Covariances 12, 2.4, 0.1, 0.1, 3 and 11.4: of the two between 1 and 5 a random one gets no gradient.

    2e-4 of six tokens is none, but one at least is taken. The ordinary clip, at 1, lets ratios of 1.82 and 0.55 pass.
    """
    advantage = [20.0, 4.0, 1.0, -1.0, -5.0, -19.0]
    gradient = gradients(compose("webshop_7b", "clip_cov"), [LOG_RATIO], [advantage])[0]
    gone = (gradient == 0).nonzero().flatten().tolist()
    assert gone in ([1], [4])
    expected = -torch.tensor(advantage) * RATIO / 6
    expected[gone] = 0.0
    torch.testing.assert_close(gradient, expected)


def test_kl_cov_pulls_the_token_of_the_largest_covariance_back():
    """Covariances as above: the first token's penalty |log π − log π_old| adds +1 · β / 6; nothing is clipped."""
    advantage = [20.0, 4.0, 1.0, -1.0, -5.0, -19.0]
    gradient = gradients(compose("webshop_7b", "kl_cov"), [LOG_RATIO], [advantage])[0]
    expected = -torch.tensor(advantage) * RATIO / 6
    expected[0] += 1.0 / 6
    torch.testing.assert_close(gradient, expected)


def test_published_values_of_clip_cov_and_kl_cov():
    loss = {method: compose("webshop_7b", method).actor_rollout_ref.actor for method in ("clip_cov", "kl_cov")}
    clip, kl = loss["clip_cov"].policy_loss, loss["kl_cov"].policy_loss
    assert (clip.loss_mode, clip.clip_cov_ratio, clip.clip_cov_lb, clip.clip_cov_ub) == ("clip_cov", 2e-4, 1.0, 5.0)
    assert (loss["clip_cov"].clip_ratio_low, loss["clip_cov"].clip_ratio_high) == (1.0, 1.0)
    assert (kl.loss_mode, kl.kl_cov_ratio, kl.ppo_kl_coef) == ("kl_cov", 2e-4, 1.0)


def test_sampo_is_gspos_loss_gigpos_advantage_and_dapos_filter():
    sampo, gspo, gigpo, dapo = (compose("webshop_7b", name) for name in ("sampo", "gspo", "gigpo", "dapo"))
    assert sampo.actor_rollout_ref == gspo.actor_rollout_ref
    assert sampo.algorithm.gigpo == gigpo.algorithm.gigpo and sampo.algorithm.adv_estimator == "gigpo"
    assert sampo.algorithm.filter_groups == dapo.algorithm.filter_groups


@pytest.mark.parametrize("method", ["drgrpo", "grpopp", "aem_grpopp"])
@pytest.mark.parametrize(("name", "limit"), [("webshop_7b", 512), ("webshop_demo", 16)])
def test_a_constant_divides_the_sum_over_tokens(method, name, limit):
    """Every token counts 1 / (rows · response length), however long its own response or the longest beside it is."""
    config = compose(name, method)
    for width in (4, 11):
        gradient = gradients(config, [[0.0] * 4, [0.0]], [[1.0] * 4, [1.0]], width)
        assert gradient[gradient != 0].tolist() == pytest.approx([-1 / (2 * limit)] * 5)
