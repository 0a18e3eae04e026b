"""How many units of Atari runs' encoders are dead: not above zero in any of many states of the replay buffer.

python benchmark/dead_units.py runs/PongNoFrameskip-v4__*        a line per run and dead_units.csv

Of each run's last checkpoint, --samples states of the latest --window transitions of its replay buffer, as they are
stored. A filter of a convolution is dead if it is nowhere above zero in any of them. Runs may be under way, if they
write no checkpoint just then; of study scripts that change the networks only plain_filters.py is known, by --plain.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import plain_filters
import saved_runs
import torch
import tyro
from saved_runs import script
from torch import Tensor, nn

LAYERS = ("convolution 1", "convolution 2", "convolution 3", "features")


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """directories of runs, each with a checkpoint"""
    plain: tuple[str, ...] = ("plain_filters",)
    """names of the runs of plain_filters.py among them, as in their directories: {env_id}__{name}__{seed}__{time}"""
    window: int = 20_000
    """transitions, the latest ones of the replay buffer"""
    samples: int = 512
    """how many of their states are looked at"""
    csv: Path = Path(__file__).parent / "results" / "dead_units.csv"
    """where the table goes"""


@torch.no_grad()
def dead_units(encoder: script.Encoder, observations: Tensor) -> list[int]:
    """The numbers of units that are not above zero in any of `observations`, a number per rectifier."""
    numbers, values = [], script.Encoder.scale(observations)
    with torch.autocast("cpu", torch.bfloat16, enabled=values.dtype == torch.bfloat16):
        for layer in encoder.layers:
            values = layer(values)
            if isinstance(layer, nn.ReLU):
                numbers.append(int((values.transpose(0, 1).flatten(1).amax(1) <= 0).sum()))
    return numbers


def measure(run_dir: Path, args: Args) -> dict:
    """A row of the table."""
    agent, _, buffer, row = saved_runs.load(run_dir, args.window)
    if run_dir.name.split("__")[1] in args.plain:
        agent.encoder.layers[0].__class__ = plain_filters.BlockConv2d
    buffer.rng = np.random.default_rng(0)
    numbers = dead_units(agent.encoder, buffer.sample(args.samples).observations)
    return row | dict(zip(LAYERS, numbers, strict=True))


def main(args: Args) -> None:
    saved_runs.require_replay(args.runs)
    rows = []
    for run_dir in args.runs:
        row = measure(run_dir, args)
        rows.append(row)
        shown = ", ".join(f"{row[layer]} in {layer}" for layer in LAYERS)
        print(f"{row['run']}, step {row['step']:,}: {shown}", flush=True)
    saved_runs.write_table(args.csv, rows)


if __name__ == "__main__":
    main(tyro.cli(Args))
