"""sdsac_atari.py with the weights that PyTorch's layers start from, in the place of orthogonal ones.

    python benchmark/pytorch_weights.py --env-id PongNoFrameskip-v4 --total-timesteps 100000 --seed 21

Takes the script's flags.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import sdsac_atari as script


@dataclass
class Args(script.Args):
    exp_name: str = "pytorch_weights"
    """the name of this experiment"""


if __name__ == "__main__":
    script.nn.init.orthogonal_ = script.nn.init.zeros_ = lambda weights, *args: weights
    script.Args = Args
    script.main()
