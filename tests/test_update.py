"""`update` as a whole: against exactly solved decision processes, against a separate implementation, and its isolation.

The tabular cases give it every transition of a small decision process as one batch, so what it converges to can be
computed without any learning: soft Q and policy have to agree for every state and action.
"""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sdsac_atari
import sdsac_classic
from benchmark import (
    adam_epsilon,
    dead_units,
    decoupled_entropy,
    generalisation,
    hidden_heads,
    less_background,
    plain_filters,
    rounding,
    shift_kinds,
    shifted_critics,
    switched_n,
)

torch.set_num_threads(1)

# ----------------------------------------------------------------------------------------------------------------------
# A decision process of 5 states and 3 actions with deterministic transitions

S, A = 5, 3
GAMMA, ALPHA, BETA = 0.9, 0.3, 0.5
REWARDS = np.random.default_rng(0).normal(0.3, 0.3, (S, A))
SUCCESSORS = np.array([[4, 0, 0], [4, 0, 2], [0, 1, 2], [2, 2, 0], [0, 3, 0]])
DISCOUNTS = np.full((S, A), GAMMA)
DISCOUNTS[2, 1] = 0  # terminates
STATES, ACTIONS = (pairs.ravel() for pairs in np.meshgrid(np.arange(S), np.arange(A), indexing="ij"))
ONE_HOT = torch.eye(S)


def entropy(pi):
    return -(pi * np.log(pi)).sum(1)


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def soft_values(q):
    """V = alpha log sum_a exp(Q / alpha), the soft value of the best policy."""
    return ALPHA * np.log(np.exp(q / ALPHA).sum(1))


def solve(old_entropies=None, beta=0.0, target_bonus=1.0):
    """Q and pi (S, A) at the fixed point, by soft value iteration.

    The policy minimises E[alpha log pi - Q] + beta/2 (H_old - H)^2 in each state, which softmax(Q / T) does with
    T = alpha + beta (H_old - H). Its value is that of SAC, without the penalty and with this share of the bonus.
    """
    q, t = np.zeros((S, A)), np.full(S, ALPHA)
    for _ in range(2000):
        pi = softmax(q / t[:, None])
        if beta:
            t = (t + ALPHA + beta * (old_entropies - entropy(pi))) / 2
        v = (pi * q).sum(1) + target_bonus * ALPHA * entropy(pi)
        q = REWARDS + DISCOUNTS * v[SUCCESSORS]
    return q, pi


Q, PI = solve()


def test_the_exact_solution_is_one():
    """Guards the tests below: the fixed point is soft-optimal, and neither random nor greedy."""
    np.testing.assert_allclose(REWARDS + DISCOUNTS * soft_values(Q)[SUCCESSORS], Q, rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.exp((Q - soft_values(Q)[:, None]) / ALPHA), PI, rtol=0, atol=1e-12)
    assert 0.3 < entropy(PI).min() < entropy(PI).max() < np.log(A) - 0.05


def tensor(values):
    return torch.tensor(np.asarray(values), dtype=torch.float32)


def every_transition(old_entropies):
    return sdsac_classic.Batch(
        observations=ONE_HOT[STATES],
        actions=torch.tensor(ACTIONS),
        rewards=tensor(REWARDS[STATES, ACTIONS]),
        discounts=tensor(DISCOUNTS[STATES, ACTIONS]),
        next_observations=ONE_HOT[SUCCESSORS[STATES, ACTIONS]],
        old_entropies=tensor(old_entropies[STATES]),
    )


def learn(batch, num_updates, **kwargs):
    """Q of both critics, pi, and the largest share of samples that Q-clip held, after `num_updates` on one batch."""
    args = sdsac_classic.Args(tau=0.1, autotune=False, alpha=ALPHA, **kwargs)
    torch.manual_seed(0)
    agent = sdsac_classic.make_agent(args, (S,), A, "cpu")
    most_clipped = 0.0
    for k in range(num_updates):
        lr = 3e-3 * min(1.0, 300 ** (1 - 2 * k / num_updates))  # from halfway on down to 1e-5
        agent.actor_optimizer.param_groups[0]["lr"].fill_(lr)
        agent.q_optimizer.param_groups[0]["lr"].fill_(lr)
        metrics = sdsac_classic.update(agent, batch, args)
        most_clipped = max(most_clipped, metrics["losses/q_clip_fraction"].item())
    with torch.no_grad():
        q1, q2, pi = agent.qf1(ONE_HOT), agent.qf2(ONE_HOT), F.softmax(agent.actor(ONE_HOT), dim=1)
    return q1.numpy(), q2.numpy(), pi.double().numpy(), most_clipped


def agree(learned, exact):
    np.testing.assert_allclose(learned, exact, rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    ("q_clip", "double_average", "beta"),  # any two of them in all four ways
    [(True, True, 0.0), (True, True, BETA), (True, False, BETA), (False, True, BETA), (False, False, 0.0)],
)
def test_learns_the_exact_soft_q_and_policy(q_clip, double_average, beta):
    """Any error of the target, the policy's objective or the clipping that moves the solution.

    None of the three mechanisms may: the twins agree there, Q lies at its target, and the penalty vanishes where the
    old entropies are those of the solution.
    """
    q1, q2, pi, most_clipped = learn(
        every_transition(entropy(PI)), 1000, q_clip=q_clip, clip_range=0.3, double_average=double_average, beta=beta
    )
    agree(q1, Q)
    agree(q2, Q)
    agree(pi, PI)
    assert (most_clipped > 0.5) if q_clip else (most_clipped == 0)  # on the way Q-clip did hold the critics back


def test_entropy_penalty_holds_the_policy_near_the_old_entropy():
    """A penalty without effect, of the wrong sign or of another weight: old policies were uniform here, and the exact
    solution of the penalised problem is more random than that of SAC, by 0.08 nats."""
    uniform = np.full(S, np.log(A))
    q, pi = solve(uniform, BETA)
    q1, q2, learned_pi, _ = learn(every_transition(uniform), 1000, beta=BETA)
    assert entropy(learned_pi).mean() > entropy(PI).mean() + 0.05
    assert (entropy(learned_pi) > entropy(PI)).all()
    agree(q1, q)
    agree(q2, q)
    agree(learned_pi, pi)


