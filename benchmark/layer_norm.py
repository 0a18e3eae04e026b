"""sdsac_atari.py with a layer norm on the encoder's features, before their ReLU: fewer of them die. Flags as there.

python benchmark/layer_norm.py --env-id BreakoutNoFrameskip-v4 --total-timesteps 200000
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import sdsac_atari as script


@dataclass
class Args(script.Args):
    exp_name: str = "layer_norm"
    """the name of this experiment"""


class Encoder(script.Encoder):
    def __init__(self, observation_shape: tuple[int, ...]):
        super().__init__(observation_shape)
        self.layers.insert(len(self.layers) - 1, nn.LayerNorm(self.num_features))


if __name__ == "__main__":
    script.Encoder = Encoder
    script.Args = Args
    script.main()
