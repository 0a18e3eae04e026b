"""One contestant of benchmark/speed.py, in its own process and virtual environment.

python benchmark/speed_contestants.py NAME TASK THREADS SKIPPED UPDATES
prints {"steps_per_s", "updates_per_s", "startup_s", "peak_mb"} as JSON in its last line.

Every contestant trains with its own loop: its update is wrapped by a clock, which starts after SKIPPED updates and
stops the program UPDATES later. Start-up runs from the launch of the process to the end of the first update.
"""

import json
import os
import resource
import runpy
import sys
import tempfile
import time
from pathlib import Path

LAUNCHED = float(os.environ["LAUNCHED"])
NAME, TASK = sys.argv[1:3]
THREADS, SKIPPED, UPDATES = map(int, sys.argv[3:6])
STARTS = 256 if TASK == "classic" else 2_000  # steps before the first update


class Clock:
    """Counts updates; when it has seen enough it prints what they cost and ends the process."""

    def __init__(self, steps_per_update: float):
        self.steps_per_update, self.calls, self.startup, self.start = steps_per_update, 0, 0.0, 0.0

    def wrap(self, function):
        def timed(*args, **kwargs):
            if self.calls == SKIPPED:
                self.start = time.perf_counter()
            if self.calls == SKIPPED + UPDATES:
                rate = UPDATES / (time.perf_counter() - self.start)
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                figures = {"steps_per_s": rate * self.steps_per_update, "updates_per_s": rate}
                print(json.dumps(figures | {"startup_s": self.startup, "peak_mb": peak}), flush=True)
                os._exit(0)
            result = function(*args, **kwargs)
            if self.calls == 0:
                self.startup = time.time() - LAUNCHED
            self.calls += 1
            return result

        return timed


def this_project() -> None:
    """CartPole: batch 256, one update per step, two layers of 256. Breakout: the defaults, one update per 4 steps,
    but for the buffer's size, random steps and, unless NAME is "with shifts", random shifts."""
    compile = NAME in ("with --compile", "with shifts")
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    if TASK == "classic":
        import sdsac_classic as script

        args = script.Args(batch_size=256, update_frequency=1, learning_starts=STARTS, seed=1, compile=compile)
    else:
        import sdsac_atari as script

        flags = {"learning_starts": STARTS, "buffer_size": 100_000, "cuda": False, "compile": compile}
        if NAME != "with shifts":
            flags["random_shift"] = 0  # no peer shifts observations
        args = script.Args(**flags)
    script.torch.set_num_threads(THREADS)
    script.torch.set_num_threads = lambda threads: None  # the classic script would set one
    script.update = Clock(args.update_frequency).wrap(script.update)
    script.train(args)


def plain_form() -> None:
    """This project on Breakout with the update of plain.py: three encoders, float32, default layout, plain Adam."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import plain

    import sdsac_atari as script

    plain.install(script)
    this_project()


def cleanrl() -> None:
    """CleanRL's sac_atari.py as it stands; Breakout only. Its replay buffer is sampled once per update."""
    sys.path.insert(0, os.environ["CLEANRL"])
    import ale_py  # noqa: F401, registers the games
    import torch
    from cleanrl_utils.buffers import ReplayBuffer

    torch.set_num_threads(THREADS)
    ReplayBuffer.sample = Clock(4).wrap(ReplayBuffer.sample)
    flags = f"--env-id BreakoutNoFrameskip-v4 --no-cuda --buffer-size 10000 --learning-starts {STARTS}"
    sys.argv = ["sac_atari.py", *flags.split()]
    runpy.run_path(os.environ["CLEANRL"] + "/cleanrl/sac_atari.py", run_name="__main__")


def stable_baselines3(algorithm, policy, clock, **settings) -> None:
    """Stable-Baselines3's loop, which sb3-soft shares, with its own wrappers for Atari."""
    import torch

    torch.set_num_threads(THREADS)
    if TASK == "classic":
        env = "CartPole-v1"
    else:
        import ale_py
        import gymnasium as gym
        from stable_baselines3.common.env_util import make_atari_env
        from stable_baselines3.common.vec_env import VecFrameStack

        gym.register_envs(ale_py)
        env = VecFrameStack(make_atari_env("BreakoutNoFrameskip-v4", n_envs=1), 4)
        settings |= {"buffer_size": 10_000, "train_freq": 4}
    model = algorithm(policy, env, learning_starts=STARTS, device="cpu", seed=1, **settings)
    model.train = clock.wrap(model.train)
    model.learn(10_000_000)


def sb3_soft() -> None:
    from sb3_soft import SDSAC

    if TASK == "classic":
        stable_baselines3(SDSAC, "MlpPolicy", Clock(1), batch_size=256, policy_kwargs={"net_arch": [256, 256]})
    else:
        stable_baselines3(SDSAC, "CnnPolicy", Clock(4), batch_size=64)


def sb3_dqn() -> None:
    from stable_baselines3 import DQN

    if TASK == "classic":
        settings = {"batch_size": 256, "train_freq": 1, "policy_kwargs": {"net_arch": [256, 256]}}
        stable_baselines3(DQN, "MlpPolicy", Clock(1), **settings)
    else:
        stable_baselines3(DQN, "CnnPolicy", Clock(4), batch_size=64)


def tianshou_sac() -> None:
    """Tianshou's algorithm, buffer and collector, in the bare loop of its off-policy trainer; CartPole only."""
    import gymnasium as gym
    import torch
    from tianshou.algorithm.modelfree.discrete_sac import DiscreteSAC, DiscreteSACPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.data import Collector, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv
    from tianshou.utils.net.common import Net
    from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic
    from tianshou.utils.torch_utils import policy_within_training_step

    torch.set_num_threads(THREADS)
    env = gym.make("CartPole-v1")

    def body():
        return Net(state_shape=(4,), hidden_sizes=[256, 256])

    actor = DiscreteActor(preprocess_net=body(), action_shape=2, softmax_output=False)
    critics = [DiscreteCritic(preprocess_net=body(), last_size=2) for _ in range(2)]
    adam = [AdamOptimizerFactory(lr=3e-4) for _ in range(3)]
    algorithm = DiscreteSAC(
        policy=DiscreteSACPolicy(actor=actor, action_space=env.action_space),
        policy_optim=adam[0],
        critic=critics[0],
        critic_optim=adam[1],
        critic2=critics[1],
        critic2_optim=adam[2],
    )
    buffer = VectorReplayBuffer(100_000, 1)
    collector = Collector(algorithm, DummyVectorEnv([lambda: gym.make("CartPole-v1")]), buffer)
    collector.reset()
    collector.collect(n_step=STARTS, random=True)
    update = Clock(1).wrap(algorithm.update)
    while True:
        with policy_within_training_step(algorithm.policy):
            collector.collect(n_step=1)
            update(buffer=buffer, sample_size=256)


if __name__ == "__main__":
    os.chdir(tempfile.mkdtemp())
    {
        "this project": this_project,
        "with --compile": this_project,
        "with shifts": this_project,
        "plain form": plain_form,
        "cleanrl": cleanrl,
        "sb3-soft": sb3_soft,
        "sb3-dqn": sb3_dqn,
        "tianshou": tianshou_sac,
    }[NAME]()
