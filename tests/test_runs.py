"""Whole runs of both scripts, kept tiny: that every switch trains, what is logged, what is due when, and that a seed
fixes everything; then acting, the diagnostics, and the text that the scripts share."""

import ast
import copy
import functools
import inspect
import math
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import sdsac_atari
import sdsac_classic

torch.set_num_threads(1)

SCRIPTS = [sdsac_classic, sdsac_atari]
both_scripts = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)

# Breakout cut off after 200 frames, 50 agent steps, so that games end within a tiny run.
TINY_BREAKOUT = "TinyBreakoutNoFrameskip-v4"
gym.register(
    TINY_BREAKOUT,
    entry_point="ale_py.env:AtariEnv",
    kwargs=gym.spec("BreakoutNoFrameskip-v4").kwargs | {"max_num_frames_per_episode": 200},
)

TAGS = {
    *("charts/episodic_return", "charts/episodic_length", "charts/SPS"),
    *("losses/qf1_values", "losses/qf2_values", "losses/qf1_loss", "losses/qf2_loss", "losses/qf_loss"),
    *("losses/actor_loss", "losses/alpha", "losses/alpha_loss", "losses/entropy_penalty", "losses/q_clip_fraction"),
    *("losses/critic_grad_norm", "losses/actor_grad_norm", "policy/entropy", "policy/old_entropy"),
    *("diagnostics/q_predicted", "diagnostics/q_monte_carlo"),
}


@pytest.fixture(autouse=True)
def tiny_runs(tmp_path, monkeypatch):
    """Runs are written to a temporary directory, log often, and follow every state-action pair that they can."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sdsac_atari, "LOG_FREQUENCY", 100)
    for script in SCRIPTS:
        monkeypatch.setattr(script, "PROBE_PROBABILITY", 1.0)


def tiny_args(script, **flags):
    if script is sdsac_classic:
        settings = {"total_timesteps": 400, "learning_starts": 100, "buffer_size": 300, "batch_size": 16}
        settings |= {"clip_range": 0.01}  # within so few updates Q does not move by 5
    else:
        settings = {"total_timesteps": 600, "learning_starts": 200, "buffer_size": 400, "batch_size": 8}
        settings |= {"env_id": TINY_BREAKOUT, "num_envs": 4, "update_frequency": 20}
    return script.Args(**(settings | {"cuda": False, "compile": False} | flags))


def train_and_watch(script, args):
    """Trains, and returns the agent as training left it, the run's directory and its curves: tag -> [(x, value)]."""
    agents, make_agent = [], script.make_agent
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "make_agent", lambda *rest: agents.append(make_agent(*rest)) or agents[-1])
        run_dir = script.train(args)
    assert len(agents) == 1
    return agents[0], run_dir, read_curves(run_dir)


def read_curves(run_dir):
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def initial_agent(script, args):
    envs = script.make_envs(args, 1)
    torch.manual_seed(args.seed)
    agent = script.make_agent(args, envs.single_observation_space.shape, int(envs.single_action_space.n), "cpu")
    envs.close()
    return agent


def weights(*modules):
    return [value for module in modules for value in module.state_dict().values()]


def targets(agent):
    return weights(agent.qf1_target, agent.qf2_target)


def learners(agent):
    return weights(agent.actor, agent.qf1, agent.qf2)


def same(first, second):
    """For each pair of tensors whether all of their bits agree."""
    return [torch.equal(a, b) for a, b in zip(first, second, strict=True)]


def values(curves, tag):
    return np.array([value for _, value in curves[tag]])


# ----------------------------------------------------------------------------------------------------------------------
# Smoke runs

VARIANTS = {
    "defaults": {},
    "fixed or tuned alpha": {"autotune": "the other"},
    "no double average": {"double_average": False},
    "no Q-clip": {"q_clip": False},
    "no entropy penalty": {"entropy_penalty": False},
    "vanilla": {"double_average": False, "q_clip": False, "entropy_penalty": False},
    "one or three steps": {"n_step": "the other"},
    "another number of environments": {"num_envs": "the other"},
    "annealed or constant rates": {"anneal_lr": "the other"},
    "clipped gradients": {"max_grad_norm": 0.1},
    "two gradient steps": {"gradient_steps": 2},
    "hard target updates": {"target_network_frequency": 50, "tau": 1.0},
}
ATARI_VARIANTS = {
    name: VARIANTS[name] for name in ("defaults", "fixed or tuned alpha", "vanilla", "another number of environments")
} | {"random shifts": {"random_shift": 4}}


