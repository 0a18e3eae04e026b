"""What bfloat16 does to the gradients of Atari runs, beside what the draw of the batch does to them.

python benchmark/rounding.py runs/BreakoutNoFrameskip-v4__*        a table per run and rounding.csv

Of each run's last checkpoint: the gradients of --batches batches from the latest --window transitions of its replay
buffer, sampled as in training, in bfloat16 (g16) and in float32 (g32), of each layer and of all that the critics train.
As shares of the root mean square of |g32|:

- rounding: root mean square of |g16 - g32|;
- common: |mean g32|, what of the gradient stays when batches are averaged; all else is the draw of the batch;
- systematic: |mean (g16 - g32)|, what of the rounding stays when batches are averaged.

The last two are corrected for the few batches that they are means of, and 0 where these show nothing. Rounding and
systematic are also measured with the background taken off the pixels for g16, as less_background.py does. Q, of all
actions at a batch's observations, is the mean of the twins, and advantages are Q less its mean over the actions; they
have a rounding only. --batches must be 2 or more. Without AVX-512 BF16 it takes minutes more. Runs of study scripts
that change the networks cannot be loaded, or, with plain_filters.py, are taken for the script's; those of scripts that
change the losses are measured with the script's.
"""

from dataclasses import dataclass
from pathlib import Path

import less_background
import numpy as np
import saved_runs
import torch
import tyro
from saved_runs import script
from torch import Tensor

PARTS = ("convolution 1", "convolution 2", "convolution 3", "features", "critics' heads", "critics", "actor's head")
VALUES = ("Q", "advantages")
COLUMNS = ("rounding", "common", "systematic", "rounding less background", "systematic less background")
ENCODER = script.Encoder


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """directories of runs, each with a checkpoint"""
    window: int = 60_000
    """transitions, the latest ones of the replay buffer"""
    batches: int = 200
    """batches, of the size that the run had, whose gradients are compared"""
    csv: Path = Path(__file__).parent / "results" / "rounding.csv"
    """where the table goes"""


class Norms:
    """Of vectors: root mean square of their norms, and norm of their mean."""

    def __init__(self):
        self.count, self.sum, self.squares = 0, 0.0, 0.0

    def add(self, vector: Tensor) -> None:
        vector = vector.double()
        self.count, self.sum, self.squares = self.count + 1, self.sum + vector, self.squares + vector.square().sum()

    def typical(self) -> float:
        return (self.squares / self.count).sqrt().item()

    def of_mean(self) -> float:
        """As of infinitely many vectors, in expectation of the square, or 0 if that is less."""
        square = (self.sum.square().sum() - self.squares) / (self.count * (self.count - 1))  # of pairs i != j
        return square.clamp(min=0).sqrt().item()


def gradients_and_values(
    agent: script.Agent, batch: script.Batch, trained: script.Args, bf16: bool, encoder: type[script.Encoder]
) -> dict[str, Tensor]:
    """A vector for each of PARTS and VALUES, with the pixels as `encoder` has them."""
    script.BF16["cpu"], agent.encoder.scale, script.Encoder = bf16, encoder.scale, encoder
    critics, actor, *_ = script.gradients(agent, batch, trained)
    layers = [torch.cat([gradient.flatten() for gradient in critics[i : i + 2]]) for i in range(0, len(critics), 2)]
    heads = torch.cat(layers[4:])  # of both twins
    actor_head = torch.cat([gradient.flatten() for gradient in actor])
    with torch.no_grad():
        features = agent.encoder(batch.observations)
        q = (agent.qf1.head(features) + agent.qf2.head(features)) / 2
    vectors = dict(zip(PARTS, [*layers[:4], heads, torch.cat(layers), actor_head], strict=True))
    return vectors | dict(zip(VALUES, [q, q - q.mean(1, keepdim=True)], strict=True))


def measure(run_dir: Path, args: Args) -> list[dict]:
    """A row per part of the networks."""
    agent, trained, buffer, columns = saved_runs.load(run_dir, args.window)
    buffer.rng, buffer.random_shift = np.random.default_rng(0), trained.random_shift
    exact, errors, less_background_errors = ({name: Norms() for name in PARTS + VALUES} for _ in range(3))
    for _ in range(args.batches):
        batch = buffer.sample(trained.batch_size)
        g32 = gradients_and_values(agent, batch, trained, False, ENCODER)
        g16 = gradients_and_values(agent, batch, trained, True, ENCODER)
        g16_less_background = gradients_and_values(agent, batch, trained, True, less_background.Encoder)
        for name in PARTS + VALUES:
            exact[name].add(g32[name])
            errors[name].add(g16[name] - g32[name])
            less_background_errors[name].add(g16_less_background[name] - g32[name])
    script.Encoder, rows = ENCODER, []  # as the next run is to find it
    for name in PARTS + VALUES:
        typical = exact[name].typical()
        row = {"rounding": errors[name].typical(), "rounding less background": less_background_errors[name].typical()}
        if name in PARTS:
            row |= {"common": exact[name].of_mean(), "systematic": errors[name].of_mean()}
            row["systematic less background"] = less_background_errors[name].of_mean()
        rows.append(columns | {"part": name} | {column: row[column] / typical for column in COLUMNS if column in row})
    return rows


def main(args: Args) -> None:
    saved_runs.require_replay(args.runs)
    rows = []
    for run_dir in args.runs:
        measured = measure(run_dir, args)
        print(f"{measured[0]['run']}, step {measured[0]['step']:,}: {', '.join(COLUMNS)}")
        for row in measured:
            shown = [f"{row[column]:9.5f}" if column in row else " " * 9 for column in COLUMNS]
            print(f"{row['part']:>14} {' '.join(shown)}", flush=True)
            rows.append({name: round(value, 6) if isinstance(value, float) else value for name, value in row.items()})
    saved_runs.write_table(args.csv, rows)


if __name__ == "__main__":
    main(tyro.cli(Args))
