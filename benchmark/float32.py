"""sdsac_atari.py with the encoder in float32 everywhere, to see what bfloat16 does to the scores. Flags as there.

python benchmark/float32.py --env-id BreakoutNoFrameskip-v4 --total-timesteps 200000
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import sdsac_atari as script


@dataclass
class Args(script.Args):
    exp_name: str = "float32"
    """the name of this experiment"""


if __name__ == "__main__":
    script.BF16.update(cpu=False, cuda=False)
    script.Args = Args
    script.main()