def test_decoupled_entropy_leaves_the_bonus_out_of_the_target_alone(monkeypatch):
    """A bonus that is left in the target, or that the actor loses too: with a quarter of it in the target Q is lower by
    more than 1.5, but for the pair that terminates."""
    for name in ("soft_value", "actor_loss"):  # which it patches
        monkeypatch.setattr(sdsac_classic, name, getattr(sdsac_classic, name))
    decoupled_entropy.decouple(sdsac_classic, 0.25)
    q, pi = solve(target_bonus=0.25)
    assert ((Q - q > 1.5) | (DISCOUNTS == 0)).all()
    q1, q2, learned_pi, _ = learn(every_transition(entropy(pi)), 1000)
    agree(q1, q)
    agree(q2, q)
    agree(learned_pi, pi)


def test_adam_epsilon_shortens_the_steps_of_actor_and_critics(monkeypatch):
    """An epsilon that does not reach the optimisers, or the temperature's as well: Adam's first step is
    lr g / (|g| + epsilon)."""
    monkeypatch.setattr(sdsac_classic, "make_agent", sdsac_classic.make_agent)  # which it patches
    adam_epsilon.enlarge(sdsac_classic, 0.5)
    agent, args = make_agent(sdsac_classic, autotune=True, anneal_lr=False)
    log_alpha = agent.log_alpha.item()
    steps = [(agent.actor_optimizer, args.policy_lr), (agent.q_optimizer, args.q_lr)]
    weights = [(weight, weight.detach().clone(), lr) for adam, lr in steps for weight in adam.param_groups[0]["params"]]
    sdsac_classic.update(agent, make_batch(sdsac_classic), args)
    for weight, before, lr in weights:
        expected = -lr * weight.grad / (weight.grad.abs() + 0.5)
        torch.testing.assert_close(weight.detach() - before, expected, rtol=1e-3, atol=1e-7)
    assert abs(agent.log_alpha.item() - log_alpha) == pytest.approx(args.q_lr, rel=1e-3)


def test_switched_n_shortens_the_chains_from_its_step_on(monkeypatch):
    """A switch that comes early, late or never, or leaves the longer chain's discount: rewards are 1, gamma is 1/2, so
    a chain of three steps is worth 1.75 and of one step 1."""
    monkeypatch.setattr(sdsac_classic, "ReplayBuffer", sdsac_classic.ReplayBuffer)  # which it patches
    switched_n.switch(sdsac_classic, 20, 1)
    buffer = sdsac_classic.ReplayBuffer(100, 2, (1,), n_step=3, gamma=0.5)
    no, one = np.zeros(2, bool), np.ones(2)
    for step in range(12):  # of two environments
        buffer.add(np.full((2, 1), step), one, one, no, no, one, no)
        if step >= 3:
            batch = buffer.sample(8)
            long = step < 9
            assert (batch.rewards == (1.75 if long else 1)).all()
            assert (batch.discounts == (0.125 if long else 0.5)).all()
            assert (batch.next_observations - batch.observations == (3 if long else 1)).all()


def test_kinds_of_shifts_move_by_whole_cells_and_a_share_of_the_transitions(monkeypatch):
    """Shifts of other sizes, one way only, of too many transitions, of s and s' by the same, or of one of a pair."""
    monkeypatch.setattr(sdsac_atari, "ReplayBuffer", sdsac_atari.ReplayBuffer)  # which it patches
    shift_kinds.patch(sdsac_atari, pixels=4, share=0.25, alike=False)
    buffer = sdsac_atari.ReplayBuffer(10, 1, (4, 84, 84), n_step=1, gamma=0.5, random_shift=9)
    no, one = np.zeros(1, bool), np.ones(1)
    for _ in range(3):
        buffer.add(np.zeros((1, 4, 84, 84), np.uint8), one, one, no, no, one, no)
    _, numbers = buffer.pick(4_000)
    assert (numbers[:4] == torch.tensor([1, 0.5, 1, 1])[:, None]).all()
    shifts = numbers[4:]
    moved = (shifts != 0).any(0)
    assert 0.22 < moved.float().mean() < 0.28
    sizes, counts = shifts[:, moved].unique(return_counts=True)
    assert sizes.tolist() == [-8, -4, 0, 4, 8]
    assert counts.min() > 0.9 * counts.float().mean()
    assert shifts[:, moved].corrcoef().fill_diagonal_(0).abs().max() < 0.1


def test_alike_shifts_move_both_observations_by_the_same(monkeypatch):
    monkeypatch.setattr(sdsac_atari, "ReplayBuffer", sdsac_atari.ReplayBuffer)
    shift_kinds.patch(sdsac_atari, pixels=1, share=1.0, alike=True)
    buffer = sdsac_atari.ReplayBuffer(10, 1, (4, 84, 84), n_step=1, gamma=0.5, random_shift=2)
    no, one = np.zeros(1, bool), np.ones(1)
    for _ in range(3):
        buffer.add(np.zeros((1, 4, 84, 84), np.uint8), one, one, no, no, one, no)
    shifts = buffer.pick(1_000)[1][4:]
    assert (shifts[:2] == shifts[2:]).all()
    assert [own.unique().tolist() for own in shifts[:2]] == [[-2, -1, 0, 1, 2]] * 2


def test_shifted_critics_leave_the_target_and_the_actor_with_what_is_stored(monkeypatch):
    """A target at moved observations, critics or an actor at the wrong half of the batch, metrics of the other half."""
    for name in ("ReplayBuffer", "gradients"):
        monkeypatch.setattr(sdsac_atari, name, getattr(sdsac_atari, name))
    monkeypatch.setitem(sdsac_atari.BF16, "cpu", False)
    as_it_is = sdsac_atari.gradients
    shifted_critics.shift_critics(sdsac_atari)
    args, rng = sdsac_atari.Args(beta=0.1, cuda=False), np.random.default_rng(0)
    buffer = sdsac_atari.ReplayBuffer(40, 1, (4, 84, 84), n_step=1, gamma=0.5, random_shift=4)
    no, one = np.zeros(1, bool), np.ones(1)
    for _ in range(20):
        buffer.add(
            rng.integers(256, size=(1, 4, 84, 84)).astype(np.uint8), one, rng.random(1), no, no, rng.random(1), no
        )
    frames, numbers = buffer.pick(8)
    stored, following = frames
    moved = sdsac_atari.shifted(stored, *numbers[4:6].long())
    batch = buffer.batch(frames, numbers)
    assert torch.equal(batch.observations, torch.cat([moved, stored]))
    assert torch.equal(batch.next_observations, following)
    assert not torch.equal(moved, stored)

    agent = sdsac_atari.make_agent(args, (4, 84, 84), 4, "cpu")
    critics, actor, _, metrics = sdsac_atari.gradients(agent, batch, args)
    at_moved = as_it_is(agent, batch._replace(observations=moved), args)
    at_stored = as_it_is(agent, batch._replace(observations=stored), args)
    torch.testing.assert_close(critics, at_moved[0])
    torch.testing.assert_close(actor, at_stored[1])
    for name, value in metrics.items():
        of_actor = name in ("losses/actor_loss", "losses/entropy_penalty", "losses/actor_grad_norm", "policy/entropy")
        torch.testing.assert_close(value, (at_stored if of_actor else at_moved)[3][name])
    assert metrics["losses/qf_loss"] != at_stored[3]["losses/qf_loss"]
    assert metrics["policy/entropy"] != at_moved[3]["policy/entropy"]


