"""sdsac_atari.py with plain first filters, whose sums may be anything: a plain background drives them. Flags as there.

python benchmark/plain_filters.py --env-id PongNoFrameskip-v4 --total-timesteps 400000
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import sdsac_atari as script


@dataclass
class Args(script.Args):
    exp_name: str = "plain_filters"
    """the name of this experiment"""


class BlockConv2d(script.BlockConv2d):
    def forward(self, blocks: Tensor) -> Tensor:
        weight = self.weight.unflatten(3, (2, 4)).unflatten(2, (2, 4)).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
        return F.conv2d(blocks, weight, self.bias)


if __name__ == "__main__":
    script.BlockConv2d = BlockConv2d
    script.Args = Args
    script.main()
