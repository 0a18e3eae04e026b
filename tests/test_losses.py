"""The losses of both scripts against separate float64 forms, against numbers worked out by hand, and their gradients.

By hand, 2 states x 3 actions:

    pi  1/2  1/4  1/4    Q  1  2   3    H  3/2 log 2 = 1.0397207708    V (alpha 1/2)  1.75 + 3/4 log 2 = 2.2698603854
        1/3  1/3  1/3       3  0  -3       log 3     = 1.0986122887                   1/2 log 3        = 0.5493061443
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import sdsac_atari
import sdsac_classic

torch.set_num_threads(1)

SEEDS = range(5)
B, A = 7, 4

HAND_PI = [[1 / 2, 1 / 4, 1 / 4], [1 / 3, 1 / 3, 1 / 3]]
HAND_Q = [[1.0, 2.0, 3.0], [3.0, 0.0, -3.0]]
HAND_H = [1.0397207708399179, 1.0986122886681098]
HAND_V = [2.2698603854199590, 0.5493061443340549]
HAND_ALPHA = 0.5


@pytest.fixture(params=[sdsac_classic, sdsac_atari], ids=["classic", "atari"])
def sdsac(request):
    return request.param


def tensor(values, requires_grad=False):
    return torch.tensor(np.asarray(values), dtype=torch.float64, requires_grad=requires_grad)


def random_policy(rng, requires_grad=False):
    """Log-probabilities (B, A) far from uniform, as a leaf."""
    logits = rng.normal(0, 2, (B, A))
    return tensor(logits - np.log(np.exp(logits).sum(1, keepdims=True)), requires_grad)


def close(value, expected):
    np.testing.assert_allclose(value.detach().numpy(), expected, rtol=1e-12, atol=1e-12)


# ----------------------------------------------------------------------------------------------------------------------
# The equations again, sample by sample and action by action


def numpy_entropy(log_pi):
    return np.array([-sum(np.exp(lp) * lp for lp in row) for row in log_pi])


def numpy_soft_value(q, log_pi, alpha):
    expected_q = np.array([sum(np.exp(log_pi[b, a]) * q[b, a] for a in range(A)) for b in range(B)])
    return expected_q + alpha * numpy_entropy(log_pi)


def numpy_critic_loss(q, q_target, y, c):
    losses = []
    for one, held, wanted in zip(q, q_target, y, strict=True):
        clipped = one if c is None else min(max(one, held - c), held + c)
        losses.append(max((one - wanted) ** 2, (clipped - wanted) ** 2))
    return np.mean(losses)


def numpy_clipped_fraction(q, q_target, y, c):
    count = 0
    for one, held, wanted in zip(q, q_target, y, strict=True):
        if one > held + c:
            count += abs(held + c - wanted) > abs(one - wanted)
        elif one < held - c:
            count += abs(held - c - wanted) > abs(one - wanted)
    return count / len(q)


def random_critic_inputs(rng):
    """Q, Q' and y (B,) such that c = 1 binds for some samples and not for others."""
    q_target = rng.normal(0, 3, B)
    return q_target + rng.normal(0, 2, B), q_target, q_target + rng.normal(0, 2, B)


@pytest.mark.parametrize("seed", SEEDS)
def test_soft_value_and_entropy_match_numpy(sdsac, seed):
    """A wrong sign of alpha log pi, a lost factor pi, an average over the wrong axis."""
    rng = np.random.default_rng(seed)
    log_pi, q, alpha = random_policy(rng), rng.normal(0, 3, (B, A)), rng.uniform(0.1, 2)
    value = sdsac.soft_value(tensor(q), log_pi, alpha)
    assert value.shape == (B,)
    close(value, numpy_soft_value(q, log_pi.numpy(), alpha))
    close(sdsac.soft_value(tensor(q), log_pi, tensor(alpha)), numpy_soft_value(q, log_pi.numpy(), alpha))
    close(sdsac.entropy_of(log_pi), numpy_entropy(log_pi.numpy()))


@pytest.mark.parametrize("seed", SEEDS)
def test_average_or_min_matches_numpy(sdsac, seed):
    """The two swapped, a maximum, a sum, a minimum over more than the twins."""
    rng = np.random.default_rng(seed)
    q1, q2 = rng.normal(0, 3, (2, B, A))
    close(sdsac.average_or_min(tensor(q1), tensor(q2), True), 0.5 * q1 + 0.5 * q2)
    close(sdsac.average_or_min(tensor(q1), tensor(q2), False), np.where(q1 < q2, q1, q2))