def small_run(env_id: str) -> Path:
    """A run of 400 steps, 100 of them learning, below the present directory."""
    args = sdsac_atari.Args(
        env_id=env_id,
        total_timesteps=400,
        learning_starts=300,
        buffer_size=400,
        num_envs=2,
        batch_size=4,
        q_clip=False,
        compile=False,
        policy_lr=1e-2,
    )
    return sdsac_atari.train(args)


def test_generalisation_measures_the_latest_replayed_transitions_and_new_ones(monkeypatch, tmp_path):
    """An error that is not the critics' own loss, samples from the whole replay buffer, old ones for new, games of a
    random policy, a run that loses files: entropies tell when a transition was played."""
    monkeypatch.chdir(tmp_path)
    run_dir = small_run("BreakoutNoFrameskip-v4")
    measured, own = generalisation.squared_errors, []

    def squared_errors(agent, batch, trained):
        errors = measured(agent, batch, trained)
        *_, metrics = sdsac_atari.gradients(agent, batch, trained)
        own.append((errors.mean(), metrics["losses/qf_loss"], batch.old_entropies))
        return errors

    monkeypatch.setattr(generalisation, "squared_errors", squared_errors)
    monkeypatch.setattr(sdsac_atari, "keep_only", sdsac_atari.keep_only)  # which main patches
    stray, table = run_dir / "replay" / "of a checkpoint that is being written", tmp_path / "table.csv"
    stray.touch()
    generalisation.main(generalisation.Args((run_dir,), window=64, samples=100, csv=table))
    for errors, loss, _ in own:
        torch.testing.assert_close(errors, loss, rtol=0.02, atol=1e-6)  # bfloat16, where the CPU has it
    assert [len(entropies) for *_, entropies in own] == [64, 36, 64, 36]
    replayed = torch.cat([entropies for *_, entropies in own[:2]]).numpy()
    new = torch.cat([entropies for *_, entropies in own[2:]]).numpy()
    saved = [np.load(path) for path in (run_dir / "replay").glob("*.npz")]
    stored = np.concatenate([part["entropies"] for part in sorted(saved, key=lambda part: part["steps"][0])])
    assert np.isin(replayed, stored[-32:]).all()  # of two environments
    assert not np.isin(new, stored).any()
    assert (new < np.log(4) - 1e-6).all()
    assert stray.exists()
    (row,) = csv.DictReader(table.open())
    assert (row["run"], row["step"]) == (run_dir.name, "400")
    errors = torch.stack([errors for errors, *_ in own]).view(2, 2) @ torch.tensor([0.64, 0.36])
    assert [float(row["replayed"]), float(row["new"])] == pytest.approx(errors.tolist(), abs=1e-5)

    own.clear()  # a window larger than the run's own ring has nothing else in it
    generalisation.main(generalisation.Args((run_dir,), window=4_000, samples=64, csv=table))
    assert np.isin(own[0][2].numpy(), stored).all()
    shutil.rmtree(run_dir / "replay")
    for script in (generalisation, dead_units, rounding):
        with pytest.raises(SystemExit, match="no replay/"):
            script.main(script.Args((run_dir,), csv=table))


def test_rounding_compares_gradients_of_the_same_batches(monkeypatch, tmp_path):
    """A batch or weights that the two formats do not share, one batch for all, old transitions, a format that is not
    set, gradients of other layers than the table says, a mean that keeps the scatter of a few batches, a run that loses
    files."""
    monkeypatch.chdir(tmp_path)
    for name in ("keep_only", "Encoder"):  # which are patched
        monkeypatch.setattr(sdsac_atari, name, getattr(sdsac_atari, name))
    monkeypatch.setitem(sdsac_atari.BF16, "cpu", False)
    run_dir = small_run("PongNoFrameskip-v4")  # of a grey background
    agent_at_end, _ = sdsac_atari.load_agent(run_dir / "agent.pt", "cpu")
    compare, compared, sdsac_encoder = rounding.gradients_and_values, [], sdsac_atari.Encoder

    def gradients_and_values(agent, batch, trained, bf16, encoder):
        vectors = compare(agent, batch, trained, bf16, encoder)
        kind = (bf16, encoder is not sdsac_encoder)
        compared.append((batch, kind, {name: vector.flatten().double() for name, vector in vectors.items()}))
        for weight, expected in zip(agent.encoder.parameters(), agent_at_end.encoder.parameters(), strict=True):
            assert torch.equal(weight, expected)
        assert sdsac_atari.BF16["cpu"] == bf16
        assert len(batch.actions) == trained.batch_size
        with torch.no_grad():
            features = agent.encoder(encoder.scale(batch.observations))
            q = (agent.qf1.head(features) + agent.qf2.head(features)) / 2
        assert torch.equal(vectors["Q"], q)
        critics, actor, *_ = sdsac_atari.gradients(agent, batch, trained)
        sizes = [len(vectors[name]) for name in rounding.PARTS]
        assert sizes == [8224, 32832, 36928, 1606144, 2 * 6 * 513, sum(map(torch.numel, critics)), 6 * 513]
        for name, parts in (("convolution 2", critics[2:4]), ("critics' heads", critics[8:]), ("actor's head", actor)):
            assert torch.equal(vectors[name], torch.cat([part.flatten() for part in parts]))
        assert torch.equal(vectors["advantages"], vectors["Q"] - vectors["Q"].mean(1, keepdim=True))
        return vectors

    monkeypatch.setattr(rounding, "gradients_and_values", gradients_and_values)
    stray, table = run_dir / "replay" / "of a checkpoint that is being written", tmp_path / "table.csv"
    stray.touch()
    rounding.main(rounding.Args((run_dir,), window=64, batches=5, csv=table))
    assert stray.exists()
    saved = [np.load(path) for path in (run_dir / "replay").glob("*.npz")]
    stored = np.concatenate([part["entropies"] for part in sorted(saved, key=lambda part: part["steps"][0])])
    drawn = torch.cat([batch.old_entropies for batch, *_ in compared]).numpy()
    assert np.isin(drawn, stored[-32:]).all()  # of two environments
    kinds = [(False, False), (True, False), (True, True)]  # bfloat16, less background
    assert [kind for _, kind, _ in compared] == kinds * 5
    for (batch, _, exact), *halved in zip(compared[::3], compared[1::3], compared[2::3], strict=True):
        for same, _, vectors in halved:
            assert batch is same
            for name in rounding.PARTS + rounding.VALUES:
                assert 0 < (vectors[name] - exact[name]).norm() < exact[name].norm()
        assert not torch.equal(halved[0][2]["critics"], halved[1][2]["critics"])
    assert not torch.equal(compared[0][0].observations, compared[3][0].observations)

    rows = list(csv.DictReader(table.open()))
    assert [row["part"] for row in rows] == [*rounding.PARTS, *rounding.VALUES]
    for row in rows:
        of = {kind: torch.stack([vectors[row["part"]] for _, k, vectors in compared if k == kind]) for kind in kinds}
        exact = of[False, False]  # (5, N)
        typical = exact.square().sum(1).mean().sqrt()
        expected = dict.fromkeys(rounding.COLUMNS, torch.nan)
        for end, errors in (("", of[True, False] - exact), (" less background", of[True, True] - exact)):
            expected["rounding" + end] = errors.square().sum(1).mean().sqrt() / typical
            if row["part"] in rounding.PARTS:
                for name, vectors in (("systematic" + end, errors), ("common", exact)):
                    products = vectors @ vectors.T
                    pairs = (products.sum() - products.trace()) / 20  # the mean product of two different batches'
                    expected[name] = pairs.clamp(min=0).sqrt() / typical
        for name, value in expected.items():
            assert float(row[name] or "nan") == pytest.approx(float(value), abs=1e-6, nan_ok=True)


