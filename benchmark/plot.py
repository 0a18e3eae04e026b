"""Figures and the table of a benchmark: TensorBoard logs -> tidy CSV -> PNGs and Markdown.

    python benchmark/plot.py classic --runs benchmark/runs/classic                all runs below a directory
    python benchmark/plot.py cartpole --runs runs/CartPole-v1__sdsac_classic__*   or runs one by one
    python benchmark/plot.py classic --runs benchmark/results/classic.csv DIR     runs beside those that a CSV has
    python benchmark/plot.py classic                                              again, from the CSV alone

Run directories are named {env_id}__{variant}__{seed}__{time}; a finished run has agent.pt. Writes NAME.csv (env_id,
variant, seed, metric, step, value, count) and NAME.png (learning curves) to benchmark/results/ and, where there is the
data for them, NAME_evaluations.png, NAME_bias.png, NAME_aggregates.png and NAME_profiles.png. Prints the runs per cell
and a Markdown table.
"""

import math
import re
import sys
import textwrap
from collections import defaultdict
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Annotated

import gymnasium as gym
import numpy as np
import pandas as pd
import tyro
from matplotlib import pyplot as plt
from matplotlib.ticker import EngFormatter, MaxNLocator
from rliable import library as rly
from rliable import metrics as rly_metrics
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

RESULTS = Path(__file__).parent / "results"
ATARI_SCORES = Path(__file__).parent / "atari_scores.csv"
COLUMNS = ["env_id", "variant", "seed", "metric", "step", "value", "count"]
Cell = tuple[str, str, int]  # environment, variant, seed
METRICS = {
    "charts/episodic_return": "episodic_return",
    "eval/episodic_return": "eval_return",
    "diagnostics/q_predicted": "q_predicted",
    "diagnostics/q_monte_carlo": "q_monte_carlo",
    "losses/alpha": "alpha",
    "policy/entropy": "entropy",
}
MEASURES = {  # what final_scores takes: the first that all runs of an environment have
    "last_100_episodes": "last 100 training games",  # Atari only: what is usually reported there
    "eval_return": "last greedy evaluation",
    "last_20_episodes": "last 20 training episodes",
}
# Mean returns of uniformly random actions over 1,000 episodes that begin from the seeds 0 to 999: the score 0 of the
# environments outside Atari; the score 1 is the reward threshold that Gymnasium states. Taxi-v4 is not among them: who
# delivers nobody, but does nothing illegal, would score 0.73 there
RANDOM_RETURNS = {
    **{"CartPole-v1": 22.2, "Acrobot-v1": -499.1, "MountainCar-v0": -200.0, "LunarLander-v3": -181.7},
    **{"FrozenLake-v1": 0.012},
}
# Okabe and Ito's colours, which the colour-blind can tell apart, with grey for yellow, which is too light for a line
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000", "#999999"]
LINES = ["-", "--", "-.", (0, (1, 1.5))]
MARKERS = ["o", "s", "^", "D", "v", "X", "P", "<", ">"]
RESAMPLES = 2000


@dataclass
class Args:
    name: tyro.conf.Positional[str]
    """name of the CSV and the figures below benchmark/results/"""
    runs: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH")] = ()
    """directories with runs below them, runs' own, or CSVs that this script wrote; a cell that is in several of them is
    taken from its run, or else from the last CSV; none: draw from NAME.csv"""
    bins: int = 100
    """bins that the steps of each environment are divided into, unless a CSV's rows have theirs; each should be longer
    than an episode takes, which is its length times the environments that a run has side by side"""
    partial: bool = False
    """whether unfinished runs are read too"""
    variants: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME")] = ()
    """those that are drawn, in this order; the others are compared with the first; none: all, by name"""
    environments: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ID")] = ()
    """those that are drawn; none: all"""


# ----------------------------------------------------------------------------------------------------------------------
# Logs -> CSV


