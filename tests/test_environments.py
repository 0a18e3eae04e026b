"""What the learners see of their environments: pixels, ends of games, scores, flat observations, seeds, refusals."""

import functools
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from ale_py.vector_env import AtariVectorEnv
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

import sdsac_atari
import sdsac_classic

torch.set_num_threads(1)

ATARI_GAMES = ["BreakoutNoFrameskip-v4", "AsterixNoFrameskip-v4", "SpaceInvadersNoFrameskip-v4"]

# Breakout cut off after 400 frames, 100 agent steps: the only game here that truncates.
SHORT_BREAKOUT = "CutBreakoutNoFrameskip-v4"
gym.register(
    SHORT_BREAKOUT,
    entry_point="ale_py.env:AtariEnv",
    kwargs=gym.spec("BreakoutNoFrameskip-v4").kwargs | {"max_num_frames_per_episode": 400},
)


class Tiny(gym.Env):
    """Random observations of the given space; actions 5, 6 and 7; ends by termination and truncation in turn."""

    action_space = Discrete(3, start=5)
    received: ClassVar[set] = set()  # by all copies together

    def __init__(self, observation_space):
        self.observation_space, self.steps = observation_space, 0

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert 5 <= action <= 7
        self.received.add(int(action))
        self.steps += 1
        return self.observation_space.sample(), 1.0, self.steps % 10 == 0, self.steps % 10 == 5, {}


TINY = {
    "TinyMultiDiscrete-v0": MultiDiscrete([2, 3, 4]),
    "TinyMultiBinary-v0": MultiBinary(6),
    "TinyDict-v0": Dict({"image": Box(0, 255, (2, 3), np.uint8), "mode": Discrete(4), "x": Box(-1, 1, (1,))}),
}
for tiny_id, tiny_space in TINY.items():
    gym.register(tiny_id, entry_point=Tiny, kwargs={"observation_space": tiny_space})


# ----------------------------------------------------------------------------------------------------------------------
# Atari


@pytest.fixture
def same_starts(monkeypatch):
    """make_envs with every game begun at its first frame: no no-ops, no FIRE."""
    monkeypatch.setattr(
        sdsac_atari, "AtariVectorEnv", functools.partial(AtariVectorEnv, noop_max=0, use_fire_reset=False)
    )


@pytest.mark.parametrize("env_id", ATARI_GAMES)
def test_pixels_are_those_of_the_gymnasium_wrappers(env_id, same_starts):
    envs = sdsac_atari.make_envs(sdsac_atari.Args(env_id=env_id), 1)
    wrapped = gym.wrappers.AtariPreprocessing(gym.make(env_id), noop_max=0, frame_skip=4, screen_size=84)
    wrapped = gym.wrappers.FrameStackObservation(wrapped, 4, padding_type="zero")
    observations, _ = envs.reset(seed=1)
    expected, _ = wrapped.reset(seed=1)
    assert observations.shape == (1, 4, 84, 84)
    assert observations.dtype == expected.dtype == np.uint8
    assert not expected[:3].any()  # black before the first frame
    assert expected[3].any()
    np.testing.assert_array_equal(observations[0], expected)

    rng = np.random.default_rng(1)
    over, games, seen = False, 0, set()
    for _ in range(600):
        action = rng.integers(envs.single_action_space.n)
        observations, *_ = envs.step(np.array([action]))
        if over:
            expected, _ = wrapped.reset()
            over = False
        else:
            expected, _, over, _, _ = wrapped.step(action)
        games += over
        seen.add(expected.tobytes())
        np.testing.assert_array_equal(observations[0], expected)
    assert games >= 1
    assert len(seen) > 300  # the screen did not stand still
    envs.close()


class ByHand:
    """One raw game, each action given for 4 frames: what make_envs and GameTracker should say about it."""

    def __init__(self, env_id: str):
        self.env = gym.make(env_id)
        self.reset()

    def reset(self):
        _, info = self.env.reset(seed=0)
        self.lives, self.score, self.length = info["lives"], 0.0, 0
        self.over = self.cut = False

    def step(self, action):
        """The step's reward and whether a life was lost."""
        step_reward, lives_before = 0.0, self.lives
        for _ in range(4):
            _, reward, terminated, truncated, info = self.env.step(action)
            step_reward += reward
            if terminated or truncated:
                self.over, self.cut = True, truncated
                break
        self.score += step_reward
        self.length += 1
        self.lives = info["lives"]
        return step_reward, self.lives < lives_before