@functools.cache
def final_weights_with_defaults(script):
    return learners(train_and_watch(script, tiny_args(script))[0])


@pytest.mark.parametrize(
    ("script", "variant"),
    [(sdsac_classic, variant) for variant in VARIANTS] + [(sdsac_atari, variant) for variant in ATARI_VARIANTS],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_every_variant_trains_logs_and_saves(script, variant):
    flags = dict((VARIANTS | ATARI_VARIANTS)[variant])
    for name in {"autotune", "anneal_lr"} & flags.keys():
        flags[name] = not getattr(script.Args, name)
    if "n_step" in flags:
        flags["n_step"] = 3 if script.Args.n_step == 1 else 1
    if "num_envs" in flags:
        flags["num_envs"] = 3 if tiny_args(script).num_envs == 1 else 1
    args = tiny_args(script, **flags)
    agent, run_dir, curves = train_and_watch(script, args)

    # What learned, and what the checkpoint holds of it
    before = initial_agent(script, args)
    assert not any(same(learners(agent), learners(before)))
    assert not any(same(targets(agent), targets(before)))
    assert torch.equal(agent.log_alpha, before.log_alpha) == (not args.autotune)
    loaded, loaded_args = script.load_agent(run_dir / "agent.pt", "cpu")
    assert loaded_args == args
    assert all(same(learners(loaded), learners(agent)))
    assert not list(run_dir.glob("*.unfinished"))
    assert run_dir.parent.name == "runs"
    assert run_dir.name.startswith(f"{args.env_id}__{script.__name__}__{args.seed}__")

    # The curves
    assert set(curves) == TAGS
    for tag, curve in curves.items():
        x = [step for step, _ in curve]
        assert np.isfinite(values(curves, tag)).all(), tag
        assert x == sorted(x)
        assert 0 < x[0]
        assert x[-1] < args.total_timesteps + args.num_envs
        if not tag.startswith(("charts/episodic", "diagnostics")):  # one entry for each hundred steps of learning
            hundreds = [step // 100 for step in x]
            assert hundreds == list(range(hundreds[0], args.total_timesteps // 100 + 1)), tag
            assert hundreds[0] == (args.learning_starts + args.update_frequency) // 100
    assert len(curves["charts/episodic_return"]) >= 4
    assert len(curves["diagnostics/q_predicted"]) == len(curves["diagnostics/q_monte_carlo"]) >= 2
    if script is sdsac_classic:
        assert curves["charts/episodic_return"] == curves["charts/episodic_length"]  # a reward of 1 per step
    else:  # 200 frames at most, of which up to 30 go into no-ops and FIRE
        lengths = values(curves, "charts/episodic_length")
        assert lengths.min() >= 42
        assert lengths.max() <= 50
    if args.num_envs == 1:  # x is the number of agent steps, and a step that only resets is none
        ends = np.cumsum(values(curves, "charts/episodic_length"))
        assert [step for step, _ in curves["charts/episodic_length"]] == ends.tolist()

    events = EventAccumulator(str(run_dir)).Reload()
    (text,) = events.Tensors("hyperparameters/text_summary")
    table = text.tensor_proto.string_val[0].decode()
    for name, value in asdict(args).items():
        assert f"|{name}|{value}|" in table

    # What the switches do
    log_a = math.log(agent.actor.head[-1].out_features if script is sdsac_classic else agent.actor.head.out_features)
    assert (values(curves, "policy/entropy") > 0).all()
    assert (values(curves, "policy/entropy") <= log_a + 1e-6).all()
    assert (values(curves, "policy/old_entropy") <= log_a + 1e-6).all()
    alphas = values(curves, "losses/alpha")
    if args.autotune:
        assert len(set(alphas)) == len(alphas)
        assert values(curves, "losses/alpha_loss").all()
    else:
        np.testing.assert_allclose(alphas, args.alpha, rtol=1e-6)
        assert not values(curves, "losses/alpha_loss").any()
    assert values(curves, "losses/entropy_penalty").any() == args.entropy_penalty
    if script is sdsac_classic:
        assert values(curves, "losses/q_clip_fraction").any() == args.q_clip
    np.testing.assert_allclose(
        values(curves, "losses/qf_loss"),
        (values(curves, "losses/qf1_loss") + values(curves, "losses/qf2_loss")) / 2,
        rtol=1e-5,
    )
    if variant == "hard target updates":  # the last one at the last step
        assert all(same(targets(agent), weights(agent.qf1, agent.qf2)))
    if flags:
        assert not any(same(learners(agent), final_weights_with_defaults(script)))


# ----------------------------------------------------------------------------------------------------------------------
# What is due when


def watch_the_schedule(script, args):
    """Trains with an `update` that only takes notes.

    Returns one note per update: agent steps taken so far, target_step, learning rates; and the agent steps taken when
    the last vector step began, and in all.
    """
    notes, steps = [], [0]
    add = script.ReplayBuffer.add

    def counting_add(self, observations, actions, rewards, terminated, truncated, entropies, resets):
        add(self, observations, actions, rewards, terminated, truncated, entropies, resets)
        steps.append(steps[-1] + int((~resets).sum()))

    def update(agent, batch, args, compute):
        assert len(batch.actions) == args.batch_size
        optimizers = agent.actor_optimizer, agent.q_optimizer, agent.a_optimizer
        rates = [optimizer.param_groups[0]["lr"].item() for optimizer in optimizers]
        notes.append((steps[-1], agent.target_step.item(), rates))
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script.ReplayBuffer, "add", counting_add)
        patch.setattr(script, "update", update)
        script.train(args)
    return notes, steps[-2], steps[-1]


@pytest.mark.parametrize(
    ("total", "learning_starts", "update_frequency", "gradient_steps"),
    [(400, 100, 1, 1), (397, 50, 4, 1), (400, 100, 7, 2), (301, 33, 50, 3), (400, 390, 2, 1)],
)
@pytest.mark.parametrize("num_envs", [1, 3, 4])
def test_number_of_updates_is_exact(num_envs, total, learning_starts, update_frequency, gradient_steps):
    args = tiny_args(
        sdsac_classic,
        num_envs=num_envs,
        total_timesteps=total,
        learning_starts=learning_starts,
        update_frequency=update_frequency,
        gradient_steps=gradient_steps,
    )
    notes, before_last, steps = watch_the_schedule(sdsac_classic, args)
    assert before_last < total <= steps < total + num_envs
    assert len(notes) == (total - learning_starts) // update_frequency * gradient_steps
    for k, (taken, _, _) in enumerate(notes):  # each as soon as it is due
        due = learning_starts + (k // gradient_steps + 1) * update_frequency
        assert due <= taken < due + num_envs


@pytest.mark.parametrize(("num_envs", "update_frequency", "gradient_steps"), [(1, 4, 1), (3, 7, 2), (8, 4, 1)])
def test_number_of_updates_is_exact_on_atari(num_envs, update_frequency, gradient_steps):
    """As in the classic script, but with each vector step run those updates that were due before it."""
    args = tiny_args(
        sdsac_atari, num_envs=num_envs, update_frequency=update_frequency, gradient_steps=gradient_steps, n_step=1
    )
    notes, before_last, steps = watch_the_schedule(sdsac_atari, args)
    assert before_last < args.total_timesteps <= steps < args.total_timesteps + num_envs
    assert len(notes) == (before_last - args.learning_starts) // update_frequency * gradient_steps
    for k, (taken, _, _) in enumerate(notes):
        due = args.learning_starts + (k // gradient_steps + 1) * update_frequency
        assert due <= taken < due + num_envs


@pytest.mark.parametrize(
    ("update_frequency", "target_network_frequency"), [(1, 1), (1, 50), (4, 1), (4, 4), (4, 6), (4, 30), (7, 25)]
)
@pytest.mark.parametrize("num_envs", [1, 3])
def test_targets_move_at_their_steps(num_envs, update_frequency, target_network_frequency):
    """The update due at step u moves the targets if a multiple of the frequency lies in its own interval."""
    args = tiny_args(
        sdsac_classic,
        num_envs=num_envs,
        update_frequency=update_frequency,
        target_network_frequency=target_network_frequency,
        tau=0.25,
    )
    notes, _, _ = watch_the_schedule(sdsac_classic, args)
    moved = []
    for k, (_, target_step, _) in enumerate(notes):
        due = args.learning_starts + (k + 1) * update_frequency
        steps_since_last = range(due - update_frequency + 1, due + 1)
        moves = any(step % target_network_frequency == 0 for step in steps_since_last)
        assert target_step == (0.25 if moves else 0.0)
        moved.append(moves)
    assert any(moved)
    assert all(moved) == (target_network_frequency <= update_frequency)


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("anneal_lr", [True, False])
def test_learning_rates_fall_linearly_to_zero_or_stay(anneal_lr, num_envs):
    rates = {"anneal_lr": anneal_lr, "policy_lr": 4e-3, "q_lr": 2e-3}
    args = tiny_args(sdsac_classic, num_envs=num_envs, update_frequency=1, **rates)
    notes, _, _ = watch_the_schedule(sdsac_classic, args)
    for k, (_, _, rates) in enumerate(notes):
        remaining = 1 - (args.learning_starts + k + 1) / args.total_timesteps if anneal_lr else 1
        np.testing.assert_array_equal(rates, np.float32([4e-3 * remaining, 2e-3 * remaining, 2e-3 * remaining]))
    assert len(notes) >= 300


# ----------------------------------------------------------------------------------------------------------------------
# Seeds


def assert_same_run(first, second):
    (agent_1, _, curves_1), (agent_2, _, curves_2) = first, second
    assert all(same(learners(agent_1) + targets(agent_1), learners(agent_2) + targets(agent_2)))
    assert torch.equal(agent_1.log_alpha, agent_2.log_alpha)
    assert set(curves_1) == set(curves_2) == TAGS
    for tag in TAGS - {"charts/SPS"}:
        assert curves_1[tag] == curves_2[tag], tag


def test_a_seed_fixes_a_classic_run_bit_for_bit():
    args = tiny_args(sdsac_classic, num_envs=2)
    first, second = (train_and_watch(sdsac_classic, args) for _ in range(2))
    assert first[1] != second[1]
    assert_same_run(first, second)
    other, _, _ = train_and_watch(sdsac_classic, replace(args, seed=2))
    assert not any(same(learners(first[0]), learners(other)))


def test_a_seed_fixes_an_atari_run_bit_for_bit_whatever_the_threads(monkeypatch):
    args = tiny_args(sdsac_atari, total_timesteps=500, autotune=True)
    runs, make_envs = [], sdsac_atari.make_envs
    for num_threads in [1, 2]:
        monkeypatch.setattr(sdsac_atari, "make_envs", functools.partial(make_envs, num_threads=num_threads))
        runs.append(train_and_watch(sdsac_atari, args))
    assert_same_run(*runs)
    other, _, _ = train_and_watch(sdsac_atari, replace(args, seed=2))
    assert not any(same(learners(runs[0][0]), learners(other)))


# ----------------------------------------------------------------------------------------------------------------------
# Acting


@both_scripts
def test_stored_entropies_are_of_the_policy_that_acted(script, monkeypatch):
    """log A while actions are uniform; then the entropy of the policy at acting, though updates have come between."""
    args = tiny_args(script, total_timesteps=300, learning_starts=200, update_frequency=10, policy_lr=1e-2, num_envs=2)
    acted, stored, learned_between = [], [], []
    act, add = script.act, script.ReplayBuffer.add

    def spying_act(actor, observations, noise):
        entropies = torch.distributions.Categorical(logits=actor(observations)).entropy()
        actions, _ = result = act(actor, observations, noise)
        acted.append((actions.numpy(), entropies.detach().numpy(), actor, copy.deepcopy(actor.state_dict())))
        return result

    def spying_add(self, observations, actions, rewards, terminated, truncated, entropies, resets):
        stored.append((observations.copy(), actions, entropies, resets))
        if acted:
            learned_between.append(not all(same(weights(acted[-1][2]), acted[-1][3].values())))
        add(self, observations, actions, rewards, terminated, truncated, entropies, resets)

    monkeypatch.setattr(script, "act", spying_act)
    monkeypatch.setattr(script.ReplayBuffer, "add", spying_add)
    script.train(args)

    num_actions = 2 if script is sdsac_classic else 4
    steps, warm_up_actions, policy_entropies = 0, [], []
    policies = iter(acted)
    for _, actions, entropies, resets in stored:
        if steps < args.learning_starts:
            np.testing.assert_array_equal(entropies, np.log(num_actions))
            warm_up_actions.extend(actions)
        else:
            expected_actions, expected_entropies, _, _ = next(policies)
            np.testing.assert_array_equal(actions, expected_actions)
            np.testing.assert_allclose(entropies, expected_entropies, rtol=1e-5)
            policy_entropies.extend(entropies)
        steps += int((~resets).sum())
    assert next(policies, None) is None
    assert len(set(policy_entropies)) > 20
    assert max(policy_entropies) - min(policy_entropies) > 0.001
    counts = np.bincount(warm_up_actions, minlength=num_actions)
    assert len(counts) == num_actions
    share = 1 / num_actions
    deviation = math.sqrt(len(warm_up_actions) * share * (1 - share))
    assert (abs(counts - len(warm_up_actions) * share) < 4 * deviation).all()
    assert any(learned_between) == (script is sdsac_atari)  # which learns while the games run on

    # The first observations are those of the seeds that no other run shares.
    envs = script.make_envs(args, 2)
    observations, _ = envs.reset(seed=script.environment_seeds(np.random.SeedSequence(args.seed), 2))
    np.testing.assert_array_equal(stored[0][0], observations)
    envs.close()


@both_scripts
def test_act_draws_from_the_softmax(script):
    num_draws = 200_000
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0], [3.0, 3.0, 3.0, 3.0], [0.0, -6.0, 4.0, -60.0]])
    generator = torch.Generator().manual_seed(0)
    for row in logits:
        noise = script.exponential_noise(num_draws, 4, generator)
        actions, entropies = script.act(lambda observations: observations, row.expand(num_draws, -1), noise)
        assert actions.shape == entropies.shape == (num_draws,)
        assert actions.dtype == torch.int64
        p = torch.softmax(row.double(), 0)
        frequencies = torch.bincount(actions, minlength=4) / num_draws
        assert ((frequencies - p).abs() <= 4 * (p * (1 - p) / num_draws).sqrt()).all()  # four standard deviations
        expected = torch.distributions.Categorical(probs=p).entropy()
        np.testing.assert_allclose(entropies, expected.item(), rtol=1e-5)


@both_scripts
def test_act_draws_apart_for_each_environment_and_by_its_generator_alone(script):
    logits = torch.zeros(1000, 4)

    def draw(seed):
        noise = script.exponential_noise(1000, 4, torch.Generator().manual_seed(seed))
        return script.act(lambda observations: observations, logits, noise)[0]

    torch.manual_seed(0)
    first = draw(1)
    torch.manual_seed(1)
    assert torch.equal(first, draw(1))
    assert not torch.equal(first, draw(2))
    pairs = torch.bincount(first[:-1] * 4 + first[1:], minlength=16)  # neighbours are independent
    assert ((pairs - 999 / 16).abs() < 4 * math.sqrt(999 / 16)).all()


# ----------------------------------------------------------------------------------------------------------------------
# Diagnostics


def fake_agent(alpha=0.5):
    """Q-values and logits that can be told from the observation, a tensor (1, 1)."""
    return SimpleNamespace(
        qf1=lambda x: x * torch.tensor([[1.0, 2.0]]),
        qf2=lambda x: x * torch.tensor([[3.0, 8.0]]),
        actor=lambda x: torch.tensor([[math.log(0.25), math.log(0.75)]]),
        log_alpha=torch.tensor(math.log(alpha)),
    )


REWARDS, ENTROPIES = [1.0, -2.0, 3.0, 0.5, 7.0], [0.1, 0.2, 0.3, 0.4, 0.5]
DISCOUNTED_REWARDS = 1.0 - 2.0 * 0.9 + 3.0 * 0.81 + 0.5 * 0.729 + 7.0 * 0.6561
# For Q (2, 5) times the observation 10 of the end: sum pi (Q - alpha log pi)
VALUE_AT_THE_END = 0.25 * (20 - 0.5 * math.log(0.25)) + 0.75 * (50 - 0.5 * math.log(0.75))


@both_scripts
@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize(
    ("n_step", "bootstrapped_entropy"),
    [
        (1, 0.9 * 0.2 + 0.81 * 0.3 + 0.729 * 0.4 + 0.6561 * 0.5),
        (2, 0.81 * 0.3 + 0.6561 * 0.5),
        (3, 0.729 * 0.4),
        (7, 0.0),
    ],
)
def test_return_probe_adds_up_what_followed(script, n_step, bootstrapped_entropy, truncated, monkeypatch):
    probe = script.ReturnProbe(script.Args(gamma=0.9, n_step=n_step), np.random.SeedSequence(0))
    agent = fake_agent()
    for _ in range(2):  # the second pair starts afresh
        for k in range(5):
            last = k == 4
            monkeypatch.setattr(script, "PROBE_PROBABILITY", float(k == 0))
            pairs = probe.follow(
                agent if k == 0 else replace_q_and_alpha(agent, last),
                torch.tensor([[3.0 if k == 0 else 99.0]]),
                1,
                REWARDS[k],
                last and not truncated,
                last and truncated,
                ENTROPIES[k],
                torch.tensor([[10.0 if last else 99.0]]),
            )
            assert len(pairs) == last
        ((predicted, followed),) = pairs
        assert predicted == pytest.approx(3.0 * (2 + 8) / 2, rel=1e-6)
        expected = DISCOUNTED_REWARDS + 0.5 * bootstrapped_entropy + truncated * 0.9**5 * VALUE_AT_THE_END
        assert followed == pytest.approx(expected, rel=1e-6)


def replace_q_and_alpha(agent, last):
    """The agent as it has learned on: the prediction and the temperature are those of the pair's first step."""
    q = agent.qf1 if last else None
    return SimpleNamespace(qf1=q, qf2=agent.qf2, actor=agent.actor, log_alpha=torch.tensor(3.0))


@both_scripts
def test_return_probe_adds_up_to_the_same_bits_wherever_it_is_restored(script, monkeypatch):
    monkeypatch.setattr(script, "PROBE_PROBABILITY", 1.0)
    rng, x = np.random.default_rng(0), torch.ones(1, 1)
    rewards, entropies = rng.random(30), rng.random(30).astype(np.float32)

    def follow(restored):
        probe = script.ReturnProbe(script.Args(n_step=3), np.random.SeedSequence(0))
        for k in range(30):
            if restored:
                before = probe
                probe = script.ReturnProbe(script.Args(n_step=3), np.random.SeedSequence(1))
                probe.rng.bit_generator.state, probe.pairs = before.rng.bit_generator.state, before.pairs
            pairs = probe.follow(fake_agent(), x, 0, rewards[k], k == 29, False, entropies[k], x)
        return pairs

    assert len(follow(restored=False)) == 30
    assert follow(restored=True) == follow(restored=False)


@both_scripts
def test_return_probe_follows_the_share_of_steps_it_is_told(script, monkeypatch):
    def pairs(probability):
        monkeypatch.setattr(script, "PROBE_PROBABILITY", probability)
        probe = script.ReturnProbe(script.Args(), np.random.SeedSequence(0))
        x = torch.ones(1, 1)
        return sum(len(probe.follow(fake_agent(), x, 0, 1.0, True, False, 0.1, x)) for _ in range(1_000))

    assert pairs(0.0) == 0
    assert pairs(1.0) == 1_000
    assert abs(pairs(0.1) - 100) < 4 * math.sqrt(1_000 * 0.1 * 0.9)


@both_scripts
def test_return_probe_follows_steps_from_all_over_an_episode(script, monkeypatch):
    """As states are collected; not from its beginning more than from its end."""
    monkeypatch.setattr(script, "PROBE_PROBABILITY", 0.05)
    probe = script.ReturnProbe(script.Args(), np.random.SeedSequence(0))
    starts = []
    for _ in range(20):
        for k in range(200):
            x = torch.full((1, 1), float(k))  # of which action 0 has Q_1 = k, Q_2 = 3 k
            starts += [p / 2 for p, _ in probe.follow(fake_agent(), x, 0, 0.0, k == 199, False, 0.1, x)]
    counts = np.histogram(starts, bins=4, range=(0, 200))[0]
    assert (np.abs(counts - 50) < 4 * math.sqrt(1_000 * 0.05 * 0.95)).all(), counts


@both_scripts
def test_return_probe_leaves_what_comes_late_to_the_critics(script, monkeypatch):
    monkeypatch.setattr(script, "PROBE_LENGTH", 10)
    probe = script.ReturnProbe(script.Args(gamma=0.5, n_step=100), np.random.SeedSequence(0))
    for k in range(10):
        monkeypatch.setattr(script, "PROBE_PROBABILITY", float(k == 0))
        pairs = probe.follow(fake_agent(), torch.ones(1, 1), 0, 1.0, False, False, 0.1, torch.full((1, 1), 10.0))
        assert len(pairs) == (k == 9)
    assert pairs[0][1] == pytest.approx(2 - 2 * 0.5**10 + 0.5**10 * VALUE_AT_THE_END, rel=1e-6)


@both_scripts
def test_compile_hands_the_gradients_of_every_update_to_the_compiled_form(script, monkeypatch):
    calls, update = {"update": 0, "compiled": 0}, script.update

    def count(name, function):
        def counted(*args):
            calls[name] += 1
            return function(*args)

        return counted

    monkeypatch.setattr(script, "update", count("update", update))
    monkeypatch.setattr(script, "compiled", lambda function: count("compiled", function))
    script.train(tiny_args(script))
    assert calls["compiled"] == 0
    script.train(tiny_args(script, compile=True))
    assert 2 * calls["compiled"] == calls["update"] > 0


@both_scripts
@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor cannot flush denormal numbers")
def test_training_flushes_denormal_numbers(script):
    """Adam's moments of dead units end as such, and make its steps several times as slow."""
    torch.set_flush_denormal(False)
    assert torch.tensor([1e-38]) * 0.1 > 0
    script.train(tiny_args(script))
    assert torch.tensor([1e-38]) * 0.1 == 0


# ----------------------------------------------------------------------------------------------------------------------
# The same text in both scripts

SHARED = [
    *("Batch", "Agent", "soft_value", "average_or_min", "critic_loss", "clipped_fraction", "actor_loss"),
    *("entropy_penalty", "entropy_of", "temperature_loss", "make_agent", "critic_parameters", "gradients", "update"),
    *("compiled", "descend", "act"),
    *("ReturnProbe", "agent_state", "load_agent", "set_schedules", "make_run_dir", "make_writer", "refuse"),
    *("write_file", "keep_only", "save_checkpoint", "load_checkpoint", "read_args", "StopSignals"),
    *(
        "check_args",
        "check_memory",
        "available_memory",
        "latch",
        "stop_diverged",
        "Captured",
        "Updater",
        "exponential_noise",
        "to_device",
        "resume_command",
        "last_checkpoint",
        "agent_file",
        "check_finite",
    ),
    *("disk_trouble", "play", "main"),
]


def source_of(script, name):
    """The text of a top-level function or class, its decorators with it."""
    source = inspect.getsource(sys.modules[script.__name__])
    (node,) = (node for node in ast.parse(source).body if getattr(node, "name", None) == name)
    return [ast.get_source_segment(source, part) for part in [*node.decorator_list, node]]


@pytest.mark.parametrize("name", SHARED)
def test_both_scripts_have_the_same_text(name):
    assert source_of(sdsac_classic, name) == source_of(sdsac_atari, name)
