"""sdsac_atari.py with a smaller n from some step on: the buffer keeps single steps, so n can change at any time.

    python benchmark/switched_n.py --switch-step 100000 --final-n-step 1 --total-timesteps 190000

Chains of --n-step steps before, of --final-n-step after. All other flags are the script's, and with a switch that is
never reached so is the run. `diagnostics/q_monte_carlo` counts the entropy every --n-step steps throughout.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import sdsac_atari as script


@dataclass
class Args(script.Args):
    exp_name: str = "switched_n"
    """the name of this experiment"""
    switch_step: int = 100_000
    """steps of the environments, resets included, after which chains are of --final-n-step steps"""
    final_n_step: int = 1
    """steps of reward before the bootstrap from then on, at most --n-step"""


def switch(script, switch_step: int, n_step: int) -> None:
    """Patches the module `script`: chains that are sampled from `switch_step` on have `n_step` steps."""

    class ReplayBuffer(script.ReplayBuffer):
        def pick(self, batch_size):
            if self.steps * self.num_envs >= switch_step:
                self.n_step, self.powers = n_step, self.powers[: n_step + 1]
            return super().pick(batch_size)

    script.ReplayBuffer = ReplayBuffer


if __name__ == "__main__":
    script.Args = Args
    args = script.read_args()
    if not 1 <= args.final_n_step <= args.n_step:
        script.refuse(f"--final-n-step {args.final_n_step}: must be from 1 to --n-step {args.n_step}")
    switch(script, args.switch_step, args.final_n_step)
    script.main()
