"""sdsac_atari.py with other random shifts than DrQ's: of a part of the batch, by whole steps of several pixels, or the
same for both observations of a transition.

    python benchmark/shift_kinds.py --random-shift 4 --pixels 4 --env-id PongNoFrameskip-v4
    python benchmark/shift_kinds.py --random-shift 4 --share 0.5 --env-id PongNoFrameskip-v4

Takes the script's flags. Shifts of 4 pixels, the first convolution's stride, move what it computes by whole cells and
change nothing else in it but at the edges. With a share of 0.5 half of the transitions are seen as they are stored.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import sdsac_atari as script


@dataclass
class Args(script.Args):
    exp_name: str = "shift_kinds"
    """the name of this experiment"""
    pixels: int = 1
    """shifts are by multiples of so many pixels, up to --random-shift"""
    share: float = 1.0
    """probability that a transition's two observations are shifted"""
    alike: bool = False
    """whether both are shifted by the same"""


def patch(script, pixels: int, share: float, alike: bool) -> None:
    """Patches the module `script`: a transition's observations are moved with probability `share`, by multiples of
    `pixels`, down, right, and, drawn anew or `alike`, the next ones."""

    class ReplayBuffer(script.ReplayBuffer):
        def pick(self, batch_size):
            frames, numbers = super().pick(batch_size)
            most = self.random_shift // pixels
            shifts = self.rng.integers(-most, most, (4, batch_size), endpoint=True) * pixels
            shifts *= self.rng.random(batch_size) < share
            if alike:
                shifts[2:] = shifts[:2]
            numbers[4:] = torch.from_numpy(shifts.astype(np.float32))
            return frames, numbers

    script.ReplayBuffer = ReplayBuffer


if __name__ == "__main__":
    script.Args = Args
    args = script.read_args()
    if not 1 <= args.pixels <= args.random_shift:
        script.refuse(f"--pixels {args.pixels}: must be from 1 to --random-shift {args.random_shift}")
    if not 0 < args.share <= 1:
        script.refuse(f"--share {args.share:g}: must be above 0 and at most 1")
    patch(script, args.pixels, args.share, args.alike)
    script.main()
