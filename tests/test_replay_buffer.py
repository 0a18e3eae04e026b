"""The replay buffers against a reference that keeps every episode whole and knows nothing of rings.

gamma is always a dyadic fraction and rewards are integers, so that every sum is exact and is compared bit for bit.
"""

import itertools
import pickle
from collections import Counter

import gymnasium as gym
import numpy as np
import pytest
import torch

import sdsac_atari
import sdsac_classic

torch.set_num_threads(1)

SCRIPTS = pytest.mark.parametrize("script", [sdsac_classic, sdsac_atari], ids=["classic", "atari"])


# ----------------------------------------------------------------------------------------------------------------------
# The reference


class Episode:
    """One game of one environment: what was seen, one more than what was done once the final observation has come."""

    def __init__(self, start: int):
        self.start = start  # the vector step that its first action was taken at
        self.observations, self.actions, self.rewards, self.terminated, self.entropies = [], [], [], [], []


class History:
    """All episodes ever played, a list for each environment; `add` takes what `ReplayBuffer.add` does."""

    def __init__(self, num_envs: int, stack: int = 1):
        """`stack`: how many frames an observation is put together from, where the buffer does that."""
        self.num_envs, self.stack, self.steps = num_envs, stack, 0
        self.episodes = [[Episode(0)] for _ in range(num_envs)]

    def add(self, observations, actions, rewards, terminated, truncated, entropies, resets) -> None:
        self.steps += 1
        for e, episodes in enumerate(self.episodes):
            episodes[-1].observations.append(observations[e].copy())
            if resets[e]:
                episodes.append(Episode(self.steps))
                continue
            episodes[-1].actions.append(actions[e])
            episodes[-1].rewards.append(float(rewards[e]))
            episodes[-1].terminated.append(bool(terminated[e]))
            episodes[-1].entropies.append(entropies[e])

    def transitions(self, rows: int, n_step: int, gamma: float) -> dict[tuple[int, int], tuple]:
        """What can be made of the last `rows` vector steps: (step, environment) -> the fields of `Batch`.

        The next observation is None where the chain ended in termination.
        """
        oldest = self.steps - rows
        transitions = {}
        for e, episodes in enumerate(self.episodes):
            for episode in episodes:
                for i in range(len(episode.actions)):
                    if episode.start + max(0, i - self.stack + 1) < oldest:
                        continue  # the row or a frame of its stack is gone
                    k, reward, terminated = 0, 0.0, False
                    while k < n_step and i + k < len(episode.actions) and not terminated:
                        reward += gamma**k * episode.rewards[i + k]
                        terminated = episode.terminated[i + k]
                        k += 1
                    if terminated:
                        discount, next_observation = 0.0, None
                    elif i + k < len(episode.observations):
                        discount, next_observation = gamma**k, episode.observations[i + k]
                    else:
                        continue  # what it bootstraps from has not come yet
                    transitions[episode.start + i, e] = (
                        episode.observations[i],
                        episode.actions[i],
                        reward,
                        discount,
                        next_observation,
                        episode.entropies[i],
                    )
        return transitions


def assert_same(tensor: torch.Tensor, expected: np.ndarray) -> None:
    """Equal in every bit, in dtype and in shape."""
    np.testing.assert_array_equal(tensor.numpy(), expected, strict=True)


def check(buffer, history: History, gamma: float) -> int:
    """Compares all that can be sampled with the reference; returns how many transitions are valid.

    The streams pass step * E + e as the entropy, which so tells where a sampled row comes from.
    """
    expected = history.transitions(buffer.rows, buffer.n_step, gamma)

    # The buffer holds exactly those rows to be valid
    oldest = max(0, history.steps - buffer.rows)
    pairs = np.array(list(itertools.product(range(oldest, history.steps), range(history.num_envs))))
    *_, valid = buffer.chains(pairs[:, 0], pairs[:, 1])
    assert set(map(tuple, pairs[valid].tolist())) == set(expected)
    if not expected:
        return 0

    # It samples exactly those, each of them as it should be
    where = np.array([step * history.num_envs + e for step, e in expected])
    order = np.argsort(where)
    observations, actions, rewards, discounts, next_observations, entropies = zip(*expected.values(), strict=True)
    next_observations = [np.zeros_like(observations[0]) if o is None else o for o in next_observations]
    observations, next_observations = np.stack(observations), np.stack(next_observations)
    actions, entropies = np.array(actions, np.int64), np.array(entropies, np.float32)
    rewards, discounts = np.array(rewards, np.float32), np.array(discounts, np.float32)
    seen = set()
    for _ in range(0, 20 * len(expected), 256):
        batch = buffer.sample(256)
        came_from = batch.old_entropies.numpy().astype(int)
        assert set(came_from) <= set(where)
        seen.update(came_from)
        i = order[np.searchsorted(where, came_from, sorter=order)]
        assert_same(batch.observations, observations[i])
        assert_same(batch.actions, actions[i])
        assert_same(batch.rewards, rewards[i])
        assert_same(batch.discounts, discounts[i])
        goes_on = discounts[i] > 0
        assert_same(batch.next_observations[torch.from_numpy(goes_on)], next_observations[i][goes_on])
        assert_same(batch.old_entropies, entropies[i])
    assert seen == set(where)
    return len(expected)


