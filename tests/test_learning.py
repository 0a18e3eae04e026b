"""The defaults learn: CartPole-v1 to Gymnasium's threshold, on seeds that no setting was chosen on."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import sdsac_classic

SEEDS = [11, 12]  # settings were chosen on 1 to 10 and 101 to 105; the README has the command for ten seeds


def greedy_mean(directory, seed):
    """Trains with the defaults below `directory`; the mean greedy return of 100 episodes."""
    os.chdir(directory)
    run_dir = sdsac_classic.train(sdsac_classic.Args(seed=seed))
    agent, args = sdsac_classic.load_agent(run_dir / "agent.pt", "cpu")
    return sdsac_classic.evaluate(agent.actor, args, episodes=100, greedy=True, seed=1000 + seed).mean()


def test_cartpole_reaches_its_threshold(tmp_path):
    assert sdsac_classic.Args().total_timesteps <= 50_000
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ProcessPoolExecutor(min(len(SEEDS), workers), multiprocessing.get_context("spawn")) as pool:
        means = list(pool.map(greedy_mean, [tmp_path] * len(SEEDS), SEEDS))
    assert min(means) >= 475, means
