"""What `train` and `evaluate` make of what the environments say: sound parts must also be joined well."""

import gymnasium as gym
import numpy as np
import pytest
import torch

import sdsac_atari
import sdsac_classic

torch.set_num_threads(1)
SHORT_CARTPOLE, SHORT_INVADERS = "ShortCartPole-v0", "CutInvadersNoFrameskip-v4"  # which truncate
gym.register(SHORT_CARTPOLE, entry_point="gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=15)
gym.register(
    SHORT_INVADERS,
    entry_point="ale_py.env:AtariEnv",
    kwargs=gym.spec("SpaceInvadersNoFrameskip-v4").kwargs | {"max_num_frames_per_episode": 1200},
)


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def watch_training(script, args):
    """Trains without updates. Returns, of each vector step, what the environments said and what was stored; what was
    acted on; what the probe was given; and the critics' learning rate and target step of each update.
    """
    said, stored, acted_on, probed, schedule = [], [], [], [], []
    make_envs, add, act, follow = script.make_envs, script.ReplayBuffer.add, script.act, script.ReturnProbe.follow

    def watched_envs(*rest):
        envs, name = make_envs(*rest), "recv" if script is sdsac_atari else "step"
        answer = getattr(envs, name)

        def answer_and_note(*actions):
            result = answer(*actions)
            said.append([x.copy() for x in result[:4]])
            return result

        setattr(envs, name, answer_and_note)
        return envs

    def watched_add(self, *columns):
        stored.append([np.array(x) for x in columns])
        add(self, *columns)

    def watched_act(actor, observations, noise):
        acted_on.append(observations.numpy().copy())
        return act(actor, observations, noise)

    def watched_follow(self, agent, *step):
        probed.append(step)
        return follow(self, agent, *step)

    def update(agent, batch, args, compute):
        schedule.append((agent.q_optimizer.param_groups[0]["lr"].item(), agent.target_step.item()))
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "make_envs", watched_envs)
        patch.setattr(script.ReplayBuffer, "add", watched_add)
        patch.setattr(script, "act", watched_act)
        patch.setattr(script.ReturnProbe, "follow", watched_follow)
        patch.setattr(script, "update", update)
        script.train(args)
    return said, stored, acted_on, probed, schedule


@pytest.mark.parametrize("script", [sdsac_classic, sdsac_atari], ids=["classic", "atari"])
def test_training_stores_acts_on_and_probes_what_the_environments_said(script):
    atari = script is sdsac_atari
    args = script.Args(
        **{"env_id": SHORT_INVADERS if atari else SHORT_CARTPOLE, "num_envs": 2, "total_timesteps": 1500},
        **{"learning_starts": 1200, "buffer_size": 1600, "batch_size": 8, "cuda": False, "compile": False},
        **{"update_frequency": 10, "target_network_frequency": 30, "tau": 0.25, "anneal_lr": True},
    )
    said, stored, acted_on, probed, schedule = watch_training(script, args)

    observations, actions, rewards, terminated, truncated, entropies, resets = map(np.array, zip(*stored, strict=True))
    next_observations, scores, *ends = map(np.array, zip(*said, strict=True))
    np.testing.assert_array_equal(observations[1:], next_observations[:-1])
    np.testing.assert_array_equal(rewards, scores.clip(-1, 1) if atari else scores)
    np.testing.assert_array_equal([terminated, truncated], ends)
    assert terminated.any()
    assert truncated.any()
    if atari:
        assert (scores > 1).any()
    else:  # where a game ends is tested elsewhere: a lost life terminates too
        np.testing.assert_array_equal(resets[1:], (terminated | truncated)[:-1])

    acting = observations[-len(acted_on) :]
    np.testing.assert_array_equal(np.array(acted_on), acting.astype(acted_on[0].dtype))
    (followed,) = np.nonzero(((~resets).sum(1).cumsum() > args.learning_starts) & ~resets[:, 0])  # of environment 0
    columns = list(map(np.array, zip(*probed, strict=True)))
    of_the_probe = (observations[:, :1], actions[:, 0], rewards[:, 0], terminated[:, 0], truncated[:, 0])
    for column, expected in zip(columns, (*of_the_probe, entropies[:, 0], next_observations[:, :1]), strict=True):
        np.testing.assert_array_equal(column, expected[followed].astype(column.dtype))

    due = args.learning_starts + 10 * np.arange(1, len(schedule) + 1)
    rates, target_steps = zip(*schedule, strict=True)
    np.testing.assert_allclose(rates, args.q_lr * (1 - due / args.total_timesteps), rtol=1e-6)
    assert target_steps == tuple(0.25 * (due % 30 == 0))


