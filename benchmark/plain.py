"""SD-SAC's update written plainly: what the scripts' `update` is measured against, in numbers and in speed.

Every network is called whole, in float32 and torch's default layout, and stepped by torch's plain Adam, one tensor
after the other. The losses are the script's own functions.
"""

import copy
from types import ModuleType

import torch
import torch.nn.functional as F


class PlainAgent:
    """A copy of a script's agent with plain optimisers; `separate` gives actor and critics an encoder each, as CleanRL
    and sb3-soft have it, and the actor's loss then trains the actor's.
    """

    def __init__(self, agent, args, separate: bool = False):
        networks = (agent.actor, agent.qf1, agent.qf2, agent.qf1_target, agent.qf2_target)
        copies = [copy.deepcopy(n) for n in networks] if separate else copy.deepcopy(networks)
        for network in copies:
            network.to(memory_format=torch.contiguous_format)
            make_plain(network.encoder)
        self.actor, self.qf1, self.qf2, self.qf1_target, self.qf2_target = copies
        self.log_alpha = agent.log_alpha.detach().clone().requires_grad_(args.autotune)
        self.actor_parameters = [*(self.actor if separate else self.actor.head).parameters()]
        self.critic_parameters = list(dict.fromkeys([*self.qf1.parameters(), *self.qf2.parameters()]))  # shared: once
        self.target_parameters = list(dict.fromkeys([*self.qf1_target.parameters(), *self.qf2_target.parameters()]))
        self.actor_optimizer = torch.optim.Adam(self.actor_parameters, args.policy_lr, foreach=False)
        self.q_optimizer = torch.optim.Adam(self.critic_parameters, args.q_lr, foreach=False)
        self.a_optimizer = torch.optim.Adam([self.log_alpha], args.q_lr, foreach=False)


class CentredConv2d(torch.nn.Conv2d):
    """torch's convolution on whole frames, with filters that sum to zero."""

    def forward(self, frames):
        filters = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(frames, filters, self.bias, self.stride)


def make_plain(encoder) -> None:
    """Puts the first convolution of an encoder, if it has one, on whole frames. The linear layer still takes features
    in the script's order, for the weights are the script's.
    """
    if hasattr(encoder, "layers"):
        encoder.layers[0].__class__ = CentredConv2d
        encoder.scale = lambda observations: observations.float() / 255


def plain_update(script: ModuleType, agent: PlainAgent, batch, args) -> dict[str, torch.Tensor]:
    """One update of Algorithm 1 with all losses at the weights before it; returns the losses by TensorBoard tag."""
    clip_range = args.clip_range if args.q_clip else None
    beta = args.beta if args.entropy_penalty else 0.0
    alpha = agent.log_alpha.detach().exp()
    actions = batch.actions.unsqueeze(1)

    with torch.no_grad():
        next_log_pi = F.log_softmax(agent.actor(batch.next_observations), dim=1)
        next_q = [target(batch.next_observations) for target in (agent.qf1_target, agent.qf2_target)]
        next_v = script.soft_value(script.average_or_min(*next_q, args.double_average), next_log_pi, alpha)
        y = batch.rewards + batch.discounts * next_v
    q, qf_losses = [], []
    for qf, target in ((agent.qf1, agent.qf1_target), (agent.qf2, agent.qf2_target)):
        with torch.no_grad():
            q_target = target(batch.observations).gather(1, actions).squeeze(1)
        q.append(qf(batch.observations))
        qf_losses.append(script.critic_loss(q[-1].gather(1, actions).squeeze(1), q_target, y, clip_range))
    log_pi = F.log_softmax(agent.actor(batch.observations), dim=1)
    mixed = script.average_or_min(*q, args.double_average)
    policy_loss = script.actor_loss(log_pi, mixed, alpha, batch.old_entropies, beta)
    critic_gradients = torch.autograd.grad(sum(qf_losses), agent.critic_parameters)
    actor_gradients = torch.autograd.grad(policy_loss, agent.actor_parameters)

    steps = [
        (agent.q_optimizer, agent.critic_parameters, critic_gradients),
        (agent.actor_optimizer, agent.actor_parameters, actor_gradients),
    ]
    if args.autotune:
        target_entropy = args.target_entropy_scale * torch.tensor(float(log_pi.shape[1])).log()
        alpha_loss = script.temperature_loss(agent.log_alpha, script.entropy_of(log_pi), target_entropy)
        steps.append((agent.a_optimizer, [agent.log_alpha], torch.autograd.grad(alpha_loss, agent.log_alpha)))
    for optimizer, parameters, gradients in steps:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    with torch.no_grad():
        for target, online in zip(agent.target_parameters, agent.critic_parameters, strict=True):
            target.lerp_(online, args.tau)
    return {
        "losses/qf1_values": q[0].detach().gather(1, actions).mean(),
        "losses/qf2_values": q[1].detach().gather(1, actions).mean(),
        "losses/qf1_loss": qf_losses[0].detach(),
        "losses/qf2_loss": qf_losses[1].detach(),
        "losses/actor_loss": policy_loss.detach(),
        "losses/critic_grad_norm": torch.nn.utils.get_total_norm(critic_gradients),
        "losses/actor_grad_norm": torch.nn.utils.get_total_norm(actor_gradients),
        "policy/entropy": script.entropy_of(log_pi.detach()).mean(),
    }


def install(script: ModuleType) -> None:
    """Puts `plain_update` with three encoders in the place of sdsac_atari's `update`, to see what it costs: the copies
    learn, and the script's own agent acts on, untrained.
    """
    script.BF16["cpu"], copies = False, {}

    def update(agent, batch, args, compute):
        if not copies:
            copies["agent"] = PlainAgent(agent, args, separate=True)
        return plain_update(script, copies["agent"], batch, args)

    script.update = update
