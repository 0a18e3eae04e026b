"""What a run takes of memory, and that it does not grow: two measurements of resident size.

python benchmark/memory.py

1. sdsac_atari.py's replay buffer: growth from before it exists to `--transitions` stored, while batches are sampled.
2. A run of sdsac_classic.py, CartPole-v1 for 200,000 steps, whose buffer of 10,000 rows is full after a twentieth.
"""

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import sdsac_atari
import sdsac_classic


@dataclass
class Args:
    transitions: int = 1_000_000
    """capacity of the Atari buffer, which is filled"""
    steps: int = 200_000
    """agent steps of the run"""


def resident() -> float:
    """Resident size of this process in MB."""
    return psutil.Process().memory_info().rss / 1e6


def atari_buffer(transitions: int) -> None:
    num_envs, rng = 8, np.random.default_rng(0)
    observations = rng.integers(256, size=(64, num_envs, 4, 84, 84)).astype(np.uint8)
    numbers, none = rng.random((3, num_envs)), np.zeros(num_envs, bool)
    before = resident()
    buffer = sdsac_atari.ReplayBuffer(transitions, num_envs, (4, 84, 84), 3, 0.99)
    for step in range(buffer.rows):
        ended = rng.random(num_envs) < 0.001
        buffer.add(observations[step % 64], numbers[0] * 4, numbers[1], ended, none, numbers[2], none)
        if step >= 100:
            buffer.sample(64)  # half as often as at one update per 4 steps
        if (step + 1) % (buffer.rows // 5) == 0:
            print(f"{(step + 1) * num_envs:>9,} transitions: {(resident() - before) / 1e3:.2f} GB more", flush=True)


def classic_run(steps: int) -> None:
    add, calls = sdsac_classic.ReplayBuffer.add, 0

    def counted(*arguments):
        nonlocal calls
        calls += 1
        if calls % (steps // 10) == 0:
            print(f"{calls:>9,} steps: {resident():.1f} MB", flush=True)
        add(*arguments)

    sdsac_classic.ReplayBuffer.add = counted
    os.chdir(tempfile.mkdtemp())
    sdsac_classic.train(sdsac_classic.Args(total_timesteps=steps, buffer_size=10_000, update_frequency=10))


if __name__ == "__main__":
    args = tyro.cli(Args)
    atari_buffer(args.transitions)
    classic_run(args.steps)
