"""Greedy and sampled returns of trained agents, each in environments of its own.

python benchmark/evaluate.py runs/CartPole-v1__sdsac_classic__*/agent.pt

Agents that benchmark/plain_filters.py wrote fit sdsac_atari.py's networks, which compute something else with their
weights: `python benchmark/plain_filters.py --evaluate` plays them.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


@dataclass
class Args:
    agents: tyro.conf.Positional[tuple[Path, ...]]
    """agent.pt files that one of the two scripts wrote"""
    episodes: int = 100
    """whole episodes per agent and mode"""
    seed: int = 1_000
    """seed of the environments and of the sampled actions; the agent's own seed is added"""


def main(args: Args) -> None:
    for path in args.agents:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if len(saved["observation_shape"]) == 3:  # stacked frames
            import sdsac_atari as script
        else:
            import sdsac_classic as script
        agent, trained = script.load_agent(path, "cpu")
        for greedy in (True, False):
            returns = script.evaluate(agent.actor, trained, args.episodes, greedy, args.seed + trained.seed)
            mode = f"{trained.env_id} seed {trained.seed} {'greedy ' if greedy else 'sampled'} {len(returns)} episodes"
            spread = f"deviation {returns.std():.1f}, from {returns.min():g} to {returns.max():g}"
            print(f"{mode}: mean {returns.mean():.1f}, {spread}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args))
