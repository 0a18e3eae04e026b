"""One run of a peer, in the virtual environment that benchmark/venvs.py makes for it.

    python benchmark/peers.py sb3-dqn --env-id CartPole-v1 --total-timesteps 50000 --seed 1 --eval-frequency 5000

Each peer trains with its own loop, in environments that count its steps, write what this project's scripts write
(charts/episodic_return, charts/episodic_length, eval/episodic_return) and end the run at the budget. Settings are those
that the peer's authors publish for the environment, or else the library's defaults. Atari is for sb3-dqn alone.

sb3-dqn and sb3-soft write checkpoints, every 100,000 steps and on SIGTERM, SIGINT, SIGUSR1 and SIGHUP, with what the
libraries themselves save; --resume RUN_DIR goes on from there with episodes and random streams of its own.
"""

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

with suppress(ImportError):  # not in Tianshou's virtual environment
    import ale_py
    from ale_py.vector_env import AtariVectorEnv

    gym.register_envs(ale_py)

CHECKPOINT_FREQUENCY = 100_000  # agent steps
EVALUATION_LIMIT = 1_000  # steps of an episode in evaluation where the environment sets no limit
GREEDY_EPSILON = 0.01  # of Atari evaluations, as in sdsac_atari.py
LINES = {
    "mininterval": 30,
    "miniters": 1,
    "smoothing": 1,
    "bar_format": "step {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left\n",
}

