"""Playing a trained agent: quotas, greedy and sampled, the report, periodic evaluation, and the film."""

import re
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from ale_py.vector_env import AtariVectorEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import sdsac_atari
import sdsac_classic

SCRIPTS = pytest.mark.parametrize("script", [sdsac_classic, sdsac_atari], ids=["classic", "atari"])
SHORT_GAMES = "EvaluatedBoxingNoFrameskip-v4"  # 400 frames, 100 agent steps, in which anyone scores
gym.register(
    SHORT_GAMES,
    entry_point="ale_py.env:AtariEnv",
    kwargs=gym.spec("BoxingNoFrameskip-v4").kwargs | {"max_num_frames_per_episode": 400},
)
FLAGS = {
    sdsac_classic: {"total_timesteps": 700, "learning_starts": 100, "buffer_size": 300},
    sdsac_atari: {
        **{"env_id": SHORT_GAMES, "total_timesteps": 700, "learning_starts": 200, "buffer_size": 400},
        **{"num_envs": 2, "batch_size": 8, "update_frequency": 20, "cuda": False, "compile": False},
    },
}


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


class Countdown(gym.Env):
    """Episodes of 1 + seed % 5 steps, then 1, 2, ... steps; each step is worth 1."""

    observation_space = gym.spaces.Box(0, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2, start=3)
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012, as Gymnasium has it

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.length = 1 + seed % 5 if seed is not None else self.length + 1
        self.left = self.length
        return np.zeros(2, np.float32), {}

    def step(self, action):
        assert action in (3, 4)
        self.left -= 1
        return np.zeros(2, np.float32), 1.0, self.left == 0, False, {}


gym.register("Countdown-v0", entry_point=Countdown)


def small_agent(script, env_id):
    args = script.Args(env_id=env_id, cuda=False)
    envs = script.make_envs(args, 1)
    torch.manual_seed(0)
    agent = script.make_agent(args, envs.single_observation_space.shape, int(envs.single_action_space.n), "cpu")
    envs.close()
    return agent, args


def test_each_environment_plays_its_quota():
    """Stopping at the first 23 episodes to finish would give the environments with short episodes more of them."""
    agent, args = small_agent(sdsac_classic, "Countdown-v0")
    returns = sdsac_classic.evaluate(agent.actor, args, episodes=23, greedy=True, seed=7)
    seeds = sdsac_classic.environment_seeds(np.random.SeedSequence((7, 1)), 10)
    quotas = [3] * 3 + [2] * 7
    expected = [1 + seed % 5 + k for seed, quota in zip(seeds, quotas, strict=True) for k in range(quota)]
    assert sorted(returns) == sorted(expected)


