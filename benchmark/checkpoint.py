"""What checkpoints of the Atari script cost: size and time, with a replay buffer full of random frames.

python benchmark/checkpoint.py --directory DIR
"""

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import sdsac_atari


@dataclass
class Args:
    directory: Path
    """where to write, and to delete again; it must not exist"""
    transitions: int = 1_000_000
    """transitions in the replay buffer"""
    new: int = 100_000
    """transitions between two checkpoints"""


def main(args: Args) -> None:
    run = sdsac_atari.Args(buffer_size=args.transitions)
    shape, num_envs = (4, 84, 84), run.num_envs
    agent = sdsac_atari.make_agent(run, shape, 4, "cpu")
    state = sdsac_atari.agent_state(agent, run, shape, 4)
    buffer = sdsac_atari.ReplayBuffer(args.transitions, num_envs, shape, run.n_step, run.gamma)
    rng, none = np.random.default_rng(0), np.zeros(num_envs, bool)
    frames = rng.integers(256, size=(1000, num_envs, 1, 84, 84), dtype=np.uint8)

    def fill(transitions: int) -> None:
        for k in range(transitions // num_envs):
            buffer.add(frames[k % 1000], none, none, none, none, none, none)

    def timed(what: str, function, *arguments) -> None:
        start = time.perf_counter()
        function(*arguments)
        size = sum(path.stat().st_size for path in args.directory.rglob("*") if path.is_file())
        print(f"{what:48}{time.perf_counter() - start:7.1f} s, {size / 1e9:.2f} GB in the directory", flush=True)

    args.directory.mkdir(parents=True)
    try:
        fill(args.transitions)
        save = (sdsac_atari.save_checkpoint, args.directory, state, agent, buffer, {})
        timed(f"first checkpoint of {args.transitions:,} transitions", *save)
        fill(args.new)
        timed(f"checkpoint with {args.new:,} new ones", *save)
        fill(1000)
        timed("checkpoint with 1,000 new ones", *save)
        timed("loading", sdsac_atari.load_checkpoint, args.directory, agent, buffer, torch.device("cpu"))
    finally:
        shutil.rmtree(args.directory)


if __name__ == "__main__":
    main(tyro.cli(Args))
