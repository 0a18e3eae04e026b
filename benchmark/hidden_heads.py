"""sdsac_atari.py with a hidden layer of 512 in each head, actor's and critics', in the place of linear heads: on the
convolutions, which is all that they then share, or on the 512 features that the script's heads share.

    python benchmark/hidden_heads.py --heads-on convolutions --env-id BreakoutNoFrameskip-v4 --total-timesteps 150000

All other flags are the script's; --resume and --evaluate of such runs need this script, too.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import sdsac_atari as script


@dataclass
class Args(script.Args):
    exp_name: str = "hidden_heads"
    """the name of this experiment"""
    heads_on: Literal["convolutions", "features"] = "convolutions"
    """what the heads share: the convolutions' output, or also the linear layer after them"""


class Convolutions(script.Encoder):
    """The encoder without its linear layer: (B, 3136)."""

    def __init__(self, observation_shape: tuple[int, ...]):
        super().__init__(observation_shape)
        self.num_features = self.layers[-2].in_features
        self.layers = self.layers[:-2]


class Head(nn.Module):
    """Features (B, F) -> values or logits (B, A). Its hidden layer is in bfloat16 where the encoder is."""

    def __init__(self, num_features: int, num_actions: int):
        super().__init__()
        self.hidden, self.output = nn.Linear(num_features, 512), nn.Linear(512, num_actions)
        nn.init.orthogonal_(self.hidden.weight, math.sqrt(2))
        nn.init.zeros_(self.hidden.bias)

    def forward(self, features: Tensor) -> Tensor:
        device = features.device.type
        with torch.autocast(device, torch.bfloat16, enabled=script.BF16.get(device, False)):
            hidden = self.hidden(features).relu()
        return self.output(hidden.float())


def with_head(network: type[nn.Module]) -> type[nn.Module]:
    class WithHead(network):
        def __init__(self, encoder: script.Encoder, num_actions: int):
            super().__init__(encoder, num_actions)
            self.head = Head(encoder.num_features, num_actions)

    return WithHead


def use_hidden_heads(heads_on: str) -> None:
    """Networks that the script makes from now on have a hidden layer in each head."""
    if heads_on == "convolutions":
        script.Encoder = Convolutions
    script.Actor, script.SoftQNetwork = with_head(script.Actor), with_head(script.SoftQNetwork)


if __name__ == "__main__":
    script.Args = Args
    use_hidden_heads(script.read_args().heads_on)
    script.main()
