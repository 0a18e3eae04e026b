"""How many units of Atari runs' encoders are dead: not above zero in any of many states of the replay buffer.

python benchmark/dead_units.py runs/PongNoFrameskip-v4__*        a line per run and dead_units.csv

Of each run's last checkpoint, --samples states of the latest --window transitions of its replay buffer, as they are
stored. A filter of a convolution is dead if it is nowhere above zero in any of them. Runs may be under way, if they
write no checkpoint just then; of study scripts that change the networks only plain_filters.py is known, by --plain.
"""

import csv
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import plain_filters
import torch
import tyro
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import sdsac_atari as script

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
    saved = torch.load(run_dir / "checkpoint.pt", map_location="cpu", weights_only=True)
    known = {field.name for field in fields(script.Args)}  # a study's own flags are not
    trained = script.Args(**{name: value for name, value in saved["args"].items() if name in known})
    agent = script.make_agent(trained, saved["observation_shape"], saved["num_actions"], "cpu")
    if run_dir.name.split("__")[1] in args.plain:
        agent.encoder.layers[0].__class__ = plain_filters.BlockConv2d
    window = min(args.window, trained.buffer_size)
    shape = (window, trained.num_envs, saved["observation_shape"], trained.n_step, trained.gamma)
    buffer = script.ReplayBuffer(*shape)
    loop = script.load_checkpoint(run_dir, agent, buffer, torch.device("cpu"))  # of the replay what fits: the latest
    buffer.rng = np.random.default_rng(0)
    numbers = dead_units(agent.encoder, buffer.sample(args.samples).observations)
    row = {"run": run_dir.name, "env_id": trained.env_id, "exp_name": trained.exp_name, "seed": trained.seed}
    return row | {"step": loop["counts"][0]} | dict(zip(LAYERS, numbers, strict=True))


def main(args: Args) -> None:
    script.keep_only = lambda directory, names: None  # loading deletes nothing of a run that is under way
    if missing := [str(run) for run in args.runs if not (run / "replay").is_dir()]:
        sys.exit(f"no replay/ in {', '.join(missing)}; benchmark/run.py deletes that of finished runs")
    rows = []
    for run_dir in args.runs:
        row = measure(run_dir, args)
        rows.append(row)
        shown = ", ".join(f"{row[layer]} in {layer}" for layer in LAYERS)
        print(f"{row['run']}, step {row['step']:,}: {shown}", flush=True)
    with args.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(tyro.cli(Args))