def find_runs(roots: tuple[Path, ...], partial: bool) -> dict[Cell, Path]:
    """(env_id, variant, seed) -> run directory; of several, the newest finished one, or else the newest."""
    runs = {}
    found = {file.parent for root in roots if root.is_dir() for file in root.rglob("events.out.tfevents.*")}
    for run in sorted(found, key=lambda run: ((run / "agent.pt").exists(), run.name.split("__")[-1])):
        named = re.fullmatch(r"(.+?)__(.+)__(\d+)__[^_]+", run.name)
        if named is None:
            print(f"{run}: not named {{env_id}}__{{variant}}__{{seed}}__{{time}}, so it is left out")
        elif partial or (run / "agent.pt").exists():
            runs[named[1], named[2], int(named[3])] = run
    return runs


def read_run(run: Path) -> tuple[pd.DataFrame, int]:
    """Every logged point of METRICS (metric, step, value, count), and the last step that anything was logged at.

    With several environments an evaluation comes a few steps late, by seed: it gets the step that it was due at.
    """
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    tags = events.Tags()
    texts = events.Tensors("hyperparameters/text_summary") if "hyperparameters/text_summary" in tags["tensors"] else []
    flags = " ".join(text.tensor_proto.string_val[0].decode() for text in texts)
    stated = dict(re.findall(r"\|(eval_episodes|eval_frequency)\|(\d+)\|", flags))
    episodes = int(stated.get("eval_episodes", 0))  # per evaluation; 0: the log does not say
    frequency = int(stated.get("eval_frequency", 1))
    scalars = {tag: events.Scalars(tag) for tag in tags["scalars"]}
    points = [
        (metric, event.step // frequency * frequency, event.value, episodes)
        if metric == "eval_return"
        else (metric, event.step, event.value, 1)
        for tag, metric in METRICS.items()
        for event in scalars.get(tag, [])
    ]
    last = max((event.step for logged in scalars.values() for event in logged), default=0)
    return pd.DataFrame(points, columns=["metric", "step", "value", "count"]), last


def to_budget(last: int) -> int:
    """A run's last step to three digits: with several environments runs end a few steps late."""
    return int(float(f"{last:.3g}"))


def summarize(points: pd.DataFrame, budget: int, width: float, lasts: tuple[int, ...] = (20,)) -> pd.DataFrame:
    """The CSV's rows of one run. Evaluations stay as they are, all else is means over bins of `width` steps up to the
    `budget`, each named by its right edge, which it includes; the `lasts` last training episodes become a row each.
    """
    bins = np.ceil(budget / width - 0.01)  # widths are known to a step or so; what follows the budget joins the last
    right = np.ceil(points["step"] / width).clip(1, bins) * width
    step = right.round().astype(int).where(points["metric"] != "eval_return", points["step"])
    rows = points.assign(step=step).groupby(["metric", "step"], as_index=False)
    rows = rows.agg(value=("value", "mean"), count=("count", "sum"))
    for number in lasts:
        last = points[points["metric"] == "episodic_return"].tail(number)
        rows.loc[len(rows)] = [f"last_{number}_episodes", last["step"].max(), last["value"].mean(), len(last)]
    return rows


def tidy(runs: dict[Cell, Path], earlier: dict[Cell, pd.DataFrame], bins: int) -> pd.DataFrame:
    """The CSV of these runs, and of earlier CSVs' rows for the cells that have none.

    The last step of an environment's longest run is its budget, of which there are `bins` bins, unless earlier rows
    have bins already: the runs then have as wide ones.
    """
    logs = {cell: read_run(run) for cell, run in runs.items()}
    for cell in [cell for cell, (points, _) in logs.items() if "episodic_return" not in points["metric"].values]:
        print(f"{runs[cell]}: no episode has ended in it, so it is left out")
        del logs[cell]
    if not logs and not earlier:
        sys.exit("no episode has ended in any of these runs")
    for cell in logs.keys() & earlier.keys():
        own, there = logs[cell][1], earlier.pop(cell).query("metric == 'last_20_episodes'")["step"].max()
        if own < there:
            print(f"{runs[cell]}, of {own:,} steps, takes the place of a CSV's rows, of {there:,.0f}")
    budgets, edges, gaps = defaultdict(int), defaultdict(set), defaultdict(lambda: np.inf)
    full = defaultdict(list)  # widths of the bins of single cells, by the temperature, which is in all but the first
    for (env_id, *_), (_, last) in logs.items():
        budgets[env_id] = max(to_budget(last), budgets[env_id])
    for (env_id, *_), rows in earlier.items():
        steps = {0, *rows.loc[~rows["metric"].isin(MEASURES), "step"]}
        edges[env_id] |= steps
        gaps[env_id] = min([gaps[env_id], *np.diff(sorted(steps))])
        temperature = rows.loc[rows["metric"] == "alpha", "step"]
        full[env_id] += [np.diff(sorted(temperature)).min()] if len(temperature) > 1 else []
    widths = {env_id: budget / bins for env_id, budget in budgets.items()}
    names = {}
    for env_id, steps in edges.items():
        steps, width = np.array(sorted(steps)), gaps[env_id]
        for step in steps[1:]:
            width = step / max(1, round(step / width))  # steps are rounded: the larger one is, the more precise
        numbers = (steps / width).round()
        apart = np.abs(steps - numbers * width).max() > 2  # cells round in their own ways
        if apart or max(full[env_id], default=0) > 1.5 * min(full[env_id], default=1):
            sys.exit(f"the CSVs' rows of {env_id} have bins of different widths")
        widths[env_id], names[env_id] = width, dict(zip(numbers, steps, strict=True))
    parts = [
        summarize(points, budgets[env_id], widths[env_id], (20, 100) if atari_scores(env_id) else (20,)).assign(
            env_id=env_id, variant=variant, seed=seed
        )
        for (env_id, variant, seed), (points, _) in logs.items()
    ]
    data = pd.concat([*earlier.values(), *parts], ignore_index=True)[COLUMNS]
    for env_id, edge in names.items():
        own = (data["env_id"] == env_id) & ~data["metric"].isin(MEASURES)
        steps = data.loc[own, "step"]
        data.loc[own, "step"] = (steps / widths[env_id]).round().map(edge).fillna(steps).astype(int)
    return data.sort_values(COLUMNS[:5])


def select(data: pd.DataFrame, wanted: dict[str, tuple[str, ...]]) -> pd.DataFrame:
    """The rows with these names in these columns; none: all."""
    for column, names in wanted.items():
        unknown = set(names) - set(data[column])
        if unknown:
            sys.exit(f"{column} {', '.join(sorted(unknown))}: there are {', '.join(sorted(data[column].unique()))}")
        data = data[data[column].isin(names)] if names else data
    return data


# ----------------------------------------------------------------------------------------------------------------------
# Numbers


def interval(values: np.ndarray) -> np.ndarray:
    """95% bootstrap interval (low, high) of the mean over the first axis, that of the seeds: (S, ...) -> (2, ...)."""
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    return np.quantile(values[draws].mean(1), [0.025, 0.975], axis=0)


def final_scores(data: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """The score of each (env_id, variant, seed); and per env_id which of MEASURES that is."""
    last = data.groupby(["env_id", "variant", "seed", "metric"])["value"].last().unstack().reindex(columns=[*MEASURES])
    measures = last.notna().groupby("env_id").all().idxmax(axis=1)
    chosen = [row[measures[env_id]] for (env_id, *_), row in last.iterrows()]
    return pd.Series(chosen, last.index), measures


def steps_to_threshold(data: pd.DataFrame) -> pd.Series:
    """Per (env_id, variant, seed) the step of its first evaluation at Gymnasium's reward threshold or above, infinity
    where there is none. Of the evaluations at steps that all runs of the environment have; without them, or without a
    threshold, no row.
    """
    evaluations = data[data["metric"] == "eval_return"]
    parts = []
    for env_id, own in evaluations.groupby("env_id"):
        table = own.pivot(index=["env_id", "variant", "seed"], columns="step", values="value").dropna(axis=1)
        runs = data[data["env_id"] == env_id].groupby(["variant", "seed"]).ngroups
        if threshold(env_id) is not None and table.size and len(table) == runs:
            reached = table >= threshold(env_id)
            parts.append(reached.idxmax(axis=1).astype(float).where(reached.any(axis=1), math.inf))
    return pd.concat(parts) if parts else pd.Series(dtype=float)


def threshold(env_id: str) -> float | None:
    """The return at which Gymnasium counts an environment as solved; None where it names none."""
    return gym.registry[env_id].reward_threshold if env_id in gym.registry else None


def atari_scores(env_id: str) -> tuple[float, float] | None:
    """The scores of a random policy and of a human tester; None where this is no game of the Atari benchmark."""
    atari = pd.read_csv(ATARI_SCORES, comment="#", index_col="game")
    game = re.sub(r"^ALE-|(NoFrameskip|Deterministic)?-v\d+$", "", env_id)
    return (atari.loc[game, "random"], atari.loc[game, "human"]) if game in atari.index else None


def reference_returns(env_id: str) -> tuple[float, float] | None:
    """The returns that normalised scores of 0 and 1 stand for: random and human (Atari) or random and threshold."""
    if scores := atari_scores(env_id):
        return scores
    return (RANDOM_RETURNS[env_id], threshold(env_id)) if env_id in RANDOM_RETURNS else None


def score_matrices(scores: pd.Series) -> tuple[dict[str, np.ndarray], list[str], list[int]]:
    """Normalised scores per variant, (runs, tasks) as rliable takes them; the tasks and the runs' seeds.

    Tasks are the environments with reference returns in which every variant has runs; seeds are those that every
    variant has in every one of them.
    """
    table = scores.unstack("env_id")  # rows are (variant, seed)
    tasks = [task for task in table if reference_returns(task) and table[task].notna().groupby("variant").any().all()]
    complete = table[tasks].notna().all(axis=1).unstack("seed", fill_value=False).all() & bool(tasks)
    seeds = complete.index[complete].tolist()
    low, high = np.array([reference_returns(task) for task in tasks]).reshape(-1, 2).T
    variants = table.index.unique("variant")
    matrices = {name: (table.loc[name].loc[seeds, tasks].to_numpy() - low) / (high - low) for name in variants}
    return matrices, tasks, seeds


def estimate(scores: dict, function) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Point estimates and 95% stratified bootstrap intervals (2, ...) of `function`."""
    np.random.seed(0)  # rliable draws from this generator, whatever random_state it is given
    return rly.get_interval_estimates(scores, function, reps=RESAMPLES)


# ----------------------------------------------------------------------------------------------------------------------
# Text


def names_of(seeds) -> str:
    """'1, 2, 4', '21 to 25'."""
    seeds = sorted(seeds)
    in_a_row = len(seeds) > 2 and seeds == [*range(seeds[0], seeds[-1] + 1)]
    return f"{seeds[0]} to {seeds[-1]}" if in_a_row else ", ".join(map(str, seeds))


def count_of(seeds) -> str:
    """'5 seeds (21 to 25)', or which one it is."""
    return f"{len(seeds)} seeds ({names_of(seeds)})" if len(seeds) > 1 else f"seed {seeds[0]}"


def steps_of(data: pd.DataFrame) -> str:
    """The steps of an environment's runs; from which to which where some end long before the longest."""
    last_games = data.loc[data["metric"] == "last_20_episodes", "step"]
    shortest, longest = last_games.min(), last_games.max()
    edge = data["step"].max()  # of the last bin, which can lie beyond the runs' end
    budget = to_budget(edge if edge < 1.02 * longest else longest)
    return f"{budget:,} steps" if shortest > 0.9 * longest else f"{shortest:,.0f} to {longest:,.0f} steps"


def measure_of(data: pd.DataFrame, metric: str) -> str:
    """What of MEASURES `data` is scored by, and, if so, that some runs have fewer than 100 games."""
    fewest = data.loc[data["metric"] == metric, "count"].min()
    if metric == "last_100_episodes" and fewest < 100:
        return f"{MEASURES[metric]} (of all where a run has fewer: {fewest} or more)"
    return MEASURES[metric]


def seeds_of(data: pd.DataFrame) -> str:
    """The seeds that most variants have, by number only where they are not the same, and how many others have; single
    ones by their names.
    """
    seeds = data.groupby("variant")["seed"].unique().map(sorted)
    usual = seeds[seeds.map(len) == seeds.map(len).mode().max()].iloc[0]
    if len(usual) == 1:
        names = {variant: count_of(own) for variant, own in seeds.items()}
        alike = len(set(names.values())) == 1
        return count_of(usual) if alike else ", ".join(f"{variant}: {name}" for variant, name in names.items())
    same = all(own == usual for own in seeds if len(own) == len(usual))
    notes = [names_of(usual)] if same else []
    notes += [f"{variant}: {len(own)}" for variant, own in seeds.items() if len(own) != len(usual)]
    return f"{len(usual)} seeds" + (f" ({'; '.join(notes)})" if notes else "")


def table_cell(values: np.ndarray, best: float) -> str:
    """'mean ± half the interval', in bold if the mean is the best."""
    mean = values.mean()
    digits = 1 if abs(mean) >= 10 else 2
    text = f"{mean:,.{digits}f}"
    if len(values) > 1:
        low, high = interval(values)
        text += f" ± {(high - low) / 2:,.{digits}f}"
    return f"**{text}**" if mean == best else text


def table_head(variants: list[str]) -> list[str]:
    return [f"| | {' | '.join(variants)} |", "|---|" + "---|" * len(variants)]


def markdown_table(data: pd.DataFrame, variants: list[str]) -> str:
    """Environments as rows, variants as columns, and a caption."""
    scores, measures = final_scores(data)
    lines = table_head(variants)
    caption = ["Mean over seeds ± half the width of its 95% bootstrap interval; bold: the highest mean of the row."]
    for env_id, own in data.groupby("env_id"):
        values = {variant: cell.to_numpy() for variant, cell in scores[env_id].groupby("variant")}
        best = max(cell.mean() for cell in values.values())
        cells = [table_cell(values[variant], best) if variant in values else "" for variant in variants]
        lines.append(f"| {env_id} | {' | '.join(cells)} |")
        caption.append(f"{env_id}: {steps_of(own)}, {seeds_of(own)}, {measure_of(own, measures[env_id])}.")
    return "\n".join([*lines, "", *caption])


def threshold_table(steps: pd.Series, variants: list[str]) -> str:
    """What `steps_to_threshold` gives, as a table like the other one, and a caption."""
    lines = table_head(variants)
    for env_id, own in steps.groupby("env_id"):
        cells = dict.fromkeys(variants, "")
        for variant, values in own.groupby("variant"):
            middle, reached = np.median(values), f"({np.isfinite(values).sum()} of {len(values)})"
            cells[variant] = f"{middle:,.0f} {reached}" if np.isfinite(middle) else f"not reached {reached}"
        lines.append(f"| {env_id} | {' | '.join(cells.values())} |")
    caption = (
        "Steps to the first greedy evaluation at the reward threshold or above, of the evaluations that all runs have: "
        "median over seeds, a seed that never gets there counting as infinity (in brackets: how many do)."
    )
    return "\n".join([*lines, "", caption])


def print_runs(data: pd.DataFrame) -> None:
    """The number of runs per cell, and the mean return of each one's last 20 training episodes."""
    cells = data[data["metric"] == "last_20_episodes"].groupby(["env_id", "variant"])
    for cell, own in cells:
        mean, low, high = own["value"].agg(["mean", "min", "max"])
        seeds = ", ".join(f"{seed}: {value:.4g}" for seed, value in zip(own["seed"], own["value"], strict=True))
        print(f"{' '.join(cell)}, {count_of(own['seed'].tolist())}: mean return of the last 20 training episodes")
        print(f"    {mean:.4g}, from {low:.4g} to {high:.4g}; per seed {seeds}")
    counts = cells.size()
    if counts.unstack(fill_value=0).stack().nunique() > 1:
        print("Cells have different numbers of runs.")


# ----------------------------------------------------------------------------------------------------------------------
# Figures


def save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, dpi=120)
    plt.close(figure)
    print(path)


def style_variants(variants: list[str]) -> dict[str, dict]:
    """Colour, line style and marker of each variant; any one of the three tells neighbours apart."""
    styles = zip(variants, cycle(COLOURS), cycle(LINES), cycle(MARKERS), strict=False)
    return {name: {"color": colour, "linestyle": line, "marker": marker} for name, colour, line, marker in styles}


def markers(i: int, points: int) -> dict:
    """About eight small markers on the i-th line of so many points, not where its neighbours have theirs."""
    every = max(1, points // 8)
    return {"markersize": 4, "markevery": (2 * i % every, every)}


def draw_curves(
    series: pd.DataFrame, styles: dict, ylabel: str, path: Path, levels: dict[str, float], level: str, points: str
) -> None:
    """A panel per environment, a line per variant over the steps that every seed has a value at, with the interval over
    seeds; `levels` are drawn as dashed lines, called `level`; `points` says what lies between two steps. The seeds of a
    single variant, or of one whose mean ends long before its longest run, are drawn too, thin.
    """
    environments = series["env_id"].unique()
    columns = min(3, math.ceil(len(environments) ** 0.5))
    rows = math.ceil(len(environments) / columns)
    size = (7, 4.6) if len(environments) == 1 else (4.6 * columns, 3.4 * rows + 1)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    if series.groupby(["env_id", "variant"])["seed"].nunique().max() > 1:
        ends = series.groupby(["env_id", "variant", "seed"])["step"].max().groupby(["env_id", "variant"])
        uneven = ends.min() < 0.9 * ends.max()
        thin = "thin: single seeds; " if len(styles) == 1 or uneven.any() else ""
        figure.suptitle(f"mean over seeds; {thin}shaded: 95% bootstrap interval of the mean", fontsize="medium")
    for axis in axes.flat[len(environments) :]:
        axis.remove()
    for axis, env_id in zip(axes.flat, environments, strict=False):
        own = series[series["env_id"] == env_id]
        drawn = {0}
        for i, (variant, style) in enumerate(styles.items()):
            values = own[own["variant"] == variant].pivot(index="seed", columns="step", values="value")
            if len(values) > 1 and (len(styles) == 1 or uneven[env_id, variant]):
                for _, one in values.iterrows():
                    axis.plot(one.dropna(), color=style["color"], linewidth=0.8, alpha=0.5)
            full = values.dropna(axis=1)
            if full.shape != values.shape:
                share = f"{full.shape[1]} of {values.shape[1]} points"
                print(f"{path.name}, {env_id} {variant}: every seed has {share}, which are drawn")
            drawn.update(full.columns)
            if full.size:
                axis.plot(full.columns, full.mean(), label=variant, **style, **markers(i, full.shape[1]))
            if len(full) > 1:
                low, high = interval(full.to_numpy())
                axis.fill_between(full.columns, low, high, color=style["color"], alpha=0.15, linewidth=0)
        if levels.get(env_id) is not None:
            axis.axhline(levels[env_id], color="0.35", linestyle=(0, (6, 4)), linewidth=1, label=level)
        title = f"{env_id}, {', '.join(styles)}" if len(styles) == 1 else env_id
        axis.set_title(textwrap.fill(f"{title}, {seeds_of(own)}", 52, break_on_hyphens=False), fontsize="medium")
        gap = np.diff(sorted(drawn if len(drawn) > 1 else {0, *own["step"]})).min()
        axis.set(xlabel=f"agent steps ({points} {gap:,.0f})", ylabel=ylabel)
        magnitudes = own["value"].abs()
        if magnitudes.max() > 1000 * magnitudes.median() > 0:  # a few values would flatten all the others
            linear = 10 ** math.ceil(math.log10(magnitudes.quantile(0.9)))
            axis.set_yscale("symlog", linthresh=linear, linscale=3)
            axis.set_ylabel(f"{ylabel}\n(logarithmic beyond ±{linear})")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.xaxis.set_major_locator(MaxNLocator(6))
        axis.grid(alpha=0.3)
    legends = [axis.get_legend_handles_labels() for axis in figure.axes]
    handles = {label: handle for legend in legends for handle, label in zip(*legend, strict=True)}
    if len(handles) > 1:
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, frameon=False)
    save(figure, path)


def draw_aggregates(matrices: dict[str, np.ndarray], styles: dict, caption: str, path: Path) -> None:
    """Interquartile mean, optimality gap, and the probability that the first variant does better than each other."""
    default, *others = styles
    functions = (rly_metrics.aggregate_iqm, rly_metrics.aggregate_optimality_gap)
    aggregates = estimate(matrices, lambda x: np.array([function(x) for function in functions]))
    pairs = {name: [matrices[default], matrices[name]] for name in others}
    improvement = estimate(pairs, lambda x, y: np.array([rly_metrics.probability_of_improvement(x, y)]))
    panels = [
        ("interquartile mean (higher is better)\nnormalised score", 0, aggregates),
        ("optimality gap (lower is better)\nnormalised score", 1, aggregates),
        (f"probability that {default} scores higher\nthan the variant (a tie counts half)", 0, improvement),
    ]
    figure, axes = plt.subplots(1, 3, figsize=(11, 1.6 + 0.32 * len(styles)), sharey=True, layout="constrained")
    for axis, (label, k, (points, intervals)) in zip(axes, panels, strict=True):
        for y, (name, style) in enumerate(styles.items()):
            if name in points:
                axis.plot(points[name][k], y, color=style["color"], marker=style["marker"], markersize=5)
                if len(matrices[name]) > 1:
                    axis.plot(intervals[name][:, k], [y, y], color=style["color"], linewidth=2)
        axis.set_xlabel(label)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(styles)), styles)
    axes[0].set_ylim(len(styles) - 0.5, -0.5)
    axes[2].axvline(0.5, color="0.35", linestyle=(0, (6, 4)), linewidth=1)
    axes[2].set_xlim(-0.04, 1.04)
    figure.suptitle(textwrap.fill(caption, 130), fontsize="medium")
    save(figure, path)