# ----------------------------------------------------------------------------------------------------------------------
# Random streams


class Game:
    """An environment whose frames are all different, with episodes of random lengths and endings."""

    ENDINGS = ((True, False), (False, True), (True, True))  # (terminated, truncated) of an episode's last step

    def __init__(self, script, rng, numbers, stack: int, longest: int, lost_life: float):
        self.script, self.rng, self.numbers, self.stack = script, rng, numbers, stack
        self.longest, self.lost_life = longest, lost_life
        self.reset()

    def reset(self) -> None:
        self.frames = [np.zeros((2, 2), np.uint8)] * (self.stack - 1)
        self.left = self.rng.integers(1, self.longest + 1)
        self.ending = self.ENDINGS[self.rng.integers(3)]
        self.show()

    def show(self) -> None:
        number = next(self.numbers)
        if self.script is sdsac_atari:
            self.frames.append(np.array([number], np.uint32).view(np.uint8).reshape(2, 2))
        else:
            self.frames.append(np.array([number, -number, 1 / number], np.float32))

    def observation(self) -> np.ndarray:
        return np.stack(self.frames[-self.stack :]) if self.script is sdsac_atari else self.frames[-1]

    def step(self) -> tuple[bool, bool, bool]:
        """Returns terminated, truncated and whether this step only reset the game."""
        if self.left == 0:
            self.reset()
            return False, False, True
        self.left -= 1
        self.show()
        return (*self.ending, False) if self.left == 0 else (self.rng.random() < self.lost_life, False, False)


def stream(script, rng, num_envs: int, length: int, stack: int = 4, longest: int = 8, lost_life: float = 0.1):
    """Yields `length` vector steps, each as the arguments of `ReplayBuffer.add`.

    No two rows that a small ring can hold at a time have an observation, action, reward or entropy in common.
    """
    numbers = itertools.count(1)
    games = [Game(script, rng, numbers, stack, longest, lost_life) for _ in range(num_envs)]
    for step in range(length):
        labels = step * num_envs + np.arange(num_envs)
        observations = np.stack([game.observation() for game in games])
        terminated, truncated, resets = np.array([game.step() for game in games]).T.copy()
        rewards = labels + 1.0 + 4096 * rng.integers(-8, 8, num_envs)  # also where the step only resets
        yield observations, labels % 251, rewards, terminated, truncated, labels.astype(np.float32), resets


def make_buffer(script, size: int, num_envs: int, n_step: int, gamma: float, stack: int = 4, seed=0):
    shape = (stack, 2, 2) if script is sdsac_atari else (3,)
    return script.ReplayBuffer(size, num_envs, shape, n_step, gamma, seed=seed)