@pytest.mark.parametrize("env_id", [*ATARI_GAMES, SHORT_BREAKOUT])
def test_lost_lives_ended_games_and_scores_are_those_of_the_raw_game(env_id, same_starts):
    num_envs = 2
    envs = sdsac_atari.make_envs(sdsac_atari.Args(env_id=env_id), num_envs)
    _, infos = envs.reset(seed=np.array([1, 2]))
    tracker = sdsac_atari.GameTracker(infos)
    by_hand = [ByHand(env_id) for _ in range(num_envs)]
    rng = np.random.default_rng(2)
    ended = lives_lost_in_play = truncations = lives_lost_at_the_cut = 0
    scores, large_rewards = set(), 0
    for _ in range(1_250):
        actions = rng.integers(envs.single_action_space.n, size=num_envs)
        _, rewards, terminated, truncated, infos = envs.step(actions)
        resets, games = tracker.step(rewards, terminated, truncated, infos)
        expected_games = []
        for i, game in enumerate(by_hand):
            assert resets[i] == game.over
            if game.over:  # the step after the end only resets, whatever the action
                expected_games.append((i, game.score, game.length))
                scores.add(game.score)
                game.reset()
                assert rewards[i] == 0
                assert not terminated[i]
                assert not truncated[i]
            else:
                reward, life_lost = game.step(actions[i])
                assert rewards[i] == reward
                assert terminated[i] == (life_lost or (game.over and not game.cut))
                assert truncated[i] == (game.cut and not life_lost)
                ended += game.over
                truncations += game.cut
                lives_lost_in_play += life_lost and not game.over
                lives_lost_at_the_cut += life_lost and game.cut
                large_rewards += abs(reward) > 1
            assert infos["lives"][i] == game.lives
        assert games == expected_games
    assert ended >= 4
    assert lives_lost_in_play >= 4  # `terminated` was set and the very same game went on
    assert len(scores) > 1
    if env_id == SHORT_BREAKOUT:
        assert truncations >= 10
        assert lives_lost_at_the_cut >= 1  # reported as terminated, not as truncated, and reset all the same
    else:
        assert truncations == 0
    if "Breakout" not in env_id:
        assert large_rewards >= 10  # raw scores, not clipped ones
    envs.close()


def test_truncated_games_are_whole_games_with_the_usual_start_too():
    """With no-ops and FIRE, as in training: every game of the cut Breakout ends within its 400 frames, and counts."""
    num_envs = 4
    envs = sdsac_atari.make_envs(sdsac_atari.Args(env_id=SHORT_BREAKOUT), num_envs)
    _, infos = envs.reset(seed=sdsac_atari.environment_seeds(np.random.SeedSequence(1), num_envs))
    tracker = sdsac_atari.GameTracker(infos)
    rng = np.random.default_rng(3)
    scores, lengths, cut = np.zeros(num_envs), np.zeros(num_envs, int), np.zeros(num_envs, bool)
    games_seen = 0
    for _ in range(450):
        _, rewards, terminated, truncated, infos = envs.step(rng.integers(4, size=num_envs))
        resets, games = tracker.step(rewards, terminated, truncated, infos)
        assert resets[cut].all()  # the row after a truncation only resets
        assert games == [(i, scores[i], lengths[i]) for i in np.flatnonzero(resets)]
        assert (infos["lives"][resets] == 5).all()
        for _, _, length in games:
            assert 100 - 30 // 4 - 1 <= length <= 100  # at most 30 frames of no-ops and FIRE go before
            games_seen += 1
        scores, lengths = np.where(resets, 0, scores + rewards), np.where(resets, 0, lengths + 1)
        cut = truncated
    assert games_seen >= 4 * num_envs
    envs.close()