@pytest.mark.parametrize("clip_range", [None, 0.3, 1.0, 100.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_critic_loss_matches_numpy(sdsac, seed, clip_range):
    """Clipping around y or around 0 rather than Q', the smaller of the branches, the maximum over the whole batch."""
    rng = np.random.default_rng(seed)
    inputs = random_critic_inputs(rng)
    close(sdsac.critic_loss(*map(tensor, inputs), clip_range), numpy_critic_loss(*inputs, clip_range))


@pytest.mark.parametrize("clip_range", [0.3, 1.0, 100.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_clipped_fraction_matches_numpy(sdsac, seed, clip_range):
    """Counting every sample outside the range, or every one whose clipped branch is the larger by rounding."""
    rng = np.random.default_rng(seed)
    inputs = random_critic_inputs(rng)
    fraction = sdsac.clipped_fraction(*map(tensor, inputs), clip_range)
    assert fraction.item() == pytest.approx(numpy_clipped_fraction(*inputs, clip_range), abs=1e-7)  # a float32
    assert sdsac.clipped_fraction(*map(tensor, inputs), None).item() == 0


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_actor_loss_and_entropy_penalty_match_numpy(sdsac, seed, beta):
    """A penalty left out, added twice, of the wrong sign, or on the mean of the entropies."""
    rng = np.random.default_rng(seed)
    log_pi, q, alpha = random_policy(rng), rng.normal(0, 3, (B, A)), rng.uniform(0.1, 2)
    old = rng.uniform(0, np.log(A), B)
    pi = np.exp(log_pi.numpy())
    plain = np.mean([sum(pi[b, a] * (alpha * np.log(pi[b, a]) - q[b, a]) for a in range(A)) for b in range(B)])
    penalty = beta / 2 * np.mean((old - numpy_entropy(log_pi.numpy())) ** 2)
    close(sdsac.actor_loss(log_pi, tensor(q), alpha, tensor(old), beta), plain + penalty)
    close(sdsac.entropy_penalty(log_pi, tensor(old), beta), penalty)


@pytest.mark.parametrize("seed", SEEDS)
def test_temperature_loss_matches_numpy(sdsac, seed):
    """alpha in place of log alpha, a wrong sign, a sum over the batch."""
    rng = np.random.default_rng(seed)
    log_alpha, entropy, target = rng.normal(), rng.uniform(0, np.log(A), B), rng.uniform(0, np.log(A))
    close(sdsac.temperature_loss(tensor(log_alpha), tensor(entropy), target), log_alpha * (entropy.mean() - target))


# ----------------------------------------------------------------------------------------------------------------------
# By hand


def test_soft_value_by_hand(sdsac):
    """A mean over the actions would give a third of these numbers."""
    log_pi = tensor(HAND_PI).log()
    close(sdsac.entropy_of(log_pi), HAND_H)
    close(sdsac.soft_value(tensor(HAND_Q), log_pi, HAND_ALPHA), HAND_V)


@pytest.mark.parametrize(("num_actions", "value"), [(2, 1.6931471806), (3, 2.0986122887), (18, 3.8903717579)])
def test_soft_value_of_the_uniform_policy_grows_with_log_a(sdsac, num_actions, value):
    """V = 1 + log A where all Q are 1 and alpha is 1: a mean over the actions would fall with A instead."""
    log_pi = F.log_softmax(torch.zeros(2, num_actions, dtype=torch.float64), dim=1)
    v = sdsac.soft_value(torch.ones_like(log_pi), log_pi, 1.0)
    np.testing.assert_allclose(v.numpy(), value, rtol=0, atol=1e-9)


def test_average_or_min_by_hand(sdsac):
    """The minimum is taken of each state and action, not of the whole twin with the smaller mean."""
    q1, q2 = tensor([[1.0, 5.0, -2.0], [0.0, 3.0, 4.0]]), tensor([[3.0, 1.0, -4.0], [0.0, 9.0, 2.0]])
    assert sdsac.average_or_min(q1, q2, True).tolist() == [[2.0, 3.0, -3.0], [0.0, 6.0, 3.0]]
    assert sdsac.average_or_min(q1, q2, False).tolist() == [[1.0, 1.0, -4.0], [0.0, 3.0, 2.0]]


def test_q_clip_takes_the_maximum_per_sample(sdsac):
    """The maximum of the two batch means would be 4.5; with the maximum of each sample it is 6.5.

    Q = 3 and Q' = 0 twice, c = 1, so clipped to 1. y = 3: plain 0, clipped 4; y = 0: plain 9, clipped 1.
    """
    q, q_target, y = tensor([3.0, 3.0]), tensor([0.0, 0.0]), tensor([3.0, 0.0])
    plain, clipped = [0.0, 9.0], [4.0, 1.0]
    per_sample, of_means = np.mean(np.maximum(plain, clipped)), max(np.mean(plain), np.mean(clipped))
    assert (per_sample, of_means) == (6.5, 4.5)
    assert sdsac.critic_loss(q, q_target, y, 1.0).item() == 6.5
    assert sdsac.critic_loss(q, q_target, y, None).item() == 4.5  # the plain mean, here also the larger one
    assert sdsac.critic_loss(q, q_target, tensor([3.0, 1.5]), 1.0).item() == 3.125  # (4 + 2.25) / 2
    assert sdsac.critic_loss(q, q_target, tensor([3.0, 1.5]), None).item() == 1.125  # (0 + 2.25) / 2
    assert sdsac.clipped_fraction(q, q_target, y, 1.0).item() == 0.5


def test_q_clip_is_around_the_target_critic_on_both_sides(sdsac):
    """Q' = 10, c = 1: Q = 12.5 is clipped to 11 and Q = 7.5 to 9; clipped around 0 or y they would go elsewhere."""
    held = tensor([10.0])
    assert sdsac.critic_loss(tensor([12.5]), held, tensor([12.0]), 1.0).item() == 1.0  # max(0.25, 1)
    assert sdsac.critic_loss(tensor([7.5]), held, tensor([8.0]), 1.0).item() == 1.0
    assert sdsac.critic_loss(tensor([10.5]), held, tensor([12.0]), 1.0).item() == 2.25  # inside: the plain error
    assert sdsac.critic_loss(tensor([12.5]), held, tensor([8.0]), 1.0).item() == 20.25  # max(20.25, 9)


def test_clipped_fraction_by_hand(sdsac):
    """Q' = 0, c = 1. Only the first is outside with the larger clipped branch: not the second, whose plain branch is
    the larger, nor the third, a tie (half the gradient remains), nor the fourth, inside."""
    q, y = tensor([3.0, 3.0, 2.0, 0.5]), tensor([3.0, 0.0, 1.5, 7.0])
    assert sdsac.clipped_fraction(q, torch.zeros_like(q), y, 1.0).item() == 0.25


def test_actor_loss_by_hand(sdsac):
    """A mean over the actions would give a third; the penalty, 1/2 x 1/2 x mean(0.2^2, 0.4^2), adds 0.025."""
    log_pi, q = tensor(HAND_PI).log(), tensor(HAND_Q)
    old = tensor([HAND_H[0] + 0.2, HAND_H[1] - 0.4])
    close(sdsac.actor_loss(log_pi, q, HAND_ALPHA, old, 0.0), -1.4095832648770070)
    close(sdsac.actor_loss(log_pi, q, HAND_ALPHA, old, 0.5), -1.3845832648770070)


def test_entropy_penalty_by_hand(sdsac):
    """Without the factor 1/2 it would be 0.05, with a sum over the batch 0.05, with the square of the mean 0.0025."""
    old = tensor([HAND_H[0] + 0.2, HAND_H[1] - 0.4])
    close(sdsac.entropy_penalty(tensor(HAND_PI).log(), old, 0.5), 0.025)
    close(sdsac.entropy_penalty(tensor(HAND_PI).log(), old, 1.0), 0.05)  # linear in beta


def test_temperature_loss_by_hand(sdsac):
    """log alpha = -2 and mean(H) - target = 0.3 - 0.5; with alpha in place of its logarithm -0.027."""
    close(sdsac.temperature_loss(tensor(-2.0), tensor([0.2, 0.4]), 0.5), 0.4)


def test_certain_action_is_finite_in_float32(sdsac):
    """pi log pi at pi = 0: exp(-200) is 0 in float32, and a logarithm taken of it would make nan."""
    logits = torch.tensor([[0.0, -200.0, -200.0], [-200.0, 0.0, -200.0]], requires_grad=True)
    log_pi = F.log_softmax(logits, dim=1)
    q, old = torch.tensor(HAND_Q, dtype=torch.float32), torch.tensor([0.5, 1.0])
    assert log_pi.exp().tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    assert sdsac.entropy_of(log_pi).tolist() == [0.0, 0.0]
    assert sdsac.soft_value(q, log_pi, 0.5).tolist() == [1.0, 0.0]
    assert sdsac.entropy_penalty(log_pi, old, 0.5).item() == 0.15625  # 1/2 x 1/2 x mean(0.25, 1)
    loss = sdsac.actor_loss(log_pi, q, 0.5, old, 0.5)
    assert loss.item() == -0.34375
    loss.backward()
    assert torch.isfinite(logits.grad).all()


# ----------------------------------------------------------------------------------------------------------------------
# Gradients


def random_logits(rng):
    return tensor(rng.normal(0, 1.5, (B, A)), requires_grad=True)


@pytest.mark.parametrize("seed", SEEDS)
def test_gradient_of_soft_value(sdsac, seed):
    """A detach too many, on any of the inputs."""
    rng = np.random.default_rng(seed)
    q, alpha = tensor(rng.normal(0, 3, (B, A)), True), tensor(rng.uniform(0.1, 2), True)
    assert torch.autograd.gradcheck(
        lambda q, logits, alpha: sdsac.soft_value(q, F.log_softmax(logits, 1), alpha), (q, random_logits(rng), alpha)
    )


@pytest.mark.parametrize("double_average", [True, False])
def test_gradient_of_average_or_min(sdsac, double_average):
    """A twin that gets no gradient: the average gives each a half, the minimum all of it to the smaller."""
    q1, q2 = tensor([[1.0, 5.0], [-2.0, 0.0]], True), tensor([[3.0, 1.0], [-4.0, 2.0]], True)
    assert torch.autograd.gradcheck(lambda q1, q2: sdsac.average_or_min(q1, q2, double_average), (q1, q2))
    sdsac.average_or_min(q1, q2, double_average).sum().backward()
    assert q1.grad.tolist() == ([[0.5, 0.5], [0.5, 0.5]] if double_average else [[1.0, 0.0], [0.0, 1.0]])
    assert q2.grad.tolist() == ([[0.5, 0.5], [0.5, 0.5]] if double_average else [[0.0, 1.0], [1.0, 0.0]])


@pytest.mark.parametrize("clip_range", [None, 1.0])
def test_gradient_of_critic_loss_inside_the_range(sdsac, clip_range):
    """Inside the range Q-clip changes nothing: the gradient is 2 (Q - y) / B, neither halved nor doubled."""
    q, q_target, y = tensor([0.5, -0.75, 2.25], True), tensor([0.0, 0.0, 2.0]), tensor([3.0, 1.0, -1.0])
    assert torch.autograd.gradcheck(lambda q: sdsac.critic_loss(q, q_target, y, clip_range), (q,))
    sdsac.critic_loss(q, q_target, y, clip_range).backward()
    close(q.grad, [-2.5 * 2 / 3, -1.75 * 2 / 3, 3.25 * 2 / 3])


def test_gradient_of_critic_loss_outside_the_range(sdsac):
    """Zero, exactly, where the clipped branch is the larger; whole where the plain one is."""
    q, q_target = tensor([3.0, -3.0, 3.0, -3.0], True), tensor([0.0, 0.0, 0.0, 0.0])
    y = tensor([4.0, -2.5, -1.0, 0.5])  # clipped to 1, -1, 1, -1: larger, larger, smaller, smaller
    assert torch.autograd.gradcheck(lambda q: sdsac.critic_loss(q, q_target, y, 1.0), (q,))
    sdsac.critic_loss(q, q_target, y, 1.0).backward()
    assert q.grad.tolist() == [0.0, 0.0, 2.0, -1.75]
    assert sdsac.clipped_fraction(q, q_target, y, 1.0).item() == 0.5


@pytest.mark.parametrize("seed", SEEDS)
def test_clipped_fraction_counts_the_samples_without_gradient(sdsac, seed):
    """A metric that says something else than what the loss does."""
    rng = np.random.default_rng(seed)
    q, q_target, y = map(tensor, rng.normal(0, 2, (3, 200)))
    q.requires_grad_()
    sdsac.critic_loss(q, q_target, y, 1.0).backward()
    without = (q.grad == 0).double().mean().item()
    assert 0.05 < without < 0.95
    assert sdsac.clipped_fraction(q, q_target, y, 1.0).item() == pytest.approx(without, abs=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("seed", SEEDS)
def test_gradient_of_actor_loss_and_entropy_penalty(sdsac, seed, beta):
    """A policy, or an entropy in the penalty, that is held constant: gradcheck would see a part missing."""
    rng = np.random.default_rng(seed)
    logits, q = random_logits(rng), tensor(rng.normal(0, 3, (B, A)))
    old = tensor(rng.uniform(0, np.log(A), B))
    assert torch.autograd.gradcheck(
        lambda logits: sdsac.actor_loss(F.log_softmax(logits, 1), q, 0.7, old, beta), (logits,)
    )
    if beta:
        assert torch.autograd.gradcheck(
            lambda logits: sdsac.entropy_penalty(F.log_softmax(logits, 1), old, beta), (logits,)
        )


def test_gradient_of_actor_loss_by_hand(sdsac):
    """d loss / d logit_a = pi_a (alpha log pi_a - Q_a + V) / B: zero only where pi is softmax(Q / alpha)."""
    logits = tensor(np.log(HAND_PI), True)
    sdsac.actor_loss(F.log_softmax(logits, 1), tensor(HAND_Q), HAND_ALPHA, torch.zeros(2), 0.0).backward()
    pi, q, v = np.array(HAND_PI), np.array(HAND_Q), np.array(HAND_V)[:, None]
    close(logits.grad, pi * (HAND_ALPHA * np.log(pi) - q + v) / 2)

    optimum = (tensor(HAND_Q) / HAND_ALPHA).requires_grad_()
    sdsac.actor_loss(F.log_softmax(optimum, 1), tensor(HAND_Q), HAND_ALPHA, torch.zeros(2), 0.0).backward()
    close(optimum.grad, np.zeros((2, 3)))


@pytest.mark.parametrize("log_alpha", [-2.0, 0.0, 1.5])
def test_gradient_of_temperature_loss(sdsac, log_alpha):
    """The gradient is mean(H) - target at every temperature; one by way of alpha would vanish with alpha."""
    log_alpha, entropy = tensor(log_alpha, True), tensor([0.2, 0.4])
    assert torch.autograd.gradcheck(lambda log_alpha: sdsac.temperature_loss(log_alpha, entropy, 0.5), (log_alpha,))
    sdsac.temperature_loss(log_alpha, entropy, 0.5).backward()
    close(log_alpha.grad, -0.2)


# ----------------------------------------------------------------------------------------------------------------------
# What gets no gradient


@pytest.mark.parametrize("clip_range", [None, 1.0])
def test_critic_loss_trains_neither_target_nor_y(sdsac, clip_range):
    """A gradient into Q', which would drag the clipping along, or into y, which would be residual-gradient learning."""
    q, q_target, y = (tensor(values, True) for values in random_critic_inputs(np.random.default_rng(0)))
    sdsac.critic_loss(q, q_target, y, clip_range).backward()
    assert q.grad.abs().sum() > 0
    assert q_target.grad is None
    assert y.grad is None


def test_actor_loss_trains_only_the_policy(sdsac):
    """A gradient into Q would let the actor raise the critics; one into H_old has nothing to train."""
    rng = np.random.default_rng(0)
    log_pi, q, old = random_policy(rng, True), tensor(rng.normal(0, 3, (B, A)), True), tensor(np.ones(B), True)
    sdsac.actor_loss(log_pi, q, 0.5, old, 0.5).backward()
    assert log_pi.grad.abs().sum() > 0
    assert q.grad is None
    assert old.grad is None

    log_pi.grad = None
    sdsac.entropy_penalty(log_pi, old, 0.5).backward()
    assert log_pi.grad.abs().sum() > 0
    assert old.grad is None


def test_temperature_loss_trains_only_the_temperature(sdsac):
    """A gradient into the entropy would move the policy towards the target by itself."""
    log_alpha, entropy = tensor(-1.0, True), tensor([0.2, 0.4], True)
    sdsac.temperature_loss(log_alpha, entropy, 0.5).backward()
    assert log_alpha.grad is not None
    assert entropy.grad is None


@pytest.mark.parametrize(("entropy", "moved"), [([0.2, 0.4], 0.02), ([0.6, 0.8], -0.02), ([0.4, 0.6], 0.0)])
@pytest.mark.parametrize("start", [-3.0, 0.0, 2.0])
def test_temperature_moves_against_the_entropy(sdsac, entropy, moved, start):
    """A flipped sign, with which the temperature runs away. Target 0.5, one step of 0.1 down the gradient."""
    log_alpha = tensor(start, True)
    optimizer = torch.optim.SGD([log_alpha], lr=0.1)
    sdsac.temperature_loss(log_alpha, tensor(entropy), 0.5).backward()
    optimizer.step()
    close(log_alpha, start + moved)