def check_random_stream(script, seed: int, seen: Counter) -> None:
    """Plays a random stream several times past a small ring; `seen` counts what there was when it was checked."""
    rng = np.random.default_rng(seed)
    num_envs, rows, n_step = int(rng.integers(1, 4)), int(rng.integers(8, 41)), int(rng.integers(1, 6))
    gamma, stack = float(rng.choice([0.5, 0.75, 0.875])), int(rng.integers(1, 5)) if script is sdsac_atari else 1
    longest, lost_life = int(rng.choice([1, 3, 8, 25])), float(rng.choice([0, 0.2]))
    size = rows * num_envs + int(rng.integers(num_envs))  # what is left over makes no row
    buffer = make_buffer(script, size, num_envs, n_step, gamma, stack, seed)
    assert buffer.rows == rows
    history = History(num_envs, stack)

    length = rows * int(rng.integers(4, 8)) + int(rng.integers(rows))
    for step in stream(script, rng, num_envs, length, stack, longest, lost_life):
        history.add(*step)
        buffer.add(*step)
        _, _, _, terminated, truncated, _, resets = step
        at_head = {
            "a terminated row at the head": terminated.any(),
            "a truncated row at the head": (truncated & ~terminated).any(),
            "a reset row at the head": resets.any(),
            "a ring that is not full yet": history.steps < rows,
            "a ring overwritten three times": history.steps > 4 * rows,
        }
        for array in step:
            array.fill(1)  # the buffer must not hold on to its arguments
        if rng.random() < (0.06 if at_head["a terminated row at the head"] else 0.02):
            check(buffer, history, gamma)
            seen.update(what for what, there in at_head.items() if there)

    for episode in itertools.chain(*history.episodes):
        if len(episode.observations) > len(episode.actions) > 0:
            seen["an episode of one step"] += len(episode.actions) == 1
            seen["an episode shorter than n"] += len(episode.actions) < n_step
            seen["an episode shorter than the stack"] += len(episode.actions) < stack
            seen["an episode with a lost life"] += any(episode.terminated[:-1])
            seen["an episode that was truncated"] += not episode.terminated[-1]


@SCRIPTS
def test_random_streams_are_sampled_as_the_reference_says(script):
    seen = Counter()
    for seed in range(120):
        try:
            check_random_stream(script, seed, seen)
        except AssertionError as error:
            error.add_note(f"in the stream of seed {seed}")
            raise

    # The streams were what they are meant to be
    for what in (
        "a terminated row at the head",
        "a truncated row at the head",
        "a reset row at the head",
        "a ring that is not full yet",
        "a ring overwritten three times",
        "an episode of one step",
        "an episode shorter than n",
        "an episode with a lost life",
        "an episode that was truncated",
        *(["an episode shorter than the stack"] if script is sdsac_atari else []),
    ):
        assert seen[what] >= 60, what


@SCRIPTS
def test_a_stream_by_hand(script):
    """n = 2, gamma = 1/2. A life is lost at step 1, the game truncated at step 3, the next one lost at step 6."""
    buffer = script.ReplayBuffer(7, 1, (1, 1, 1), n_step=2, gamma=0.5)
    steps = [  # observation, reward, terminated, truncated, resets
        (10, 1, False, False, False),
        (11, 2, True, False, False),
        (12, 4, False, False, False),
        (13, 8, False, True, False),
        (14, 99, False, False, True),
        (15, 16, False, False, False),
        (16, 32, True, False, False),
    ]
    new = [  # observation, reward, discount, next observation of what is valid from then on
        set(),
        {(10, 1 + 2 / 2, 0, None), (11, 2, 0, None)},
        set(),
        set(),
        {(12, 4 + 8 / 2, 0.25, 14), (13, 8, 0.5, 14)},
        set(),
        {(15, 16 + 32 / 2, 0, None), (16, 32, 0, None)},
    ]
    dtype = np.uint8 if script is sdsac_atari else np.float32
    valid = set()
    for (observation, reward, *flags), new_ones in zip(steps, new, strict=True):
        terminated, truncated, resets = np.array(flags)[:, None]
        observations = np.full((1, 1, 1, 1), observation, dtype)
        buffer.add(observations, np.array([0]), np.array([reward]), terminated, truncated, np.array([0.0]), resets)
        valid |= new_ones
        if valid:
            batch = buffer.sample(200)
            fields = (batch.observations, batch.rewards, batch.discounts, batch.next_observations)
            sampled = zip(*(field.flatten().tolist() for field in fields), strict=True)
            assert {(o, r, d, next_o if d > 0 else None) for o, r, d, next_o in sampled} == valid


# ----------------------------------------------------------------------------------------------------------------------
# Draws


