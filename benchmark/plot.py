"""Learning curves: TensorBoard logs -> tidy CSV -> PNG.

    python benchmark/plot.py cartpole --runs runs/CartPole-v1__sdsac_classic__* --threshold 475
    python benchmark/plot.py cartpole --threshold 475              draws again from the CSV that is already there

Writes benchmark/results/NAME.csv (env_id, exp_name, seed, step, episodic_return; one row per episode) and NAME.png:
each seed's mean return over bins of agent steps, thin; their mean, thick; and the 95% bootstrap interval of that mean
over seeds, shaded. A bin in which not every seed ended an episode has no mean. Prints, per seed, the mean return of
the last 20 episodes.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import matplotlib.pyplot as plt
import numpy as np
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

RESULTS = Path(__file__).parent / "results"
COLUMNS = ["env_id", "exp_name", "seed", "step", "episodic_return"]


@dataclass
class Args:
    name: tyro.conf.Positional[str]
    """name of the CSV and the PNG under benchmark/results/"""
    runs: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="DIR")] = ()
    """run directories to read; none: draw from the CSV"""
    threshold: float | None = None
    """return at which the environment counts as solved, drawn as a dashed line"""
    bins: int = 50
    """bins along the step axis"""


def read_runs(runs: tuple[Path, ...]) -> list[dict]:
    """One row per episode of each run directory."""
    rows = []
    for run in sorted(runs):
        env_id, exp_name, seed, _ = run.name.split("__")
        events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
        for event in events.Scalars("charts/episodic_return"):
            rows.append(dict(zip(COLUMNS, (env_id, exp_name, seed, event.step, round(event.value, 3)), strict=True)))
    return rows


def curves(rows: list[dict], bins: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Right edges of the bins (bins,), mean return per seed and bin (seeds, bins), NaN where none ended; the seeds."""
    edges = np.linspace(0, max(int(row["step"]) for row in rows), bins + 1)
    seeds = sorted({row["seed"] for row in rows}, key=int)
    means = np.full((len(seeds), bins), np.nan)
    for i, seed in enumerate(seeds):
        own = [(int(row["step"]), float(row["episodic_return"])) for row in rows if row["seed"] == seed]
        which = np.clip(np.digitize([step for step, _ in own], edges, right=True) - 1, 0, bins - 1)
        for k in np.unique(which):
            means[i, k] = np.mean([value for (_, value), bin_ in zip(own, which, strict=True) if bin_ == k])
    return edges[1:], means, seeds


def main(args: Args) -> None:
    path = RESULTS / f"{args.name}.csv"
    if args.runs:
        path.parent.mkdir(exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(read_runs(args.runs))
    with path.open() as file:
        rows = list(csv.DictReader(file))
    steps, means, seeds = curves(rows, args.bins)

    last = [np.mean([float(row["episodic_return"]) for row in rows if row["seed"] == seed][-20:]) for seed in seeds]
    for seed, value in zip(seeds, last, strict=True):
        print(f"seed {seed}: mean return of the last 20 episodes {value:.1f}")
    print(f"{len(seeds)} seeds: mean {np.mean(last):.1f}, minimum {np.min(last):.1f}, maximum {np.max(last):.1f}")

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for own in means:
        shown = ~np.isnan(own)
        thin = {"linewidth": 0.8, "alpha": 0.4} if len(seeds) > 1 else {"linewidth": 2}
        axes.plot(steps[shown], own[shown], color="tab:blue", **thin)
    if len(seeds) > 1:
        draws = np.random.default_rng(0).integers(len(seeds), size=(2000, len(seeds)))
        full = ~np.isnan(means).any(0)  # bins in which every seed ended an episode
        low, high = np.quantile(means[:, full][draws].mean(1), [0.025, 0.975], axis=0)
        axes.fill_between(steps[full], low, high, color="tab:blue", alpha=0.2, linewidth=0)
        axes.plot(steps[full], means[:, full].mean(0), color="tab:blue", linewidth=2)
    if args.threshold is not None:
        axes.axhline(args.threshold, color="black", linestyle="--", linewidth=1)
    count = f"{len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
    title = f"{rows[0]['env_id']}, {rows[0]['exp_name']}, {count}"
    axes.set(title=title, xlabel="agent steps", ylabel=f"episodic return, means of {steps[0]:,.0f} steps")
    axes.grid(alpha=0.3)
    figure.savefig(path.with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main(tyro.cli(Args))