def test_environments_of_a_module_are_found_by_its_name(tmp_path, monkeypatch):
    """`module:id`, Gymnasium's way to one's own environments: trained, evaluated on the way, and played."""
    (tmp_path / "own_environments.py").write_text(
        "import gymnasium as gym\ngym.register('Own-v0', entry_point='gymnasium.envs.classic_control:CartPoleEnv')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    flags = {"env_id": "own_environments:Own-v0", "total_timesteps": 200, "learning_starts": 100}
    run_dir = sdsac_classic.train(sdsac_classic.Args(**flags, eval_frequency=100, eval_episodes=1))
    sdsac_classic.main(["--evaluate", str(run_dir), "--eval-episodes", "1"])


@SCRIPTS
def test_evaluation_is_fixed_by_its_seed(script):
    agent, args = small_agent(script, FLAGS[script].get("env_id", "CartPole-v1"))
    for greedy in (True, False):
        first, again, other = (script.evaluate(agent.actor, args, 5, greedy, seed) for seed in (1, 1, 2))
        assert first.tolist() == again.tolist()
        assert len(first) == len(other) == 5
        assert first.tolist() != other.tolist()


def test_greedy_play_of_classic_environments_is_the_most_probable_action():
    actor = sdsac_classic.Actor(sdsac_classic.Encoder((4,)), 2)
    torch.nn.init.zeros_(actor.head[-1].weight)
    actor.head[-1].bias.data = torch.tensor([0.0, 0.1])
    greedy = sdsac_classic.evaluate(actor, sdsac_classic.Args(), 20, True, 3)
    sampled = sdsac_classic.evaluate(actor, sdsac_classic.Args(), 20, False, 3)
    assert greedy.max() < 12  # always to the right
    assert sampled.mean() > 15  # nearly uniform


def test_greedy_play_of_games_serves_the_ball():
    """One action in a hundred is random, so that an agent that never presses FIRE does not stand still."""
    actor = sdsac_atari.Actor(sdsac_atari.Encoder((4, 84, 84)), 4)
    torch.nn.init.zeros_(actor.head.weight)
    actor.head.bias.data = torch.tensor([0.1, 0.0, 0.0, 0.0])  # NOOP, FIRE, RIGHT, LEFT
    generator = torch.Generator().manual_seed(0)
    observations = torch.zeros(500, 4, 84, 84, dtype=torch.uint8)
    taken = torch.cat([sdsac_atari.greedy_actions(actor, observations, generator) for _ in range(20)])
    counts = taken.bincount(minlength=4)
    assert counts.sum() == 10_000
    assert sdsac_atari.GREEDY_EPSILON == 0.01
    for count in counts[1:]:  # 25 expected, deviation 5
        assert 10 < count < 40


@SCRIPTS
def test_evaluation_does_not_change_the_training(script):
    plain = script.train(script.Args(**FLAGS[script], exp_name="plain"))
    with_evaluation = script.train(script.Args(**FLAGS[script], exp_name="other", eval_frequency=200, eval_episodes=3))
    states = [torch.load(run / "checkpoint.pt", weights_only=True) for run in (plain, with_evaluation)]
    for name in ("actor", "qf1", "qf2", "qf1_target", "qf2_target"):
        for ours, theirs in zip(*(state["agent"][name].values() for state in states), strict=True):
            assert torch.equal(ours, theirs)
    assert states[0]["buffer"]["rng"] == states[1]["buffer"]["rng"]
    assert states[0]["loop"]["warm_up_rng"] == states[1]["loop"]["warm_up_rng"]
    assert torch.equal(states[0]["loop"]["generator"], states[1]["loop"]["generator"])
    events = EventAccumulator(str(with_evaluation)).Reload().Scalars("eval/episodic_return")
    args = script.load_agent(with_evaluation / "agent.pt", "cpu")[1]
    assert [event.step // 200 for event in events] == [1, 2, 3]
    assert all(event.step % 200 < args.num_envs for event in events)


@SCRIPTS
def test_the_last_evaluation_is_of_the_trained_agent(script):
    run = script.train(script.Args(**FLAGS[script], eval_frequency=350, eval_episodes=3))
    events = EventAccumulator(str(run)).Reload().Scalars("eval/episodic_return")
    agent, args = script.load_agent(run / "agent.pt", "cpu")
    expected = script.evaluate(agent.actor, args, 3, True, args.seed).mean()
    assert events[-1].step >= 700
    assert events[-1].value == pytest.approx(expected, rel=1e-6)


@SCRIPTS
def test_report(script, capsys):
    run = script.train(script.Args(**FLAGS[script]))
    agent, args = script.load_agent(run / "agent.pt", "cpu")
    reports = []
    for path in (run, run / "agent.pt"):
        capsys.readouterr()
        script.main(["--evaluate", str(path), "--eval-episodes", "4", "--seed", "5"])
        reports.append(capsys.readouterr().out)
    assert reports[0] == reports[1]
    _, header, *lines = reports[0].splitlines()
    assert header.split() == ["mean", "deviation", "median", "min", "max", "distinct", "episodes"]
    for line, greedy in zip(lines, (True, False), strict=True):
        returns = script.evaluate(agent.actor, args, 4, greedy, 5)
        mode, *figures = line.split()
        assert mode == ("greedy" if greedy else "sampled")
        expected = [returns.mean(), returns.std(), np.median(returns), returns.min(), returns.max()]
        assert [float(figure) for figure in figures] == pytest.approx([*expected, len(set(returns)), 4], abs=0.005)


@pytest.mark.parametrize("game", ["Breakout", "Boxing"])  # with and without FIRE at the start
def test_film_of_a_game_shows_what_the_agent_was_trained_on(game, monkeypatch, tmp_path):
    """Without no-ops its observations are those of ALE's vector environment, pixel by pixel."""
    env_id = f"Filmed{game}NoFrameskip-v4"
    kwargs = gym.spec(f"{game}NoFrameskip-v4").kwargs | {"max_num_frames_per_episode": 200}
    if env_id not in gym.registry:
        gym.register(env_id, entry_point="ale_py.env:AtariEnv", kwargs=kwargs)
    agent, args = small_agent(sdsac_atari, env_id)
    seen, rng = [], np.random.default_rng(0)

    def watch(actor, observations, generator):
        seen.append((observations.numpy()[0].copy(), int(rng.integers(4))))
        return torch.tensor([seen[-1][1]])

    monkeypatch.setattr(sdsac_atari, "greedy_actions", watch)
    monkeypatch.setattr(gym.wrappers, "RecordVideo", lambda env, folder, **rest: env)
    path = sdsac_atari.film(agent.actor, args, tmp_path / "videos", seed=3)
    assert path == tmp_path / "videos" / f"{env_id}__3-episode-0.mp4"
    envs = AtariVectorEnv(game.lower(), 1, noop_max=0, max_num_frames_per_episode=200)
    observations, _ = envs.reset(seed=np.array([3]))
    for shown, action in seen:
        assert np.array_equal(shown, observations[0])
        observations, _, terminated, truncated, _ = envs.step(np.array([action]))
    assert terminated[0] or truncated[0]
    assert len(seen) == 50
    envs.close()


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Countdown-v0"])
def test_film_of_a_classic_environment_is_of_one_greedy_episode(env_id, monkeypatch, tmp_path):
    agent, args = small_agent(sdsac_classic, env_id)
    steps = []

    class Recorder(gym.Wrapper):
        def __init__(self, env, folder, **rest):
            super().__init__(env)
            assert folder == str(tmp_path / "videos")
            assert env.render_mode == "rgb_array"

        def step(self, action):
            steps.append(super().step(action))
            return steps[-1]

    monkeypatch.setattr(gym.wrappers, "RecordVideo", Recorder)
    path = sdsac_classic.film(agent.actor, args, tmp_path / "videos", seed=3)
    assert path == tmp_path / "videos" / f"{env_id}__3-episode-0.mp4"
    assert [terminated for _, _, terminated, _, _ in steps] == [False] * (len(steps) - 1) + [True]
    assert len(steps) >= 4


def test_an_agent_that_stands_still_is_cut_off_where_the_environment_has_no_limit():
    assert gym.spec("CliffWalking-v1").max_episode_steps is None
    actor = sdsac_classic.Actor(sdsac_classic.Encoder((48,)), 4)
    torch.nn.init.zeros_(actor.head[-1].weight)
    actor.head[-1].bias.data = torch.tensor([0.0, 0.0, 0.0, 1.0])  # to the left, into the wall
    returns = sdsac_classic.evaluate(actor, sdsac_classic.Args(env_id="CliffWalking-v1"), 2, greedy=True, seed=0)
    assert returns.tolist() == [-sdsac_classic.EVALUATION_LIMIT] * 2


@SCRIPTS
def test_the_last_checkpoint_of_an_unfinished_run_can_be_evaluated(script, capsys):
    run = script.train(script.Args(**FLAGS[script]))
    outputs = []
    for path in (run, run / "checkpoint.pt", run):
        capsys.readouterr()
        script.main(["--evaluate", str(path), "--eval-episodes", "3"])
        outputs.append(capsys.readouterr().out.splitlines()[1:])
        (run / "agent.pt").unlink(missing_ok=True)
    assert outputs[0] == outputs[1] == outputs[2]


def test_an_agent_that_was_tracked_can_be_evaluated_without_weights_and_biases(monkeypatch, capsys):
    run = sdsac_classic.train(sdsac_classic.Args(**FLAGS[sdsac_classic]))
    for name in ("agent.pt", "checkpoint.pt"):
        state = torch.load(run / name, weights_only=True)
        state["args"]["track"] = True
        torch.save(state, run / name)
    monkeypatch.setattr(sdsac_classic.importlib.util, "find_spec", lambda name: None)
    sdsac_classic.main(["--evaluate", str(run), "--eval-episodes", "2"])
    assert "greedy" in capsys.readouterr().out
    sdsac_classic.main(["--resume", str(run), "--no-track"])


@SCRIPTS
def test_the_trained_agent_is_filmed_when_asked(script, monkeypatch, capsys):
    films = []
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda name: SimpleNamespace())
    monkeypatch.setattr(script, "film", lambda actor, args, directory, seed: films.append(directory) or directory / "x")
    run = script.train(script.Args(**FLAGS[script], capture_video=True))
    script.main(["--evaluate", str(run), "--eval-episodes", "2", "--capture-video"])
    assert films == [run / "videos"] * 2
    assert len(re.findall(r"^filmed: ", capsys.readouterr().out, re.M)) == 2
