"""sdsac_atari.py with an encoder each for the actor and the two critics, as CleanRL's `sac_atari.py` has them, in the
place of the one that the script's networks share.

    python benchmark/separate_encoders.py --env-id PongNoFrameskip-v4 --total-timesteps 150000 --seed 3

Takes the script's flags; --compile, the default, does nothing here. The actor's loss trains the actor's own encoder;
all else is as in the script, precision and memory layout included.
"""

import copy
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import sdsac_atari as script


@dataclass
class Args(script.Args):
    exp_name: str = "separate_encoders"
    """the name of this experiment"""


shared_agent = script.make_agent


def make_agent(args, observation_shape, num_actions, device):
    agent = shared_agent(args, observation_shape, num_actions, device)
    agent.encoder = agent.encoder_target = torch.nn.Module()
    agent.actor = script.Actor(script.Encoder(observation_shape), num_actions).to(device)
    agent.qf1, agent.qf2 = (
        script.SoftQNetwork(script.Encoder(observation_shape), num_actions).to(device) for _ in range(2)
    )
    agent.qf1_target, agent.qf2_target = (copy.deepcopy(q).requires_grad_(False) for q in (agent.qf1, agent.qf2))

    def adam(parameters, lr):
        return torch.optim.Adam(parameters, lr=torch.tensor(lr, device=device), fused=True, capturable=True)

    agent.actor_optimizer = adam(agent.actor.parameters(), args.policy_lr)
    agent.q_optimizer = adam([*agent.qf1.parameters(), *agent.qf2.parameters()], args.q_lr)
    return agent


def descend(optimizer, loss, max_grad_norm):
    gradients = torch.autograd.grad(loss, optimizer.param_groups[0]["params"])
    norm = torch.nn.utils.get_total_norm(gradients)
    script.descend(optimizer, gradients, max_grad_norm, norm)
    return norm


def update(agent, batch, args, compute):
    """The script's `update`, every network called whole."""
    clip_range = args.clip_range if args.q_clip else None
    beta = args.beta if args.entropy_penalty else 0.0
    alpha = agent.log_alpha.detach().exp()
    actions = batch.actions.unsqueeze(1)
    observations = script.Encoder.scale(batch.observations)
    next_observations = script.Encoder.scale(batch.next_observations)

    with torch.no_grad():
        next_log_pi = F.log_softmax(agent.actor(next_observations), dim=1)
        next_q = script.average_or_min(
            agent.qf1_target(next_observations), agent.qf2_target(next_observations), args.double_average
        )
        y = batch.rewards + batch.discounts * script.soft_value(next_q, next_log_pi, alpha)
        q1_target = agent.qf1_target(observations).gather(1, actions).squeeze(1)
        q2_target = agent.qf2_target(observations).gather(1, actions).squeeze(1)

    q1, q2 = agent.qf1(observations), agent.qf2(observations)
    q1_taken, q2_taken = q1.gather(1, actions).squeeze(1), q2.gather(1, actions).squeeze(1)
    qf1_loss = script.critic_loss(q1_taken, q1_target, y, clip_range)
    qf2_loss = script.critic_loss(q2_taken, q2_target, y, clip_range)
    critic_grad_norm = descend(agent.q_optimizer, qf1_loss + qf2_loss, args.max_grad_norm)

    log_pi = F.log_softmax(agent.actor(observations), dim=1)
    q = script.average_or_min(q1, q2, args.double_average)
    policy_loss = script.actor_loss(log_pi, q, alpha, batch.old_entropies, beta)
    actor_grad_norm = descend(agent.actor_optimizer, policy_loss, args.max_grad_norm)

    entropy = script.entropy_of(log_pi.detach())
    if args.autotune:
        target_entropy = args.target_entropy_scale * torch.tensor(float(log_pi.shape[1])).log()
        descend(agent.a_optimizer, script.temperature_loss(agent.log_alpha, entropy, target_entropy), None)

    with torch.no_grad():
        online = [*agent.qf1.parameters(), *agent.qf2.parameters()]
        target = [*agent.qf1_target.parameters(), *agent.qf2_target.parameters()]
        torch._foreach_lerp_(target, online, [agent.target_step] * len(target))

    metrics = {
        "losses/alpha": alpha,
        "losses/qf1_values": q1_taken.detach().mean(),
        "losses/qf2_values": q2_taken.detach().mean(),
        "losses/qf1_loss": qf1_loss.detach(),
        "losses/qf2_loss": qf2_loss.detach(),
        "losses/actor_loss": policy_loss.detach(),
        "losses/critic_grad_norm": critic_grad_norm,
        "losses/actor_grad_norm": actor_grad_norm,
        "policy/entropy": entropy.mean(),
        "policy/old_entropy": batch.old_entropies.mean(),
    }
    script.latch(agent.not_finite, torch.stack([*metrics.values()]).isfinite())
    return metrics


script.make_agent, script.update = make_agent, update

if __name__ == "__main__":
    script.Args = Args
    script.main()