@SCRIPTS
def test_every_valid_transition_is_equally_likely(script):
    """Chi-square, seed fixed, against the quantile that chance passes once in 10,000 times (Wilson and Hilferty)."""
    num_envs, rows, n_step, gamma, draws = 3, 60, 3, 0.5, 200_000
    buffer = make_buffer(script, rows * num_envs, num_envs, n_step, gamma)
    history = History(num_envs, stack=4 if script is sdsac_atari else 1)
    for step in stream(script, np.random.default_rng(0), num_envs, 150, longest=2):
        history.add(*step)
        buffer.add(*step)
    valid = [step * num_envs + e for step, e in history.transitions(rows, n_step, gamma)]
    assert len(valid) < 0.65 * rows * num_envs  # there are many rows to be passed over

    came_from, counts = np.unique(buffer.sample(draws).old_entropies.numpy(), return_counts=True)
    assert came_from.tolist() == sorted(valid)
    expected, freedom = draws / len(valid), len(valid) - 1
    statistic = ((counts - expected) ** 2 / expected).sum()
    spread = 2 / (9 * freedom)
    assert statistic < freedom * (1 - spread + 3.719 * spread**0.5) ** 3


@SCRIPTS
def test_the_seed_alone_decides_what_is_drawn(script):
    def sampled(seed, global_seed):
        buffer = make_buffer(script, 40, 2, n_step=3, gamma=0.5, seed=seed)
        batches = []
        for i, step in enumerate(stream(script, np.random.default_rng(0), 2, 60)):
            buffer.add(*step)
            if i >= 20:
                np.random.seed(global_seed + i)
                torch.manual_seed(global_seed + i)
                batches.append(buffer.sample(16))
        return [torch.cat([field.flatten() for field in fields]) for fields in zip(*batches, strict=True)]

    for seed, other in ((1, 2), (np.random.SeedSequence(1), np.random.SeedSequence(2))):
        first, second, third = sampled(seed, 0), sampled(seed, 1000), sampled(other, 0)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(first, third, strict=True))


@SCRIPTS
def test_entropies_come_back_unchanged(script):
    entropies = np.array([0, np.log(2), np.log(18), np.pi / 3, 1e-7, 1e-30, 0.1, np.nextafter(1, 2)], np.float32)
    buffer = make_buffer(script, 10, 1, n_step=1, gamma=0.5)
    none = np.array([False])
    for i, step in enumerate(stream(script, np.random.default_rng(0), 1, 9)):
        buffer.add(step[0], np.array([i]), np.zeros(1), none, none, entropies[i % 8 : i % 8 + 1], none)
    batch = buffer.sample(500)
    assert set(batch.actions.tolist()) == set(range(8))  # the ninth has no next observation
    assert_same(batch.old_entropies, entropies[batch.actions.numpy()])


# ----------------------------------------------------------------------------------------------------------------------
# Memory


def test_a_million_atari_transitions_fit_in_seven_gigabytes():
    assert sdsac_atari.ReplayBuffer.nbytes(1_000_000, (4, 84, 84)) < 7.1e9


@SCRIPTS
def test_nbytes_is_what_the_buffer_takes(script):
    """A buffer is no larger than it says, empty or full."""

    def pickled(rows, num_steps):
        buffer = make_buffer(script, 2 * rows, 2, n_step=3, gamma=0.5)
        for step in stream(script, np.random.default_rng(0), 2, num_steps):
            buffer.add(*step)
        return len(pickle.dumps(buffer))

    shape = (4, 2, 2) if script is sdsac_atari else (3,)
    small, large, full = pickled(1000, 0), pickled(3000, 0), pickled(1000, 1200)
    assert abs(full - small) < 100  # integers are pickled in more or fewer bytes
    said = script.ReplayBuffer.nbytes(6000, shape) - script.ReplayBuffer.nbytes(2000, shape)
    assert abs((large - small) - said) < 100


def test_each_frame_is_stored_once():
    rng = np.random.default_rng(0)
    frames = rng.integers(1, 256, (60, 8, 8), np.uint8)
    buffer = sdsac_atari.ReplayBuffer(40, 1, (4, 8, 8), n_step=3, gamma=0.5)
    none = np.array([False])
    for i in range(3, 60):
        buffer.add(frames[None, i - 3 : i + 1], np.array([0]), np.zeros(1), none, none, np.zeros(1), none)
    everything = pickle.dumps(buffer)
    assert [everything.count(frame.tobytes()) for frame in frames] == [0] * 20 + [1] * 40


def test_shifted_frames_by_hand():
    frames = torch.arange(12, dtype=torch.uint8).view(1, 1, 3, 4).repeat(3, 2, 1, 1)
    down, right = torch.tensor([0, 1, -2]), torch.tensor([0, -1, 2])
    still, down_left, up_right = sdsac_atari.shifted(frames, down, right)
    assert torch.equal(still, frames[0])
    assert down_left.tolist() == 2 * [[[1, 2, 3, 3], [1, 2, 3, 3], [5, 6, 7, 7]]]
    assert up_right.tolist() == 2 * [[[8, 8, 8, 9]] * 3]