# hyperparams/dqn.yml and ppo.yml of rl-baselines3-zoo, commit 22e3ff2; "normalize" and "n_envs" are the zoo's own words
WIDE = {"policy_kwargs": {"net_arch": [256, 256]}}
ZOO_DQN = {
    "CartPole-v1": WIDE
    | {"learning_rate": 2.3e-3, "batch_size": 64, "learning_starts": 1000, "gamma": 0.99}
    | {"buffer_size": 100_000, "target_update_interval": 10, "train_freq": 256, "gradient_steps": 128}
    | {"exploration_fraction": 0.16, "exploration_final_eps": 0.04},
    "MountainCar-v0": WIDE
    | {"learning_rate": 4e-3, "batch_size": 128, "learning_starts": 1000, "gamma": 0.98}
    | {"buffer_size": 10_000, "target_update_interval": 600, "train_freq": 16, "gradient_steps": 8}
    | {"exploration_fraction": 0.2, "exploration_final_eps": 0.07},
    "Acrobot-v1": WIDE
    | {"learning_rate": 6.3e-4, "batch_size": 128, "learning_starts": 0, "gamma": 0.99}
    | {"buffer_size": 50_000, "target_update_interval": 250, "train_freq": 4, "gradient_steps": -1}
    | {"exploration_fraction": 0.12, "exploration_final_eps": 0.1},
}
ZOO_DQN["LunarLander-v3"] = ZOO_DQN["Acrobot-v1"]
ZOO_DQN_ATARI = (
    {"learning_rate": 1e-4, "batch_size": 32, "learning_starts": 100_000, "buffer_size": 100_000}
    | {"target_update_interval": 1000, "train_freq": 4, "gradient_steps": 1}
    | {"exploration_fraction": 0.1, "exploration_final_eps": 0.01}
)
ZOO_PPO = {
    "CartPole-v1": {"n_envs": 8, "n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20}
    | {"ent_coef": 0.0, "learning_rate": lambda left: 1e-3 * left, "clip_range": lambda left: 0.2 * left},
    "MountainCar-v0": {"normalize": True, "n_envs": 16, "n_steps": 16, "gae_lambda": 0.98, "gamma": 0.99}
    | {"n_epochs": 4, "ent_coef": 0.0},
    "Acrobot-v1": {"normalize": True, "n_envs": 16, "n_steps": 256, "gae_lambda": 0.94, "gamma": 0.99}
    | {"n_epochs": 4, "ent_coef": 0.0},
    "LunarLander-v3": {"n_envs": 16, "n_steps": 1024, "batch_size": 64, "gae_lambda": 0.98, "gamma": 0.999}
    | {"n_epochs": 4, "ent_coef": 0.01},
}


class BudgetSpent(Exception):
    """Raised by an environment after the run's last step: what ends every library's loop at the same step."""


class Stopped(Exception):
    """Raised by an environment when a signal has come and the checkpoint is written."""


def is_atari(env_id: str) -> bool:
    return "game" in gym.spec(env_id).kwargs


def make_env(env_id: str, limit: int | None = None) -> gym.Env:
    """A vector of float32 per step; a game as it is, frame by frame."""
    env = gym.make(env_id, disable_env_checker=True, max_episode_steps=limit)
    if is_atari(env_id):
        return env
    return gym.wrappers.DtypeObservation(gym.wrappers.FlattenObservation(env), np.float32)


def make_evaluation_envs(env_id: str, num_envs: int) -> gym.vector.VectorEnv:
    """What the greedy policy plays; a game is played whole, for its raw score, as `sdsac_atari.evaluate` has it."""
    spec = gym.spec(env_id)
    if not is_atari(env_id):
        limit = EVALUATION_LIMIT if spec.max_episode_steps is None else None
        return gym.vector.SyncVectorEnv([lambda: make_env(env_id, limit)] * num_envs)
    names = ("game", "max_num_frames_per_episode", "repeat_action_probability", "full_action_space")
    settings = {name: spec.kwargs[name] for name in names}
    return AtariVectorEnv(num_envs=num_envs, reward_clipping=False, **settings)


class Run:
    """Counts the agent steps of all training environments, logs, evaluates, writes checkpoints and ends the run."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.step = args, 0
        name = f"{args.env_id}__{args.exp_name}__{args.seed}__{int(time.time())}".replace("/", "-")
        self.run_dir = args.resume or Path("runs") / name
        if args.resume:
            self.step = torch.load(self.run_dir / "checkpoint.pt")["step"]
        self.writer = SummaryWriter(self.run_dir, purge_step=self.step + 1 if args.resume else None)
        self.bar = tqdm(initial=self.step, total=args.total_timesteps, unit=" steps", **LINES)
        self.greedy: Callable[[np.ndarray], np.ndarray] = None  # observations (N, ...) -> actions (N,); set by the peer
        self.save: Callable[[Path], None] | None = None  # writes the peer's state below a directory, if the peer can
        self.received: int | None = None  # the signal to stop at

    def make_env(self, wrap: Callable[[gym.Env], gym.Env] = lambda env: env) -> gym.Env:
        """One of the training environments. What `wrap` does to rewards and ends is left out of the returns."""
        return Counted(wrap(gym.wrappers.RecordEpisodeStatistics(make_env(self.args.env_id))), self)

    def count(self) -> None:
        self.step += 1
        self.bar.update()
        finished = self.step == self.args.total_timesteps
        if finished or (self.args.eval_frequency and self.step % self.args.eval_frequency == 0):
            self.writer.add_scalar("eval/episodic_return", self.evaluate().mean(), self.step)
        if finished:
            raise BudgetSpent
        if self.save and (self.received or self.step % CHECKPOINT_FREQUENCY == 0):
            self.checkpoint()
        if self.received:
            raise Stopped

    def save_with(self, save: Callable[[Path], None]) -> None:
        """From now on there are checkpoints, and signals stop the run at one. A second SIGINT ends it at once."""
        self.save = save
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as SIGHUP is under nohup
                signal.signal(number, self.note)

    def note(self, number: int, frame) -> None:
        self.received = number
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def state_dir(self) -> Path:
        """Where the state of this step lies; run.py deletes replay/ of finished runs."""
        return self.run_dir / "replay" / str(self.step)

    def checkpoint(self) -> None:
        """The peer's state, on the disk before checkpoint.pt says that it is there; then the one before goes."""
        self.writer.flush()
        shutil.rmtree(self.state_dir(), ignore_errors=True)
        self.state_dir().mkdir(parents=True)
        self.save(self.state_dir())
        os.sync()
        torch.save({"step": self.step}, self.run_dir / "checkpoint.pt.unfinished")
        os.replace(self.run_dir / "checkpoint.pt.unfinished", self.run_dir / "checkpoint.pt")
        for directory in self.state_dir().parent.iterdir():
            if directory != self.state_dir():
                shutil.rmtree(directory)

    def evaluate(self) -> np.ndarray:
        """Returns of the greedy policy, in up to 10 fresh environments that each play their quota of the episodes."""
        num_envs = min(self.args.eval_episodes, 10)
        quota = np.array([len(part) for part in np.array_split(np.arange(self.args.eval_episodes), num_envs)])
        envs = make_evaluation_envs(self.args.env_id, num_envs)
        epsilon = GREEDY_EPSILON if is_atari(self.args.env_id) else 0.0
        rng = np.random.default_rng(self.args.seed)
        seeds = np.random.SeedSequence((self.args.seed, 1)).generate_state(num_envs) & 0x7FFFFFFF
        observations, _ = envs.reset(seed=seeds.astype(np.int64) if is_atari(self.args.env_id) else seeds.tolist())
        returns, played, sums = [], np.zeros(num_envs, int), np.zeros(num_envs)
        while (played < quota).any():
            with torch.no_grad():
                actions = self.greedy(observations)
            uniform = rng.integers(envs.single_action_space.n, size=num_envs)
            actions = np.where(rng.random(num_envs) < epsilon, uniform, actions)
            observations, rewards, terminated, truncated, _ = envs.step(actions)
            sums += rewards  # the step that only resets, after each episode, has none
            for i in np.flatnonzero(terminated | truncated):
                if played[i] < quota[i]:
                    returns.append(sums[i])
                played[i] += 1
                sums[i] = 0
        envs.close()
        return np.array(returns)

    def finish(self, module: torch.nn.Module) -> None:
        """Writes agent.pt, which marks the run as finished, whole."""
        self.bar.close()
        self.writer.close()
        torch.save(module.state_dict(), self.run_dir / "agent.pt.unfinished")
        os.replace(self.run_dir / "agent.pt.unfinished", self.run_dir / "agent.pt")


class Counted(gym.Wrapper):
    """A training environment that reports its steps and whole episodes to the run."""

    def __init__(self, env: gym.Env, run: Run):
        super().__init__(env)
        self.run, self.length = run, 0

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.length += 1
        if "episode" in info:
            self.run.writer.add_scalar("charts/episodic_return", info["episode"]["r"], self.run.step + 1)
            self.run.writer.add_scalar("charts/episodic_length", self.length, self.run.step + 1)
            self.length = 0
        self.run.count()
        return observation, reward, terminated, truncated, info


# ----------------------------------------------------------------------------------------------------------------------
# Stable-Baselines3, and sb3-soft, which is built on it


def stable_baselines3(run: Run, algorithm, settings: dict) -> torch.nn.Module:
    """Trains and returns the policy. `settings` are the algorithm's, and the zoo's two."""
    from stable_baselines3.common.atari_wrappers import AtariWrapper
    from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

    settings, atari = dict(settings), is_atari(run.args.env_id)
    make_env = partial(run.make_env, AtariWrapper) if atari else run.make_env
    envs = DummyVecEnv([make_env] * settings.pop("n_envs", 1))
    normalize = settings.pop("normalize", False)
    if normalize:
        envs = VecNormalize(envs, gamma=settings["gamma"])
    if atari:
        envs = VecFrameStack(envs, 4)
    if run.args.resume:
        model = algorithm.load(run.state_dir() / "model.zip", envs, device="cpu")
        model.load_replay_buffer(run.state_dir() / "replay_buffer.pkl")
        model.set_random_seed(run.args.seed + run.step)  # or the first steps' random numbers would come again
        model.num_timesteps = run.step
    else:
        model = algorithm("CnnPolicy" if atari else "MlpPolicy", envs, seed=run.args.seed, device="cpu", **settings)

    def greedy(observations: np.ndarray) -> np.ndarray:
        return model.predict(envs.normalize_obs(observations) if normalize else observations, deterministic=True)[0]

    def save(directory: Path) -> None:
        model.save(directory / "model.zip")
        model.save_replay_buffer(directory / "replay_buffer.pkl")

    run.greedy = greedy
    if hasattr(model, "save_replay_buffer"):
        run.save_with(save)
    with suppress(BudgetSpent):
        model.learn(run.args.total_timesteps - run.step, reset_num_timesteps=not run.args.resume)
    return model.policy


def sb3_soft(run: Run) -> torch.nn.Module:
    from sb3_soft import SDSAC

    return stable_baselines3(run, SDSAC, {"buffer_size": run.args.total_timesteps})  # as good as its 1,000,000


def sb3_dqn(run: Run) -> torch.nn.Module:
    from stable_baselines3 import DQN

    published = ZOO_DQN_ATARI if is_atari(run.args.env_id) else ZOO_DQN.get(run.args.env_id, {})
    return stable_baselines3(run, DQN, {"buffer_size": run.args.total_timesteps} | published)


def sb3_ppo(run: Run) -> torch.nn.Module:
    from stable_baselines3 import PPO

    return stable_baselines3(run, PPO, ZOO_PPO.get(run.args.env_id, {}))


# ----------------------------------------------------------------------------------------------------------------------
# Tianshou: the settings of its own examples on CartPole, test/discrete/test_discrete_sac.py and test_reinforce.py


def tianshou(run: Run, make_algorithm: Callable, num_envs: int, parameters: Callable) -> torch.nn.Module:
    """Trains with the library's trainer and returns the policy."""
    from tianshou.data import Collector, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv

    np.random.seed(run.args.seed)
    torch.manual_seed(run.args.seed)
    envs = DummyVectorEnv([run.make_env] * num_envs)
    envs.seed(run.args.seed)
    env = make_env(run.args.env_id)  # for its spaces; Tianshou's vector environment shows those below all wrappers
    algorithm, actor = make_algorithm(env.observation_space.shape, env.action_space)
    run.greedy = lambda observations: actor(observations)[0].argmax(1).numpy()
    collector = Collector(algorithm, envs, VectorReplayBuffer(20_000, num_envs))
    with suppress(BudgetSpent):
        algorithm.run_training(parameters(training_collector=collector, max_epochs=10**6, show_progress=False))
    return algorithm.policy


def tianshou_sac(run: Run) -> torch.nn.Module:
    from tianshou.algorithm.modelfree.discrete_sac import DiscreteSAC, DiscreteSACPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.trainer import OffPolicyTrainerParams
    from tianshou.utils.net.common import Net
    from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic

    def make(shape: tuple, actions: gym.spaces.Discrete):
        def critic():
            return DiscreteCritic(preprocess_net=Net(state_shape=shape, hidden_sizes=[64, 64]), last_size=actions.n)

        body = Net(state_shape=shape, hidden_sizes=[64, 64])
        actor = DiscreteActor(preprocess_net=body, action_shape=actions.n, softmax_output=False)
        algorithm = DiscreteSAC(
            policy=DiscreteSACPolicy(actor=actor, action_space=actions),
            policy_optim=AdamOptimizerFactory(lr=1e-4),
            critic=critic(),
            critic_optim=AdamOptimizerFactory(lr=1e-3),
            critic2=critic(),
            critic2_optim=AdamOptimizerFactory(lr=1e-3),
            gamma=0.95,
            alpha=0.05,
            n_step_return_horizon=3,
        )
        return algorithm, actor

    parameters = partial(
        OffPolicyTrainerParams, collection_step_num_env_steps=10, update_step_num_gradient_steps_per_sample=0.1
    )
    return tianshou(run, make, 10, parameters)


def tianshou_reinforce(run: Run) -> torch.nn.Module:
    from tianshou.algorithm import Reinforce
    from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.trainer import OnPolicyTrainerParams
    from tianshou.utils.net.common import Net

    def make(shape: tuple, actions: gym.spaces.Discrete):
        actor = Net(state_shape=shape, action_shape=actions.n, hidden_sizes=[64, 64])
        for layer in actor.modules():
            if isinstance(layer, torch.nn.Linear):
                torch.nn.init.orthogonal_(layer.weight, gain=2**0.5)
                torch.nn.init.zeros_(layer.bias)
        policy = DiscreteActorPolicy(actor=actor, action_space=actions)
        optim = AdamOptimizerFactory(lr=1e-3)
        return Reinforce(policy=policy, optim=optim, gamma=0.95, return_standardization=True), actor

    parameters = partial(
        OnPolicyTrainerParams,
        collection_step_num_env_steps=None,
        collection_step_num_episodes=8,
        update_step_num_repetitions=2,
    )
    return tianshou(run, make, 8, parameters)


PEERS = {
    "sb3-soft": sb3_soft,
    "sb3-dqn": sb3_dqn,
    "sb3-ppo": sb3_ppo,
    "tianshou-sac": tianshou_sac,
    "tianshou-reinforce": tianshou_reinforce,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--env-id", default="CartPole-v1")
    parser.add_argument("--exp-name", default="peer")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--total-timesteps", type=int, default=50_000)
    parser.add_argument("--eval-frequency", type=int)
    parser.add_argument("--eval-episodes", type=int, default=100)
    parser.add_argument("--resume", type=Path, help="directory of an interrupted run of the same flags")
    args = parser.parse_args()
    if args.resume and not (args.resume / "checkpoint.pt").exists():
        parser.error(f"--resume {args.resume}: no checkpoint there")
    if is_atari(args.env_id) and args.peer != "sb3-dqn":
        parser.error(f"--env-id {args.env_id}: Atari is for sb3-dqn alone")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    torch.set_flush_denormal(True)  # as this project's scripts do: the same numbers in Adam, sooner
    run = Run(args)
    try:
        module = PEERS[args.peer](run)
    except Stopped:
        print(f"{signal.Signals(run.received).name}: stopped at step {run.step}; go on with --resume {run.run_dir}")
        sys.exit(128 + run.received)
    run.finish(module)


if __name__ == "__main__":
    main()
