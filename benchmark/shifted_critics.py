"""sdsac_atari.py with random shifts for the critics' regression only: the s at which Q moves towards its target.

    python benchmark/shifted_critics.py --random-shift 2 --env-id PongNoFrameskip-v4

The target is taken at s', the actor loss and the policy's entropy at s, as they are stored and as the actor meets them
in games, as in SVEA (Hansen et al. 2021, arXiv:2107.00644), whose critics see s unmoved as well. Takes the script's
flags, of which --autotune is refused; the actor's forward pass is one more.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import sdsac_atari as script


@dataclass
class Args(script.Args):
    exp_name: str = "shifted_critics"
    """the name of this experiment"""


def shift_critics(script) -> None:
    """Patches the module `script`: a batch's observations are 2B, s as moved, then s as stored; the actor's are the
    latter, and its gradient and metrics are taken there.
    """
    as_it_is = script.gradients

    class ReplayBuffer(script.ReplayBuffer):
        def batch(self, frames, numbers):
            stored, next_observations = frames if frames.dtype == torch.uint8 else self.gather(frames)
            moved = super().batch(torch.stack([stored, next_observations]), numbers)
            return moved._replace(
                observations=torch.cat([moved.observations, stored]), next_observations=next_observations
            )

    def gradients(agent, batch, args):
        moved, stored = batch.observations.chunk(2)
        of_critics, _, _, metrics = as_it_is(agent, batch._replace(observations=moved), args)
        with torch.no_grad():
            features = agent.encoder(script.Encoder.scale(stored))
            q = script.average_or_min(agent.qf1.head(features), agent.qf2.head(features), args.double_average)
        log_pi = F.log_softmax(agent.actor.head(features), dim=1)
        beta = args.beta if args.entropy_penalty else 0.0
        alpha = agent.log_alpha.detach().exp()
        loss = script.actor_loss(log_pi, q, alpha, batch.old_entropies, beta)
        of_actor = torch.autograd.grad(loss, [*agent.actor.head.parameters()])
        metrics |= {
            "losses/actor_loss": loss.detach(),
            "losses/entropy_penalty": script.entropy_penalty(log_pi.detach(), batch.old_entropies, beta),
            "losses/actor_grad_norm": torch.nn.utils.get_total_norm(of_actor),
            "policy/entropy": script.entropy_of(log_pi.detach()).mean(),
        }
        return of_critics, of_actor, (), metrics

    script.ReplayBuffer, script.gradients = ReplayBuffer, gradients


if __name__ == "__main__":
    script.Args = Args
    if script.read_args().autotune:
        script.refuse("--autotune: the temperature is fixed here")
    shift_critics(script)
    script.main()
