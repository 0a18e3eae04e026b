"""sdsac_atari.py on a GPU: speed by number of environments, with CUDA graphs and without, and with --compile; where the
time goes.

python benchmark/gpu.py          a table and benchmark/results/speed/gpu.csv, 80 seconds a round on an H100

Each measurement is the script's own training loop on Breakout with clocks around its parts: batch 64, an update per 4
steps, no random shifts; in the last row the schedule of Zhou et al. 2024, 10 environments and an update per 10 steps.
Medians over --rounds, written after each. What no clock covers (diagnostics, logging) is the rest of the wall time.
"""

import csv
import os
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
import tyro

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
SKIPPED = 100  # updates before the clock starts
MEASURED, ALONE = 1_500, 500  # updates under the clock, and without the loop after it
MEASURED_PLAIN, ALONE_PLAIN = 300, 100  # of them without a graph


@dataclass
class Setting:
    num_envs: int
    update_frequency: int
    graph: bool = True
    compile: bool = True
    cores: int = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


SETTINGS = [Setting(8, 4, graph=False, compile=False), Setting(8, 4, compile=False)]
SETTINGS += [Setting(num_envs, 4) for num_envs in (4, 8, 16, 32)]
SETTINGS += [Setting(10, 10)]
COLUMNS = {  # of the table; times are milliseconds per update
    "steps_per_s": "steps/s",
    "updates_per_s": "updates/s",
    "wall": "wall ms",
    "update": "update",  # sampling, copies, launch
    "launching": "launching",  # of the updates and the policy, copies included
    "environment": "envs",  # what is not hidden behind the update
    "waiting": "waiting",  # for the actions, and so for all updates before them
    "adding": "adding",
    "alone": "alone",  # of an update if nothing else is done: with a graph the GPU's time, without it that of launches
    "kernels": "kernels",  # of an update
}


class Measured(Exception):
    """Leaves the training loop with the figures."""


def measure(setting: Setting) -> dict:
    """Trains until the clock has seen enough."""
    import sdsac_atari as script

    measured, repeats = (MEASURED, ALONE) if setting.graph else (MEASURED_PLAIN, ALONE_PLAIN)
    spent, calls, start = defaultdict(float), 0, 0.0
    make_envs, prepare, call = script.make_envs, script.Captured.__init__, script.Updater.__call__

    def timed(function, part: str):
        def run(*args, **kwargs):
            begin = time.perf_counter()
            result = function(*args, **kwargs)
            spent[part] += time.perf_counter() - begin
            return result

        return run

    def make_timed_envs(*args, **kwargs):
        envs = make_envs(*args, **kwargs)
        envs.send, envs.recv = timed(envs.send, "environment"), timed(envs.recv, "environment")
        return envs

    def prepared(captured, *args):
        prepare(captured, *args)
        captured.captures = setting.graph

    def counted(updater):
        nonlocal calls, start
        if calls == SKIPPED:
            assert (updater.graph is not None) == setting.graph, "no graph was captured"
            torch.cuda.synchronize()
            spent.clear()
            start = time.perf_counter()
        if calls == SKIPPED + measured:
            torch.cuda.synchronize()
            raise Measured(figures(updater, time.perf_counter() - start))
        calls += 1
        return timed(call, "update")(updater)

    def figures(updater, wall: float) -> dict:
        result = {part: 1e3 * seconds / measured for part, seconds in spent.items()}
        alone = updater.graph.replay if updater.graph else updater.run
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(repeats):
            alone()
        last.record()
        torch.cuda.synchronize()
        return result | {
            "steps_per_s": measured * setting.update_frequency / wall,
            "updates_per_s": measured / wall,
            "wall": 1e3 * wall / measured,
            "alone": first.elapsed_time(last) / repeats,
            "kernels": count_kernels(updater.run),  # as the graph has them
        }

    with ExitStack() as stack:
        for owner, name, function in (
            (script, "make_envs", make_timed_envs),
            (script.Captured, "__init__", prepared),
            (script.Captured, "__call__", timed(script.Captured.__call__, "launching")),
            (script.Updater, "__call__", counted),
            (script.ReplayBuffer, "add", timed(script.ReplayBuffer.add, "adding")),
            (torch.Tensor, "cpu", timed(torch.Tensor.cpu, "waiting")),
        ):
            stack.enter_context(patch.object(owner, name, function))
        silence = stack.enter_context(open(os.devnull, "w"))
        stack.enter_context(redirect_stdout(silence))
        stack.enter_context(redirect_stderr(silence))
        try:
            script.train(
                script.Args(
                    total_timesteps=10**8,
                    num_envs=setting.num_envs,
                    update_frequency=setting.update_frequency,
                    buffer_size=100_000,
                    learning_starts=2_000,
                    random_shift=0,
                    compile=setting.compile,
                )
            )
        except Measured as done:
            return done.args[0]


def count_kernels(run) -> int:
    """How many kernels `run` launches."""
    with torch.profiler.profile() as profiler:
        run()
        torch.cuda.synchronize()
    on_device = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return sum(not event.is_user_annotation and not event.name.startswith(("Mem", "mem")) for event in on_device)


@dataclass
class Args:
    rounds: int = 3
    """measurements of each setting, alternating"""


def main(args: Args) -> None:
    if not torch.cuda.is_available():
        sys.exit("no CUDA GPU here")
    results = HERE / "results" / "speed" / "gpu.csv"
    os.chdir(tempfile.mkdtemp())
    print(f"{torch.cuda.get_device_name()}, {SETTINGS[0].cores} cores, torch {torch.__version__}")
    print(
        f"{'environments':>12}{'per update':>12}{'graph':>7}{'compiled':>9}"
        + "".join(f"{title:>11}" for title in COLUMNS.values())
    )
    measured = defaultdict(list)
    for _ in range(args.rounds):
        rows = []
        for k, setting in enumerate(SETTINGS):
            measured[k].append(measure(setting))
            row = {name: round(median(figures[name] for figures in measured[k]), 4) for name in COLUMNS}
            rows.append({"device": torch.cuda.get_device_name(), "torch": torch.__version__} | asdict(setting) | row)
            graph, compiled = ("yes" if on else "no" for on in (setting.graph, setting.compile))
            values = "".join(f"{value:>11,.3f}" for value in row.values())
            print(f"{setting.num_envs:12}{setting.update_frequency:12}{graph:>7}{compiled:>9}{values}", flush=True)
        with results.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main(tyro.cli(Args))