def draw_profiles(matrices: dict[str, np.ndarray], styles: dict, caption: str, path: Path) -> None:
    """Performance profiles: the share of runs, over all tasks, whose normalised score is above each value from -1."""
    pooled = np.concatenate([scores.ravel() for scores in matrices.values()])
    taus = np.linspace(max(-1, min(0, pooled.min())), max(1, pooled.max()), 201)
    profiles, intervals = estimate(matrices, lambda x: rly.score_distributions(x, taus))
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    for i, (name, style) in enumerate(styles.items()):
        axis.plot(taus, profiles[name], label=name, **style, **markers(i, len(taus)))
        if len(matrices[name]) > 1:
            axis.fill_between(taus, *intervals[name], color=style["color"], alpha=0.15, linewidth=0)
    axis.set(xlabel="normalised score τ", ylabel="share of runs with a score above τ")
    axis.set_title(textwrap.fill(caption, 80), fontsize="medium")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    save(figure, path)


def draw(data: pd.DataFrame, name: str, variants: list[str]) -> None:
    """All figures that there is data for."""
    styles = style_variants(variants)
    returns = data[data["metric"] == "episodic_return"]
    levels = {env_id: threshold(env_id) for env_id in returns["env_id"].unique()}
    label, bins = "return of training episodes", "points: means over bins of"
    draw_curves(returns, styles, label, RESULTS / f"{name}.png", levels, "reward threshold", bins)

    evaluations = data[data["metric"] == "eval_return"]
    evaluations = evaluations[evaluations.groupby("env_id")["step"].transform("nunique") > 2]  # that make a curve
    if len(evaluations):
        label, path = "return of greedy evaluations", RESULTS / f"{name}_evaluations.png"
        draw_curves(evaluations, styles, label, path, levels, "reward threshold", "points: evaluations every")

    pairs = data.pivot_table(index=["env_id", "variant", "seed", "step"], columns="metric", values="value")
    if {"q_predicted", "q_monte_carlo"} <= set(pairs):
        bias = (pairs["q_predicted"] - pairs["q_monte_carlo"]).dropna().rename("value").reset_index()
        levels = dict.fromkeys(bias["env_id"].unique(), 0)
        label = "predicted Q minus the return that followed"
        draw_curves(bias, styles, label, RESULTS / f"{name}_bias.png", levels, "no bias", bins)

    if len(variants) == 1:
        return
    scores, measures = final_scores(data)
    matrices, tasks, seeds = score_matrices(scores)
    if not seeds:
        print("No aggregates: no seed that all variants have in an environment whose scores can be normalised.")
        return
    left_out = sorted(set(data["env_id"]) - set(tasks))
    caption = ", ".join(f"{task} ({steps_of(data[data['env_id'] == task])})" for task in tasks)
    caption += f", without {', '.join(left_out)}; " if left_out else "; "
    caption += f"{count_of(seeds)}, common to all variants; "
    caption += "95% stratified bootstrap intervals; " if len(seeds) > 1 else ""
    used = {measure_of(data[data["env_id"] == task], measures[task]) for task in tasks}
    caption += "normalised score: " + " or ".join(sorted(used))
    games = [atari_scores(task) is not None for task in tasks]
    ones = [text for text, there in (("reward threshold", not all(games)), ("human (Atari)", any(games))) if there]
    caption += f", 0: random policy, 1: {' or '.join(ones)}"
    draw_aggregates(matrices, styles, caption, RESULTS / f"{name}_aggregates.png")
    draw_profiles(matrices, styles, caption, RESULTS / f"{name}_profiles.png")