def test_first_filters_sum_to_zero_and_are_the_weights_otherwise(monkeypatch):
    """A filter that keeps a part of its sum, a sum taken over other weights than its own, a background that shows; a
    gradient that does not go through the mean.
    """
    monkeypatch.setitem(sdsac_atari.BF16, "cpu", False)
    torch.manual_seed(1)
    layer = sdsac_atari.BlockConv2d(4, 32, 8, stride=4)
    frames = torch.randint(256, (2, 4, 84, 84), dtype=torch.uint8)
    filters = np.stack([weight - weight.mean() for weight in layer.weight.detach().numpy()])
    expected = F.conv2d(frames / 255, torch.from_numpy(filters), layer.bias, stride=4)
    filtered = layer(sdsac_atari.Encoder.scale(frames))
    torch.testing.assert_close(filtered, expected, rtol=0, atol=1e-5)
    (gradient,) = torch.autograd.grad(filtered.square().mean(), [layer.weight])
    assert gradient.sum((1, 2, 3)).abs().max() < 1e-5 * gradient.abs().sum((1, 2, 3)).min()
    grey = torch.full((1, 4, 84, 84), 87, dtype=torch.uint8)
    at_bias = layer.bias[:, None, None].expand(1, 32, 20, 20)
    torch.testing.assert_close(layer(sdsac_atari.Encoder.scale(grey)), at_bias, rtol=0, atol=1e-5)


