"""sdsac_atari.py with another epsilon in Adam: a larger one makes the steps of weights with small gradients smaller.

    python benchmark/adam_epsilon.py --epsilon 1e-4 --env-id BreakoutNoFrameskip-v4 --total-timesteps 200000

PyTorch's default, the script's, is 1e-8; CleanRL's sac_atari.py has 1e-4, Rainbow (Hessel et al. 2018) 1.5e-4. It goes
to the optimisers of actor and critics; the temperature's keeps its own, and all other flags are the script's.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import sdsac_atari as script


@dataclass
class Args(script.Args):
    exp_name: str = "adam_epsilon"
    """the name of this experiment"""
    epsilon: float = 1e-4
    """what Adam adds to the root of the second moment, above 0"""


def enlarge(script, epsilon: float) -> None:
    """Patches the module `script`: agents are made with this epsilon."""
    make_agent = script.make_agent

    def with_epsilon(*args):
        agent = make_agent(*args)
        for optimizer in (agent.actor_optimizer, agent.q_optimizer):
            optimizer.param_groups[0]["eps"] = epsilon
        return agent

    script.make_agent = with_epsilon


if __name__ == "__main__":
    script.Args = Args
    epsilon = script.read_args().epsilon
    if not 0 < epsilon <= 1:
        script.refuse(f"--epsilon {epsilon}: must be above 0 and at most 1")
    enlarge(script, epsilon)
    script.main()