def test_game_tracker_on_hand_made_infos():
    """Five games side by side; `lives` is what such games report, and must not matter.

    0 loses a life and plays on; 1 ends at lives 0; 2 ends with lives left; 3 reports lives 0 throughout, as Pong does;
    4 is truncated, and its next game starts after 29 no-ops.
    """

    def infos(frames, lives):
        return {"episode_frame_number": np.array(frames), "lives": np.array(lives)}

    nothing = np.zeros(5, bool)
    tracker = sdsac_atari.GameTracker(infos([0, 0, 0, 0, 0], [3, 1, 2, 0, 3]))
    resets, games = tracker.step(np.array([10, 20, 30, 40, 50]), nothing, nothing, infos([4] * 5, [3, 1, 2, 0, 3]))
    assert not resets.any()
    assert games == []

    terminated = np.array([True, True, True, True, False])
    truncated = np.array([False, False, False, False, True])
    resets, games = tracker.step(
        np.array([1, 2, 3, -4, 5]), terminated, truncated, infos([80, 78, 79, 77, 80], [2, 0, 2, 0, 3])
    )
    assert not resets.any()
    assert games == []  # whether a game has ended is known one step later

    resets, games = tracker.step(np.array([7, 0, 0, 0, 0]), nothing, nothing, infos([84, 0, 0, 1, 29], [2, 3, 3, 0, 3]))
    np.testing.assert_array_equal(resets, [False, True, True, True, True])
    assert games == [(1, 22.0, 2), (2, 33.0, 2), (3, 36.0, 2), (4, 55.0, 2)]

    resets, games = tracker.step(np.ones(5, int), terminated, truncated, infos([88, 4, 4, 5, 33], [1, 2, 2, 0, 2]))
    assert not resets.any()
    assert games == []
    # Now everyone's frame number but that of game 3 goes on: the others had lost a life only.
    resets, games = tracker.step(np.ones(5, int), nothing, nothing, infos([92, 8, 8, 0, 37], [1, 2, 2, 0, 2]))
    np.testing.assert_array_equal(resets, [False, False, False, True, False])
    assert games == [(3, 1.0, 1)]
    np.testing.assert_array_equal(tracker.returns, [20, 2, 2, 0, 2])
    np.testing.assert_array_equal(tracker.lengths, [5, 2, 2, 0, 2])


@pytest.mark.parametrize("env_id", ["BreakoutNoFrameskip-v4", "BreakoutNoFrameskip-v0", "ALE/Breakout-v5"])
def test_check_env_id_accepts_games_with_a_fixed_frame_skip(env_id, capsys):
    sdsac_atari.check_env_id(sdsac_atari.Args(env_id=env_id))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("env_id", "named"),
    [
        ("Breakout-v4", "BreakoutNoFrameskip-v4"),
        ("Breakout-v0", "BreakoutNoFrameskip-v0"),
        ("CartPole-v1", "sdsac_classic.py"),
        ("Brekout-v7", "Brekout"),
    ],
)
def test_check_env_id_refuses_in_one_line(env_id, named, capsys):
    with pytest.raises(SystemExit) as exit_info:
        sdsac_atari.check_env_id(sdsac_atari.Args(env_id=env_id))
    assert exit_info.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert named in err
    assert env_id in err


# ----------------------------------------------------------------------------------------------------------------------
# Classic