class Games:
    """Stands for games of the ALE: those of environment i take i + 1 steps of 5 points each."""

    single_action_space = gym.spaces.Discrete(2)

    def __init__(self):
        self.actions = []

    def reset(self, seed):
        self.seed, self.lengths = seed, np.arange(1, len(seed) + 1)
        self.left, self.frames = self.lengths.copy(), np.zeros_like(self.lengths)
        return np.zeros((len(seed), 1), np.float32), {"episode_frame_number": self.frames}

    def step(self, actions):
        self.actions += actions.tolist()
        over = self.left == 0  # this step only resets
        self.left, self.frames = np.where(over, self.lengths, self.left - 1), np.where(over, 0, self.frames + 4)
        observations, never = np.zeros((len(over), 1), np.float32), np.zeros(len(over), bool)
        return observations, np.where(over, 0, 5), self.left == 0, never, {"episode_frame_number": self.frames}

    def close(self):
        pass


def test_games_are_evaluated_by_quotas_with_raw_scores_and_seeds_of_their_own(monkeypatch):
    games, actor = Games(), torch.nn.Linear(1, 2)
    monkeypatch.setattr(sdsac_atari, "make_envs", lambda *rest: games)
    torch.nn.init.zeros_(actor.weight)
    actor.bias.data = torch.tensor([0.0, 0.1])
    returns = sdsac_atari.evaluate(actor, sdsac_atari.Args(), episodes=23, greedy=True, seed=7)
    assert sorted(returns) == sorted(5 * (i + 1) for i in range(10) for _ in range(3 if i < 3 else 2))
    assert list(games.seed) == list(sdsac_atari.environment_seeds(np.random.SeedSequence((7, 1)), 10))
    assert np.mean(games.actions) > 0.95  # greedily always 1; sampled, little more than every other


@pytest.mark.parametrize("limit", [15, sdsac_classic.EVALUATION_LIMIT + 200])
def test_evaluation_keeps_the_time_limit_of_the_environment(limit):
    gym.register(f"Idle{limit}-v0", entry_point=Idle, max_episode_steps=limit)
    args, actor = sdsac_classic.Args(env_id=f"Idle{limit}-v0"), torch.nn.Linear(1, 2)
    assert sdsac_classic.evaluate(actor, args, 2, greedy=False, seed=0).tolist() == [limit] * 2


class Idle(gym.Env):
    """Never ends."""

    observation_space, action_space = gym.spaces.Box(0, 1, (1,), np.float32), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 1.0, False, False, {}


@pytest.mark.parametrize(("env_id", "sticky"), [("ALE/Breakout-v5", 0.25), ("BreakoutNoFrameskip-v4", 0.0)])
def test_games_begin_apart_and_stick_as_their_id_says(env_id, sticky, monkeypatch):
    made, vector_env = [], sdsac_atari.AtariVectorEnv
    monkeypatch.setattr(
        sdsac_atari, "AtariVectorEnv", lambda *rest, **flags: made.append(flags) or vector_env(*rest, **flags)
    )
    envs = sdsac_atari.make_envs(sdsac_atari.Args(env_id=env_id), 16)
    _, infos = envs.reset(seed=np.arange(16))
    envs.close()
    assert made[0]["repeat_action_probability"] == sticky
    assert len(np.unique(infos["episode_frame_number"])) > 5  # up to 30 steps of no-ops


def test_a_resumed_atari_run_cuts_its_games_begins_others_and_draws_on(monkeypatch):
    flags = {"env_id": "BreakoutNoFrameskip-v4", "num_envs": 2, "total_timesteps": 160, "learning_starts": 100}
    flags |= {"buffer_size": 400, "batch_size": 8, "update_frequency": 10, "cuda": False, "compile": False}
    run_dir = sdsac_atari.train(sdsac_atari.Args(**flags))
    state = torch.load(run_dir / "checkpoint.pt", weights_only=True)
    cuts, generators, seeds = [], [], []
    cut, noise, make_seeds = sdsac_atari.ReplayBuffer.cut, sdsac_atari.exponential_noise, sdsac_atari.environment_seeds

    def watched_cut(self, last):
        cuts.append((last.copy(), self.current_ages.tolist()))
        cut(self, last)

    def watched_noise(num_envs, num_actions, generator):
        generators.append(generator.get_state().clone())
        return noise(num_envs, num_actions, generator)

    monkeypatch.setattr(sdsac_atari.ReplayBuffer, "cut", watched_cut)
    monkeypatch.setattr(sdsac_atari, "exponential_noise", watched_noise)
    monkeypatch.setattr(sdsac_atari, "environment_seeds", lambda *rest: seeds.append(make_seeds(*rest)) or seeds[-1])
    sdsac_atari.main(["--resume", str(run_dir), "--total-timesteps", "180"])
    ((last, ages),) = cuts
    np.testing.assert_array_equal(last, state["loop"]["observations"].numpy())
    assert ages == state["buffer"]["ages"] == [3, 3]
    assert torch.equal(generators[0], state["loop"]["generator"])
    first, resumed = map(set, seeds)
    assert not first & resumed