def main(args: Args) -> None:
    path = RESULTS / f"{args.name}.csv"
    if args.runs:
        missing = [str(source) for source in args.runs if not source.exists()]
        if missing:
            sys.exit(f"--runs {', '.join(missing)}: not there")
        csvs = [pd.read_csv(source) for source in args.runs if source.suffix == ".csv"]
        earlier = {cell: rows for csv in csvs for cell, rows in csv.groupby(COLUMNS[:3])}
        runs = find_runs(args.runs, args.partial)
        if not runs and not earlier:
            sys.exit("no finished runs there (agent.pt beside TensorBoard events); --partial takes unfinished ones too")
        RESULTS.mkdir(exist_ok=True)
        rows = tidy(runs, earlier, args.bins)
        before = set(pd.read_csv(path).groupby(COLUMNS[:3]).groups) if path.exists() else set()
        if lost := len(before - set(rows.groupby(COLUMNS[:3]).groups)):
            print(f"{lost} of {len(before)} cells that {path.name} had are not in --runs, so it loses them")
        rows.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
    data = select(pd.read_csv(path), {"env_id": args.environments, "variant": args.variants})
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    variants = list(args.variants) or sorted(data["variant"].unique())
    print_runs(data)
    draw(data, args.name, variants)
    if len(variants) > 1:
        print(f"\n{markdown_table(data, variants)}")
        steps = steps_to_threshold(data)
        if len(steps):
            print(f"\n{threshold_table(steps, variants)}")


if __name__ == "__main__":
    main(tyro.cli(Args))