@pytest.mark.parametrize("env_id", ["CartPole-v1", "FrozenLake-v1", "Taxi-v4", "Blackjack-v1", *TINY])
def test_classic_observations_are_flat_and_training_completes(env_id, tmp_path, monkeypatch):
    envs = sdsac_classic.make_envs(sdsac_classic.Args(env_id=env_id), 2)
    observations, _ = envs.reset(seed=[5, 6])
    single = gym.make(env_id)
    size = gym.spaces.flatdim(single.observation_space)
    assert envs.single_observation_space.shape == (size,)
    assert observations.shape == (2, size)
    for row, seed in zip(observations, [5, 6], strict=True):
        observation, _ = single.reset(seed=seed)
        np.testing.assert_array_equal(row, gym.spaces.flatten(single.observation_space, observation))
    envs.close()

    monkeypatch.chdir(tmp_path)
    Tiny.received.clear()
    stored = set()
    add = sdsac_classic.ReplayBuffer.add

    def spy(self, observations, actions, *rest):
        stored.update(actions.tolist())
        assert self.observations.shape[1:] == (size,)
        add(self, observations, actions, *rest)

    monkeypatch.setattr(sdsac_classic.ReplayBuffer, "add", spy)
    args = sdsac_classic.Args(
        env_id=env_id, total_timesteps=80, learning_starts=40, num_envs=2, buffer_size=100, batch_size=8, cuda=False
    )
    run_dir = sdsac_classic.train(args)
    agent, _ = sdsac_classic.load_agent(run_dir / "agent.pt", "cpu")
    assert stored == set(range(agent.actor.head[-1].out_features))  # the learner counts from 0
    returns = sdsac_classic.evaluate(agent.actor, args, 3, greedy=False, seed=1)
    assert returns.shape == (3,)
    if env_id in TINY:
        assert Tiny.received == {5, 6, 7}  # the environment counts from its start
        np.testing.assert_array_equal(returns, [5, 5, 5])


@pytest.mark.parametrize("env_id", ["CartPole-v1", "FrozenLake-v1"])
def test_classic_steps_are_those_of_single_environments(env_id):
    """Every episode's true last observation is seen, and the step after it only resets."""
    num_envs, seeds = 3, [7, 8, 9]
    envs = sdsac_classic.make_envs(sdsac_classic.Args(env_id=env_id), num_envs)
    observations, _ = envs.reset(seed=seeds)
    tracker = sdsac_classic.EpisodeTracker(envs, seeds)
    singles = [gym.make(env_id) for _ in range(num_envs)]
    for single, seed in zip(singles, seeds, strict=True):
        single.reset(seed=seed)
    over, returns, lengths = np.zeros(num_envs, bool), np.zeros(num_envs), np.zeros(num_envs, int)
    rng, episodes = np.random.default_rng(4), 0
    for _ in range(300):
        actions = rng.integers(envs.single_action_space.n, size=num_envs)
        resets = over.copy()
        observations, rewards, terminated, truncated, _ = envs.step(actions)
        finished = {i: rest for i, *rest in tracker.step(actions, rewards, terminated | truncated, resets)}
        for i, single in enumerate(singles):
            if over[i]:
                (observation, _), expected = single.reset(), (0.0, False, False)
                returns[i] = lengths[i] = 0
            else:
                observation, *expected, _ = single.step(int(actions[i]))
                returns[i] += expected[0]
                lengths[i] += 1
            np.testing.assert_array_equal(observations[i], gym.spaces.flatten(single.observation_space, observation))
            assert (rewards[i], terminated[i], truncated[i]) == tuple(expected)
            over[i] = terminated[i] or truncated[i]
            assert (i in finished) == over[i]
            if over[i]:
                episodes += 1
                assert finished[i] == [returns[i], lengths[i]]
    assert episodes >= 10
    envs.close()


# ----------------------------------------------------------------------------------------------------------------------
# Seeds


@pytest.mark.parametrize("script", [sdsac_classic, sdsac_atari], ids=lambda script: script.__name__)
def test_no_two_runs_share_an_environment_seed(script):
    seeds = np.concatenate([script.environment_seeds(np.random.SeedSequence(seed), 8) for seed in range(1, 201)])
    assert len(np.unique(seeds)) == 200 * 8
    assert seeds.min() >= 0
    assert seeds.max() < 2**31
    again = script.environment_seeds(np.random.SeedSequence(200), 8)
    np.testing.assert_array_equal(again, seeds[-8:])


def test_no_two_runs_share_a_start():
    envs = sdsac_classic.make_envs(sdsac_classic.Args(), 8)
    starts = [
        envs.reset(seed=sdsac_classic.environment_seeds(np.random.SeedSequence(seed), 8))[0] for seed in range(1, 21)
    ]
    assert len(np.unique(np.concatenate(starts), axis=0)) == 20 * 8
    envs.close()
