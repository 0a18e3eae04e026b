"""Steps and updates per second of the learning phase, start-up time and peak memory: this project and its peers, one
after the other in every round, each in a process of its own.

python benchmark/speed.py                                 all tasks, 3 rounds; 20 minutes on 2 cores
python benchmark/speed.py --tasks classic --threads 1 --results DIRECTORY

Peers come from PyPI into virtual environments below --venvs, made at the first call. Figures go to
benchmark/results/speed/: speed.csv, a line per round, and speed.png, the medians.
"""

import csv
import json
import os
import platform
import subprocess
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import matplotlib
import tyro
from venvs import VENVS, interpreter, make_venv

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
CONTESTANTS = {  # name: the virtual environment, None for this one
    "this project": None,
    "with --compile": None,
    "with shifts": None,  # Atari's defaults: compiled, and observations shifted at random, as no peer does
    "plain form": None,  # this project with the update of plain.py
    "cleanrl": "cleanrl",
    "sb3-soft": "sb3",
    "sb3-dqn": "sb3",
    "tianshou": "tianshou",
}
TASKS = {  # name: its title, the updates before the measurement, how many times --updates it takes, who takes part
    "classic": (
        "CartPole-v1, batch 256, one update per step",
        2_000,  # by then dead units may have left denormal numbers in Adam's moments, if not flushed to zero
        10,  # an update is short
        ["this project", "with --compile", "sb3-soft", "tianshou", "sb3-dqn"],
    ),
    "atari": (
        "Breakout, batch 64, one update per 4 steps",
        50,
        1,
        ["this project", "with --compile", "with shifts", "plain form", "cleanrl", "sb3-soft", "sb3-dqn"],
    ),
}
OWN = ("this project", "with --compile", "with shifts")  # drawn darker
TITLES = {"steps_per_s": "steps/s", "updates_per_s": "updates/s", "startup_s": "start-up s", "peak_mb": "peak MB"}


@dataclass
class Args:
    tasks: tuple[str, ...] = ("classic", "atari")
    """classic, atari or both"""
    rounds: int = 3
    """how often every contestant is measured"""
    updates: int = 150
    """updates per measurement, ten times as many for classic, after 50 (classic: 2,000) that are not counted"""
    threads: int = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    """threads of each contestant"""
    venvs: Path = VENVS
    """directory of the peers' virtual environments"""
    cleanrl: Path | None = None
    """directory of a checkout of https://github.com/vwxyzjn/cleanrl, whose sac_atari.py is then measured too; commit
    fe8d8a0 for the figures in the README"""
    results: Path = HERE / "results" / "speed"
    """directory of the table and the chart"""


def measure(python: str, name: str, task: str, args: Args) -> dict[str, float]:
    _, skipped, times, _ = TASKS[task]
    numbers = map(str, (args.threads, skipped, args.updates * times))
    command = [python, str(HERE / "speed_contestants.py"), name, task, *numbers]
    environment = os.environ | {"LAUNCHED": repr(time.time()), "OMP_NUM_THREADS": str(args.threads)}
    environment["CLEANRL"] = str(args.cleanrl and args.cleanrl.resolve())
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    if done.returncode:
        raise RuntimeError(f"{name} on {task}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def chart(rows: list[dict], args: Args, caption: str) -> None:
    figure, axes = plt.subplots(1, len(args.tasks), figsize=(5 * len(args.tasks), 3.2), layout="constrained")
    for axis, task in zip([axes] if len(args.tasks) == 1 else axes, args.tasks, strict=True):
        title, *_, names = TASKS[task]
        names = [name for name in names if any((row["task"], row["name"]) == (task, name) for row in rows)]
        for k, name in enumerate(reversed(names)):
            values = [row["steps_per_s"] for row in rows if (row["task"], row["name"]) == (task, name)]
            axis.barh(k, median(values), color="0.35" if name in OWN else "0.75")
            axis.plot(values, [k] * len(values), "k|", markersize=10)
            axis.text(max(values), k, f" {median(values):.0f}", va="center")
        axis.set_yticks(range(len(names)), reversed(names))
        axis.set_xlabel("agent steps per second, learning phase")
        axis.set_title(title, fontsize=10)
        axis.margins(x=0.12)
    figure.suptitle(caption, fontsize=8)
    figure.savefig(args.results / "speed.png", dpi=150)


def main(args: Args) -> None:
    args.results.mkdir(parents=True, exist_ok=True)
    caption = (
        f"{processor()}, {args.threads} threads, torch {version('torch')}; medians of {args.rounds} alternating rounds"
    )
    print(caption)
    rows = []
    for task in args.tasks:
        title, *_, names = TASKS[task]
        if not args.cleanrl:
            names = [name for name in names if name != "cleanrl"]
        for venv in sorted({CONTESTANTS[name] for name in names} - {None}):
            make_venv(args.venvs, venv)
        pythons = {name: interpreter(args.venvs, CONTESTANTS[name]) for name in names}
        for number in range(args.rounds):
            for name in names:
                figures = measure(pythons[name], name, task, args)
                rows.append({"task": task, "round": number, "name": name, "threads": args.threads} | figures)
        heads = "".join(f"{unit:>12}" for unit in TITLES.values())
        measured = {name: [row for row in rows if (row["task"], row["name"]) == (task, name)] for name in names}
        forms = [name for name in OWN if name in measured]
        heads += "".join(f"{form + ' / it':>24}" for form in forms)
        print(f"\n{title}; ratios of each round\n{'':14}{heads}")
        for name, theirs in measured.items():
            line = f"{name:14}" + "".join(f"{median(row[key] for row in theirs):12.1f}" for key in TITLES)
            for form in forms:
                pairs = zip(measured[form], theirs, strict=True)
                ratios = " ".join(f"{ours['steps_per_s'] / row['steps_per_s']:7.2f}" for ours, row in pairs)
                line += f"{ratios:>24}"
            print(line)
    with (args.results / "speed.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    chart(rows, args, caption)


if __name__ == "__main__":
    main(tyro.cli(Args))
