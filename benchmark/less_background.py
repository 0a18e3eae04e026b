"""sdsac_atari.py with the background taken off the pixels: its first filters do not see one, but in bfloat16 what they
do see is rounded away beside it. Flags as there.

python benchmark/less_background.py --env-id PongNoFrameskip-v4 --total-timesteps 400000
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import sdsac_atari as script


@dataclass
class Args(script.Args):
    exp_name: str = "less_background"
    """the name of this experiment"""


class Encoder(script.Encoder):
    @staticmethod
    def scale(observations: Tensor) -> Tensor:
        """The script's, of (pixel - background) / 255, in [-1, 1]: the background is the median of the last pixels of
        the newest frame's blocks, and taking it off is exact in bfloat16.
        """
        dtype = torch.bfloat16 if script.BF16.get(observations.device.type, False) else torch.float32
        words = observations.flatten(1).view(torch.int32)
        blocks = words.view(len(observations), -1, 21, 4, 21).permute(0, 2, 4, 1, 3).flatten(1).view(torch.uint8)
        background = blocks[:, 63::64].median(1, keepdim=True).values  # a block has 64 values, the newest frame's last
        return blocks.to(dtype).sub_(background).div_(255).view(-1, 21, 21, 64).permute(0, 3, 1, 2)


if __name__ == "__main__":
    script.Encoder = Encoder
    script.Args = Args
    script.main()