def test_random_shift_moves_each_observation_as_a_whole():
    """Frames of a stack that are moved apart, one move for an observation and its successor, other samples, moves that
    are left out."""
    rng = np.random.default_rng(0)
    steps = rng.integers(256, size=(20, 2, 4, 9, 9), dtype=np.uint8)
    no = np.zeros(2, bool)
    batches = []
    for shift in (0, 2):
        buffer = sdsac_atari.ReplayBuffer(40, 2, (4, 9, 9), n_step=3, gamma=0.5, seed=1, random_shift=shift)
        for observations in steps:
            buffer.add(observations, no, no, no, no, no, no)
        batches.append(buffer.sample(256))
    plain, moved = batches
    found = []
    for before, after in ((plain[0], moved[0]), (plain[4], moved[4])):
        padded = np.pad(before.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), "edge")
        places = [(down, right) for down in range(5) for right in range(5)]
        cuts = {(d, r): padded[:, :, d : d + 9, r : r + 9] for d, r in places}
        found.append([[place for place in places if np.array_equal(cuts[place][i], after[i])] for i in range(256)])
    assert all(len(place) == 1 for part in found for place in part)
    observations, successors = ([place for (place,) in part] for part in found)
    assert set(observations) == set(successors) == set(places)
    assert sum(a == b for a, b in zip(observations, successors, strict=True)) < 30  # of 256, 10 expected
    for one, other in ((plain[k], moved[k]) for k in (1, 2, 3, 5)):
        assert torch.equal(one, other)


def test_without_shifts_nothing_is_drawn_for_them():
    """So that runs sample as they did before there were any."""
    buffer = make_buffer(sdsac_atari, 40, 1, n_step=1, gamma=0.5, seed=1)
    none = np.zeros(1, bool)
    for observations in np.zeros((9, 1, 4, 2, 2), np.uint8):
        buffer.add(observations, none, none, none, none, none, none)
    buffer.sample(1)
    assert buffer.steps == 9
    rng = np.random.default_rng(1)
    while rng.integers(0, 9, 1) == 8:  # the newest, which is drawn again
        pass
    assert buffer.rng.bit_generator.state == rng.bit_generator.state


# ----------------------------------------------------------------------------------------------------------------------
# Real games


@pytest.mark.parametrize("max_frames", [88, 108_000])
def test_atari_frames_are_those_that_the_games_showed(monkeypatch, max_frames):
    """Random play of Breakout. With at most 88 frames a game, some lives are lost on the very step that truncates."""
    num_envs, n_step, gamma = 2, 3, 0.5
    args = sdsac_atari.Args(env_id="BreakoutNoFrameskip-v4")
    monkeypatch.setitem(gym.spec(args.env_id).kwargs, "max_num_frames_per_episode", max_frames)
    envs = sdsac_atari.make_envs(args, num_envs, num_threads=1)
    buffer = sdsac_atari.ReplayBuffer(80, num_envs, envs.single_observation_space.shape, n_step, gamma)
    history = History(num_envs, stack=4)
    rng = np.random.default_rng(0)

    observations, infos = envs.reset(seed=np.arange(num_envs))
    tracker = sdsac_atari.GameTracker(infos)
    for step in range(400):
        actions, entropies = rng.integers(4, size=num_envs), step * num_envs + np.arange(num_envs, dtype=np.float32)
        next_observations, scores, terminated, truncated, infos = envs.step(actions)
        resets, _ = tracker.step(scores, terminated, truncated, infos)
        np.testing.assert_array_equal(resets, ~next_observations[:, :3].any((1, 2, 3)))  # black before a game's start
        for store in (history, buffer):
            store.add(observations, actions, scores, terminated, truncated, entropies, resets)
        observations = next_observations
        if step % 57 == 56:
            assert check(buffer, history, gamma) > 40
    envs.close()

    episodes = list(itertools.chain(*history.episodes))
    ended = [episode.terminated[-1] for episode in episodes if len(episode.observations) > len(episode.actions)]
    assert any(any(episode.terminated[:-1]) for episode in episodes)  # a life was lost and the game went on
    assert any(ended)  # the last life was lost, or one on the step that truncated the game
    assert all(ended) == (max_frames != 88)  # games were truncated
