"""sdsac_atari.py with randomly shifted observations in the update, as DrQ has them (Kostrikov et al. 2020).

    python benchmark/random_shift.py --shift 4 --env-id BreakoutNoFrameskip-v4 --total-timesteps 200000

Each sampled observation is moved by up to --shift pixels in both directions, its four frames alike, and what comes in
at the edge repeats the edge. An observation and the one that follows are moved apart. The shifts come from the replay
buffer's random stream; what is stored, acted on and evaluated is not moved. All other flags are the script's.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import sdsac_atari as script


@dataclass
class Args(script.Args):
    exp_name: str = "random_shift"
    """the name of this experiment"""
    shift: int = 4
    """pixels that a sampled observation is moved by at most, in each direction"""


def moved(frames: Tensor, shifts: Tensor) -> Tensor:
    """`frames` (N, 4, 84, 84) moved by `shifts` (2, N) int64, down and right: pixel (i, j) is what was at (i - down,
    j - right), or at the edge next to it.
    """
    size = frames.shape[-1]
    rows, columns = (torch.arange(size, device=frames.device) - shifts[..., None]).clamp(0, size - 1)  # (N, 84) each
    frames = frames.gather(2, rows[:, None, :, None].expand(frames.shape))
    return frames.gather(3, columns[:, None, None, :].expand(frames.shape))


def shift_samples(script, shift: int) -> None:
    """Patches the module `script`: what is sampled is moved by up to `shift` pixels."""

    class ReplayBuffer(script.ReplayBuffer):
        def pick(self, batch_size):
            frames, numbers = super().pick(batch_size)
            shifts = self.rng.integers(-shift, shift + 1, (4, batch_size)).astype(np.float32)
            return frames, torch.cat([numbers, torch.from_numpy(shifts)])

        def batch(self, frames, numbers):
            batch, shifts = super().batch(frames, numbers[:4]), numbers[4:].long()
            return batch._replace(
                observations=moved(batch.observations, shifts[:2]),
                next_observations=moved(batch.next_observations, shifts[2:]),
            )

    script.ReplayBuffer = ReplayBuffer


if __name__ == "__main__":
    script.Args = Args
    args = script.read_args()
    if not 0 <= args.shift < 84:
        script.refuse(f"--shift {args.shift}: must be from 0 to 83")
    shift_samples(script, args.shift)
    script.main()
