"""sdsac_atari.py with less entropy bonus in the critics' target than in the actor loss: the two decoupled, as
"Dissecting Discrete Soft Actor-Critic" (arXiv:2509.09838) has them.

    python benchmark/decoupled_entropy.py --target-bonus 0 --env-id PongNoFrameskip-v4 --total-timesteps 200000

V(s) = sum_a pi(a|s) [Q(s,a) - b alpha log pi(a|s)] in the target, b being --target-bonus; the actor loss, the penalty
and the temperature are the script's, and so are all other flags. With b = 1 this is the script.
`diagnostics/q_monte_carlo` still contains the whole bonus.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import sdsac_atari as script


@dataclass
class Args(script.Args):
    exp_name: str = "decoupled_entropy"
    """the name of this experiment"""
    target_bonus: float = 0.0
    """share of the entropy bonus that is left in the critics' target, from 0 to 1"""


def decouple(script, target_bonus: float) -> None:
    """Patches the module `script`: soft values in targets, but not those in actor losses, get less bonus."""
    whole = script.soft_value

    def actor_loss(log_pi, q, alpha, old_entropy, beta):
        return -whole(q.detach(), log_pi, alpha).mean() + script.entropy_penalty(log_pi, old_entropy, beta)

    script.soft_value = lambda q, log_pi, alpha: whole(q, log_pi, target_bonus * alpha)
    script.actor_loss = actor_loss


if __name__ == "__main__":
    script.Args = Args
    bonus = script.read_args().target_bonus
    if not 0 <= bonus <= 1:
        script.refuse(f"--target-bonus {bonus}: must be from 0 to 1")
    decouple(script, bonus)
    script.main()