def test_less_background_costs_no_digits(monkeypatch):
    """Pixels with their background, or less another's, an oldest frame's or a mean: in bfloat16 the gradient of the
    first filters, which do not see it, would be rounded away beside it."""
    torch.manual_seed(1)
    frames = torch.zeros(64, 4, 84, 84, dtype=torch.uint8)  # of the first games the older ones are black
    greys = torch.linspace(100, 200, 64).to(torch.uint8)
    frames[:, :, 30:50, 20:40] = torch.randint(50, (64, 4, 20, 20), dtype=torch.uint8)  # what moves
    on_grey = frames + greys[:, None, None, None]
    monkeypatch.setitem(sdsac_atari.BF16, "cpu", True)
    assert torch.equal(less_background.Encoder.scale(on_grey), less_background.Encoder.scale(frames))
    assert less_background.Encoder.scale(on_grey).abs().max() < 50 / 255
    on_grey[:8, :3] = 0
    blocks = less_background.Encoder.scale(on_grey)
    values = blocks.permute(0, 2, 3, 1).view(64, 21, 21, 4, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(64, 4, 84, 84)
    above = (on_grey.float() - greys.float()[:, None, None, None]).bfloat16() / 255
    assert torch.equal(values, above)

    encoder, direction = sdsac_atari.Encoder((4, 84, 84)), torch.randn(64, 512)

    def gradient(kind, bf16):
        monkeypatch.setitem(sdsac_atari.BF16, "cpu", bf16)
        return torch.autograd.grad(
            (encoder(kind.scale(on_grey[8:])) * direction[8:]).sum(), [encoder.layers[0].weight]
        )[0]

    exact = gradient(sdsac_atari.Encoder, False)
    kinds = less_background.Encoder, sdsac_atari.Encoder
    rounding = [((gradient(kind, True) - exact).norm() / exact.norm()).item() for kind in kinds]
    assert (gradient(less_background.Encoder, False) - exact).norm() < 0.01 * exact.norm()
    assert rounding[0] < 0.15 < 0.2 < rounding[1]


def test_initial_weights_are_orthogonal_and_keep_the_variance():
    """PyTorch's own, of which layers die, or a gain other than that of a ReLU."""
    for layer in sdsac_atari.Encoder((4, 84, 84)).layers:
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            rows = layer.weight.detach().flatten(1)
            torch.testing.assert_close(rows @ rows.T, 2 * torch.eye(len(rows)), rtol=0, atol=1e-4)
            assert (layer.bias == 0).all()


def test_plain_filters_are_the_weights(monkeypatch):
    """A study's filters that still sum to zero, or are in another order."""
    monkeypatch.setitem(sdsac_atari.BF16, "cpu", False)
    torch.manual_seed(1)
    layer = plain_filters.BlockConv2d(4, 32, 8, stride=4)
    frames = torch.randint(256, (2, 4, 84, 84), dtype=torch.uint8)
    expected = F.conv2d(frames / 255, layer.weight, layer.bias, stride=4)
    torch.testing.assert_close(layer(sdsac_atari.Encoder.scale(frames)), expected, rtol=0, atol=1e-5)


def test_dead_units_are_above_zero_in_no_state_and_nowhere_on_the_screen(monkeypatch):
    """A unit that is counted though one state or one place moves it, one that is not counted, another layer's."""
    monkeypatch.setitem(sdsac_atari.BF16, "cpu", False)
    torch.manual_seed(1)
    encoder = sdsac_atari.Encoder((4, 84, 84))
    frames = torch.zeros(16, 4, 84, 84, dtype=torch.uint8)
    frames[:, :, 40:60, 40:60] = torch.randint(256, (16, 4, 20, 20), dtype=torch.uint8)
    numbers = dead_units.dead_units(encoder, frames)
    with torch.no_grad():
        first, linear = encoder.layers[0], encoder.layers[-2]
        before = encoder.layers[:-1](encoder.scale(frames))  # (16, 512)
        alive = torch.nonzero(before.amax(0) > 0).flatten()[:2]
        highest, second = before[:, alive].sort(0, descending=True).values[:2]
        linear.bias[alive[0]] -= (highest + second)[0] / 2  # moved by one state yet
        linear.bias[alive[1]] -= highest[1] + 1e-4
        assert dead_units.dead_units(encoder, frames) == [*numbers[:3], numbers[3] + 1]
        at = first(encoder.scale(frames))  # (16, 32, 20, 20)
        highest, second = at[:, 0].flatten().sort(descending=True).values[:2]
        first.bias[0] -= (highest + second) / 2  # moved at one place yet
        first.bias[1] -= at[:, 1].max() + 1e-4
        assert dead_units.dead_units(encoder, frames)[0] == numbers[0] + 1


@pytest.mark.parametrize(("heads_on", "features"), [("convolutions", 3136), ("features", 512)])
def test_hidden_heads_learn_each_from_its_own_loss(monkeypatch, heads_on, features):
    """A hidden layer that no optimiser steps or no target follows, one that heads share, an actor that trains what the
    critics share."""
    for name in ("Encoder", "Actor", "SoftQNetwork"):  # which it patches
        monkeypatch.setattr(sdsac_atari, name, getattr(sdsac_atari, name))
    hidden_heads.use_hidden_heads(heads_on)
    torch.manual_seed(1)
    frames = torch.randint(256, (2, 8, 4, 84, 84), dtype=torch.uint8)
    ones = torch.ones(8)
    batch = sdsac_atari.Batch(frames[0], torch.arange(8) % 6, ones, ones, frames[1], ones)
    for policy_lr, q_lr in ((1e-3, 0.0), (0.0, 1e-3)):
        args = sdsac_atari.Args(policy_lr=policy_lr, q_lr=q_lr)
        agent = sdsac_atari.make_agent(args, (4, 84, 84), 6, "cpu")
        parts = ("encoder", "encoder_target", "actor", "qf1", "qf2", "qf1_target", "qf2_target")
        weights = {
            f"{part}.{name}": weight
            for part in parts
            for name, weight in getattr(agent, part).named_parameters()
            if not (part.startswith(("actor", "qf")) and name.startswith("encoder"))
        }
        assert weights["actor.head.hidden.weight"].shape == (512, features)
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        sdsac_atari.update(agent, batch, args)
        moved = {name for name, weight in weights.items() if not weight.equal(before[name])}
        actors = {f"actor.head.{layer}.{kind}" for layer in ("hidden", "output") for kind in ("weight", "bias")}
        assert moved == (actors if policy_lr else set(weights) - actors)
        assert not agent.qf1.head.hidden.weight.equal(agent.qf2.head.hidden.weight)


def test_three_steps_under_the_behaviour_policy():
    """The discount gamma rather than gamma^3, a value of the wrong step, an off-policy correction that is not meant.

    All chains (s, a, a', a'') of a process without terminations, as a uniform behaviour policy takes them, give the
    fixed point of Q = r + g P_mu (r + g P_mu (r + g P V(Q))): of the two steps in between neither the actions nor the
    entropies are the learner's. The targets of one (s, a) are spread, and only the squared error has their mean as its
    minimiser, so Q-clip is off.
    """
    q = np.zeros((S, A))
    for _ in range(500):
        two_left = REWARDS + GAMMA * soft_values(q)[SUCCESSORS]  # r + g P V
        one_left = REWARDS + GAMMA * two_left.mean(1)[SUCCESSORS]
        q = REWARDS + GAMMA * one_left.mean(1)[SUCCESSORS]

    s0, a0, a1, a2 = (axis.ravel() for axis in np.meshgrid(*map(np.arange, (S, A, A, A)), indexing="ij"))
    s1 = SUCCESSORS[s0, a0]
    s2 = SUCCESSORS[s1, a1]
    batch = sdsac_classic.Batch(
        observations=ONE_HOT[s0],
        actions=torch.tensor(a0),
        rewards=tensor(REWARDS[s0, a0] + GAMMA * REWARDS[s1, a1] + GAMMA**2 * REWARDS[s2, a2]),
        discounts=torch.full((len(s0),), GAMMA**3),
        next_observations=ONE_HOT[SUCCESSORS[s2, a2]],
        old_entropies=torch.full((len(s0),), np.log(A)),
    )
    q1, q2, pi, _ = learn(batch, 1000, q_clip=False, entropy_penalty=False)
    agree(q1, q)
    agree(q2, q)
    agree(pi, softmax(q / ALPHA))


# ----------------------------------------------------------------------------------------------------------------------
# A separate implementation

BOTH = pytest.mark.parametrize("sdsac", [sdsac_classic, sdsac_atari], ids=["classic", "atari"])
HEADS = ["actor", "qf1", "qf2", "qf1_target", "qf2_target"]
GROUPS = ["encoder", "encoder_target", *HEADS, "log_alpha"]
STABLE = {"clip_range": 0.2, "beta": 0.7}
VANILLA = STABLE | {"double_average": False, "q_clip": False, "entropy_penalty": False}  # c and beta are ignored
WIDTH, NUM_ACTIONS = 6, 4


def random_batch(seed, size, dtype):
    rng = np.random.default_rng(seed)
    return sdsac_classic.Batch(
        observations=torch.tensor(rng.normal(size=(size, WIDTH)), dtype=dtype),
        actions=torch.tensor(rng.integers(NUM_ACTIONS, size=size)),
        rewards=torch.tensor(rng.normal(size=size), dtype=dtype),
        discounts=torch.tensor(rng.choice([0.0, 0.97], size), dtype=dtype),
        next_observations=torch.tensor(rng.normal(size=(size, WIDTH)), dtype=dtype),
        old_entropies=torch.tensor(rng.uniform(0, np.log(NUM_ACTIONS), size), dtype=dtype),
    )


def weights_of(agent):
    """The parameters by what owns them: the encoders, the heads without their encoder, the temperature."""
    heads = {name: list(getattr(agent, name).head.parameters()) for name in HEADS}
    encoders = {name: list(getattr(agent, name).parameters()) for name in ["encoder", "encoder_target"]}
    return encoders | heads | {"log_alpha": [agent.log_alpha]}


def snapshot(agent):
    """Copies of `weights_of`."""
    return {name: [value.detach().clone() for value in values] for name, values in weights_of(agent).items()}


class SmallEncoder(nn.Sequential):
    """One layer, so that a shared encoder with weights can be followed in both scripts."""

    num_features = 16

    def __init__(self, observation_shape):
        super().__init__(nn.Linear(observation_shape[0], self.num_features), nn.ReLU())

    @staticmethod
    def scale(observations):
        return 2 * observations  # not idempotent: observations that are not scaled, or scaled twice, show


def double_agent(sdsac, args, monkeypatch):
    """An agent in float64, so that agreement holds to many digits, with its targets away from its critics."""
    monkeypatch.setattr(sdsac, "Encoder", SmallEncoder)
    torch.manual_seed(1)
    agent = sdsac.make_agent(args, (WIDTH,), NUM_ACTIONS, "cpu")
    for name in ["encoder", "encoder_target", *HEADS]:
        getattr(agent, name).double()
    for value in [value for name in GROUPS[:-1] for value in weights_of(agent)[name]]:
        value.data.add_(0.05 * torch.randn_like(value))
    agent.log_alpha.data = agent.log_alpha.data.double()
    agent.target_step = agent.target_step.double()
    return agent


class Reference:
    """Discrete SAC as Christodoulou (2019) has it or, with `stable`, SD-SAC as Zhou et al. (2024) do, over plain
    lists of weights and with an encoder that the critics train. All gradients are taken before anything moves."""

    def __init__(self, agent, args, stable):
        self.args, self.stable, self.weights = args, stable, snapshot(agent)
        for name, values in self.weights.items():
            for value in values:
                value.requires_grad_("target" not in name)

        def adam(lr, *names):
            parameters = [value for name in names for value in self.weights[name]]
            return torch.optim.Adam(parameters, lr=float(np.float32(lr)), foreach=False)

        self.optimizers = [
            adam(args.policy_lr, "actor"),
            adam(args.q_lr, "encoder", "qf1", "qf2"),
            adam(args.q_lr, "log_alpha"),
        ]

    def encode(self, x, encoder="encoder"):
        weight, bias = self.weights[encoder]
        return (2 * x @ weight.T + bias).clamp(min=0)

    def head(self, name, x):
        *hidden, weight, bias = self.weights[name]
        for w, b in zip(hidden[::2], hidden[1::2], strict=True):
            x = (x @ w.T + b).clamp(min=0)
        return x @ weight.T + bias

    def twins(self, x):
        features = self.encode(x)
        return self.head("qf1", features), self.head("qf2", features)

    def target_twins(self, x):
        features = self.encode(x, "encoder_target")
        return self.head("qf1_target", features), self.head("qf2_target", features)

    def combine(self, q1, q2):
        return 0.5 * q1 + 0.5 * q2 if self.stable else torch.where(q1 < q2, q1, q2)

    def losses(self, batch):
        args, log_alpha, size = self.args, self.weights["log_alpha"][0], len(batch.actions)
        taken = torch.arange(size), batch.actions
        alpha = log_alpha.detach().exp()
        with torch.no_grad():
            next_pi = torch.softmax(self.head("actor", self.encode(batch.next_observations)), -1)
            next_q = self.combine(*self.target_twins(batch.next_observations))
            y = batch.rewards + batch.discounts * (next_pi * (next_q - alpha * next_pi.log())).sum(-1)

        q_loss = 0
        for q, held in zip(self.twins(batch.observations), self.target_twins(batch.observations), strict=True):
            q, held = q[taken], held[taken]
            error = (q - y) ** 2
            if self.stable:
                clipped = torch.minimum(torch.maximum(q, held - args.clip_range), held + args.clip_range)
                error = torch.where((clipped - y) ** 2 > error, (clipped - y) ** 2, error)
            q_loss = q_loss + error.sum() / size

        with torch.no_grad():
            features, q = self.encode(batch.observations), self.combine(*self.twins(batch.observations))
        pi = torch.softmax(self.head("actor", features), -1)
        entropies = -(pi * pi.log()).sum(-1)
        policy_loss = (pi * (alpha * pi.log() - q)).sum() / size
        if self.stable:
            policy_loss = policy_loss + args.beta / 2 * ((batch.old_entropies - entropies) ** 2).sum() / size

        target_entropy = args.target_entropy_scale * np.log(NUM_ACTIONS)
        alpha_loss = -log_alpha * (target_entropy - entropies.detach()).sum() / size
        return policy_loss, q_loss, alpha_loss

    def update(self, batch):
        losses = self.losses(batch)
        for optimizer, loss in zip(self.optimizers, losses, strict=True):
            optimizer.zero_grad()
            loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        for name in ["encoder", "qf1", "qf2"]:
            for target, online in zip(self.weights[f"{name}_target"], self.weights[name], strict=True):
                target.copy_((1 - self.args.tau) * target + self.args.tau * online.detach())
        return [loss.item() for loss in losses]


def agree_closely(value, expected):
    np.testing.assert_allclose(value.detach().numpy(), expected.detach().numpy(), rtol=1e-6, atol=1e-9)


@BOTH
@pytest.mark.parametrize(("stable", "mechanisms"), [(False, VANILLA), (True, STABLE)], ids=["vanilla", "stable"])
def test_update_equals_a_separate_implementation(sdsac, stable, mechanisms, monkeypatch):
    """Any difference from the published algorithm: an order of steps in which one loss sees the others' new weights,
    a bias or a target left out, the wrong encoder, a mechanism that stays on when it is switched off.

    The step of Adam hardly depends on the gradient's scale, so the gradients are compared as well.
    """
    args = sdsac.Args(tau=0.02, alpha=0.2, policy_lr=2e-3, q_lr=1e-3, autotune=True, **mechanisms)
    agent = double_agent(sdsac, args, monkeypatch)
    reference, start = Reference(agent, args, stable), snapshot(agent)
    for k in range(3):
        batch = random_batch(k, 32, torch.float64)
        metrics = sdsac.update(agent, batch, args)
        policy_loss, q_loss, alpha_loss = reference.update(batch)
        assert metrics["losses/actor_loss"].item() == pytest.approx(policy_loss, rel=1e-9)
        assert 2 * metrics["losses/qf_loss"].item() == pytest.approx(q_loss, rel=1e-9)
        assert metrics["losses/alpha_loss"].item() == pytest.approx(alpha_loss, rel=1e-9)
        clipped = metrics["losses/q_clip_fraction"].item()
        assert (0 < clipped < 1) if stable else (clipped == 0)

        for name, values in weights_of(agent).items():
            for value, expected in zip(values, reference.weights[name], strict=True):
                agree_closely(value, expected)
                if "target" not in name:
                    agree_closely(value.grad, expected.grad)
    assert moved(start, snapshot(agent)) == set(GROUPS)


@BOTH
def test_gradient_norm_is_clipped_over_both_critics_and_over_the_actor_apart(sdsac, monkeypatch):
    """A critic or a layer clipped by itself, one norm over critics and actor, a clipped temperature."""
    agents = {}
    for norm in (None, 0.01, 1000.0):
        args = sdsac.Args(autotune=True, max_grad_norm=norm)
        agents[norm] = double_agent(sdsac, args, monkeypatch)  # the same weights each time
        sdsac.update(agents[norm], random_batch(0, 32, torch.float64), args)

    def gradient(norm, *names):
        return torch.cat([value.grad.flatten() for name in names for value in weights_of(agents[norm])[name]])

    for names in [("encoder", "qf1", "qf2"), ("actor",)]:
        whole = gradient(None, *names)
        assert whole.norm() > 0.02  # there is something to clip
        torch.testing.assert_close(gradient(0.01, *names), whole * 0.01 / whole.norm(), rtol=1e-4, atol=0)
        assert torch.equal(gradient(1000.0, *names), whole)
    assert gradient(0.01, "qf1").norm() < 0.009
    assert gradient(0.01, "qf2").norm() < 0.009
    assert gradient(None, "log_alpha").abs() > 0.02
    assert torch.equal(gradient(0.01, "log_alpha"), gradient(None, "log_alpha"))


@BOTH
def test_a_gradient_may_lie_in_memory_in_another_order_than_its_parameter(sdsac):
    weights, gradient = torch.randn(2, 3, 5), torch.randn(2, 5, 3).transpose(1, 2)
    stepped = []
    for same in (gradient, gradient.contiguous()):
        parameter = torch.nn.Parameter(weights.clone())
        optimizer = torch.optim.Adam([parameter], lr=torch.tensor(0.1), eps=0.1, fused=True, capturable=True)
        sdsac.descend(optimizer, (same,))
        stepped.append(parameter.detach())
    assert torch.equal(*stepped)
    assert not torch.equal(stepped[0], weights)


# ----------------------------------------------------------------------------------------------------------------------
# Isolation: what moves what

SHAPES = {"sdsac_classic": (WIDTH,), "sdsac_atari": (4, 84, 84)}


def make_agent(sdsac, **kwargs):
    args = sdsac.Args(**kwargs)
    torch.manual_seed(2)
    return sdsac.make_agent(args, SHAPES[sdsac.__name__], NUM_ACTIONS, "cpu"), args


def make_batch(sdsac, size=4):
    batch = random_batch(3, size, torch.float32)
    if sdsac is sdsac_classic:
        return batch
    pixels = torch.randint(0, 256, (2, size, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    return sdsac.Batch(**batch._asdict() | {"observations": pixels[0], "next_observations": pixels[1]})


def moved(before, after):
    """The names of the groups in which any weight differs by any bit."""
    return {
        name for name in before if not all(torch.equal(a, b) for a, b in zip(before[name], after[name], strict=True))
    }


def encoder_names(sdsac):
    """The encoder of vectors has no weights to move."""
    return set() if sdsac is sdsac_classic else {"encoder", "encoder_target"}


@BOTH
def test_update_moves_everything(sdsac):
    """A part that an optimiser forgot."""
    agent, args = make_agent(sdsac, autotune=True)
    before = snapshot(agent)
    sdsac.update(agent, make_batch(sdsac), args)
    assert moved(before, snapshot(agent)) == {*HEADS, "log_alpha"} | encoder_names(sdsac)


@BOTH
def test_policy_lr_zero_leaves_the_actor(sdsac):
    """An actor that some other optimiser moves; the critics, the encoder and the temperature go on."""
    agent, args = make_agent(sdsac, autotune=True, policy_lr=0.0)
    before = snapshot(agent)
    sdsac.update(agent, make_batch(sdsac), args)
    assert moved(before, snapshot(agent)) == {*HEADS, "log_alpha"} - {"actor"} | encoder_names(sdsac)


@BOTH
def test_q_lr_zero_leaves_all_but_the_actor(sdsac):
    """An actor's optimiser that holds the shared encoder or the critics: to the bit they stay, and so do the targets,
    which equal their critics here."""
    agent, args = make_agent(sdsac, autotune=True, q_lr=0.0)
    before = snapshot(agent)
    sdsac.update(agent, make_batch(sdsac), args)
    assert moved(before, snapshot(agent)) == {"actor"}


@BOTH
def test_actor_loss_sends_no_gradient_to_encoder_and_critics(sdsac):
    """Features or Q that are not detached in the actor loss. A far larger penalty changes the actor's gradient only."""
    (agent, args), (other, other_args) = make_agent(sdsac, beta=0.5), make_agent(sdsac, beta=500.0)
    assert not moved(snapshot(agent), snapshot(other))
    sdsac.update(agent, make_batch(sdsac), args)
    sdsac.update(other, make_batch(sdsac), other_args)
    weights, others = weights_of(agent), weights_of(other)
    for name in ["encoder", "qf1", "qf2"]:
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(weights[name], others[name], strict=True))
    assert all((a.grad - b.grad).abs().max() > 1e-4 for a, b in zip(weights["actor"], others["actor"], strict=True))
    for name in ["encoder_target", "qf1_target", "qf2_target"]:
        assert all(value.grad is None for value in weights[name])


@BOTH
def test_temperature_step_touches_nothing_else(sdsac):
    """A temperature loss that reaches the policy, or a temperature that moves before the other losses use it."""
    (tuned, tuned_args), (fixed, fixed_args) = (make_agent(sdsac, autotune=autotune) for autotune in (True, False))
    metrics = sdsac.update(tuned, make_batch(sdsac), tuned_args)
    sdsac.update(fixed, make_batch(sdsac), fixed_args)
    assert moved(snapshot(fixed), snapshot(tuned)) == {"log_alpha"}
    assert fixed.log_alpha.item() == pytest.approx(np.log(fixed_args.alpha), rel=1e-6)
    assert metrics["losses/alpha"].item() == pytest.approx(tuned_args.alpha, rel=1e-6)


@BOTH
def test_metrics_are_plain_scalars(sdsac):
    """A metric that keeps the graph of its update in memory, or that logging cannot take with item()."""
    agent, args = make_agent(sdsac, autotune=True)
    metrics = sdsac.update(agent, make_batch(sdsac), args)
    for tag, value in metrics.items():
        assert value.shape == (), tag
        assert not value.requires_grad, tag
        assert torch.isfinite(value), tag


@pytest.mark.parametrize(("target_entropy_scale", "sign"), [(0.85, -1), (0.97, 1)])
def test_temperature_moves_against_the_entropy_in_an_update(target_entropy_scale, sign):
    """A target in bits, or as a share of A, or a sign lost on the way from the arguments to the loss: the policy's
    entropy, some 91% of log A, is above the first target and below the second."""
    agent, args = make_agent(sdsac_classic, autotune=True, target_entropy_scale=target_entropy_scale, q_lr=0.01)
    before = agent.log_alpha.item()
    with torch.no_grad():
        agent.actor.head[-1].bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    metrics = sdsac_classic.update(agent, make_batch(sdsac_classic), args)
    assert 0.87 < metrics["policy/entropy"].item() / np.log(NUM_ACTIONS) < 0.95
    assert agent.log_alpha.item() - before == pytest.approx(sign * 0.01, rel=1e-3)  # Adam's first step


@BOTH
def test_targets_follow_by_target_step_alone(sdsac):
    """A target copied, forgotten, moved by the complement of tau or by --tau where the schedule says zero."""
    agent, args = make_agent(sdsac, tau=0.1)
    batch = make_batch(sdsac)
    targets = {"qf1_target", "qf2_target"} | (encoder_names(sdsac) & {"encoder_target"})
    assert agent.target_step.item() == pytest.approx(0.1)

    before = snapshot(agent)
    agent.target_step.fill_(0.0)
    sdsac.update(agent, batch, args)
    after = snapshot(agent)
    assert not moved(before, after) & targets

    agent.target_step.fill_(0.25)
    sdsac.update(agent, batch, args)
    last = snapshot(agent)
    assert moved(after, last) & targets == targets
    for name in targets:
        online = name.removesuffix("_target")
        for new, old, now in zip(last[name], after[name], last[online], strict=True):
            assert (old - now).abs().max() > 1e-5
            torch.testing.assert_close(new, 0.75 * old + 0.25 * now, rtol=1e-6, atol=1e-7)


# ----------------------------------------------------------------------------------------------------------------------
# The agent as it is made


@BOTH
def test_targets_start_at_their_critics(sdsac):
    """Targets of other weights, with which Q-clip would pull the critics to noise; twins of the same weights."""
    agent, _ = make_agent(sdsac)
    start = snapshot(agent)
    for name in ["qf1", "qf2", "encoder"]:
        assert all(torch.equal(a, b) for a, b in zip(start[name], start[f"{name}_target"], strict=True))
    assert all((a != b).any() for a, b in zip(start["qf1"], start["qf2"], strict=True))
    targets = [*agent.qf1_target.parameters(), *agent.qf2_target.parameters(), *agent.encoder_target.parameters()]
    assert not any(value.requires_grad for value in targets)
    trained = [*agent.qf1.parameters(), *agent.qf2.parameters(), *agent.actor.parameters()]
    assert all(value.requires_grad for value in trained)
    assert not {value.data_ptr() for value in targets} & {value.data_ptr() for value in trained}


@BOTH
def test_encoder_is_shared_and_every_weight_has_one_optimizer(sdsac):
    """An encoder of its own for any network, or one that two optimisers step."""
    agent, _ = make_agent(sdsac)
    assert agent.actor.encoder is agent.qf1.encoder is agent.qf2.encoder is agent.encoder
    assert agent.qf1_target.encoder is agent.qf2_target.encoder is agent.encoder_target
    assert agent.encoder_target is not agent.encoder

    optimizers = [agent.actor_optimizer, agent.q_optimizer, agent.a_optimizer]
    stepped = [id(value) for optimizer in optimizers for group in optimizer.param_groups for value in group["params"]]
    networks = [agent.actor, agent.qf1, agent.qf2]
    trained = {id(value) for network in networks for value in network.parameters()} | {id(agent.log_alpha)}
    assert len(stepped) == len(set(stepped))
    assert set(stepped) == trained
    assert [id(value) for value in agent.a_optimizer.param_groups[0]["params"]] == [id(agent.log_alpha)]


@BOTH
def test_agent_starts_from_its_arguments(sdsac):
    """The temperature or a learning rate taken from another argument."""
    agent, _ = make_agent(sdsac, alpha=0.3, autotune=True, policy_lr=0.01, q_lr=0.02, tau=0.03)
    assert agent.log_alpha.exp().item() == pytest.approx(0.3)
    assert agent.log_alpha.requires_grad
    rates = [opt.param_groups[0]["lr"].item() for opt in (agent.actor_optimizer, agent.q_optimizer, agent.a_optimizer)]
    assert rates == pytest.approx([0.01, 0.02, 0.02])
    assert agent.target_step.item() == pytest.approx(0.03)
    assert not make_agent(sdsac, autotune=False)[0].log_alpha.requires_grad
