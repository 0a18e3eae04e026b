"""sdsac_atari.py on a GPU: speed by number of environments, with the CUDA graph and without, and with --compile for the
default; where the time goes.

python benchmark/gpu.py                    a table and benchmark/results/speed/gpu.csv, some minutes a round

Each measurement is the script's own training loop on Breakout with clocks around its parts, in a process of its own:
batch 64, an update per 4 steps; in the last two rows the schedule of Zhou et al. 2024, 10 environments and an update
per 10 steps. Medians over --rounds, written after each. What no clock covers (launching the policy, the diagnostics,
logging) is the rest of the wall time.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
import tyro

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
SKIPPED, MEASURED, ALONE = 500, 4_000, 500  # updates: before the clock starts, under it, and without the loop after it


@dataclass
class Setting:
    num_envs: int
    update_frequency: int
    graph: bool
    compile: bool = False
    threads: int = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


SETTINGS = [Setting(num_envs, 4, graph) for num_envs in (4, 8, 16, 32) for graph in (True, False)]
SETTINGS += [Setting(8, 4, True, compile=True)]
SETTINGS += [Setting(10, 10, graph) for graph in (True, False)]
COLUMNS = {  # of the table; times are milliseconds per update
    "steps_per_s": "steps/s",
    "updates_per_s": "updates/s",
    "wall": "wall ms",
    "update": "update",  # sampling, copies, launch
    "environment": "envs",  # what is not hidden behind the update
    "waiting": "waiting",  # for the actions, and so for all updates before them
    "adding": "adding",
    "alone": "alone",  # of an update if nothing else is done: with a graph the GPU's time, without it that of launches
    "kernels": "kernels",  # of an update; counted without a graph, which launches the same
}


def measure_here(setting: Setting) -> None:
    """Trains until the clock has seen enough; prints a JSON object."""
    import sdsac_atari as script

    spent, calls, start = defaultdict(float), 0, 0.0

    def clock(owner, name: str, part: str) -> None:
        function = getattr(owner, name)

        def timed(*args, **kwargs):
            begin = time.perf_counter()
            result = function(*args, **kwargs)
            spent[part] += time.perf_counter() - begin
            return result

        setattr(owner, name, timed)

    make_envs, call = script.make_envs, script.Updater.__call__

    def make_timed_envs(*args, **kwargs):
        envs = make_envs(*args, **kwargs)
        clock(envs, "send", "environment")
        clock(envs, "recv", "environment")
        return envs

    def counted(updater):
        nonlocal calls, start
        if calls == 0:
            updater.captures = setting.graph
        if calls == SKIPPED:
            assert (updater.graph is not None) == setting.graph, "no graph was captured"
            torch.cuda.synchronize()
            spent.clear()
            start = time.perf_counter()
        if calls == SKIPPED + MEASURED:
            torch.cuda.synchronize()
            wall = time.perf_counter() - start
            report(updater, wall)
        calls += 1
        begin = time.perf_counter()
        metrics = call(updater)
        spent["update"] += time.perf_counter() - begin
        return metrics

    def report(updater, wall: float) -> None:
        alone = updater.graph.replay if updater.graph else updater.run
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(ALONE):
            alone()
        last.record()
        torch.cuda.synchronize()
        figures = {part: 1e3 * seconds / MEASURED for part, seconds in spent.items()}
        figures |= {
            "steps_per_s": MEASURED * setting.update_frequency / wall,
            "updates_per_s": MEASURED / wall,
            "wall": 1e3 * wall / MEASURED,
            "alone": first.elapsed_time(last) / ALONE,
            "kernels": None if setting.graph else count_kernels(alone),
        }
        print(json.dumps(figures), flush=True)
        os._exit(0)

    script.make_envs, script.Updater.__call__ = make_timed_envs, counted
    clock(torch.Tensor, "cpu", "waiting")
    clock(script.ReplayBuffer, "add", "adding")
    os.chdir(tempfile.mkdtemp())
    script.train(
        script.Args(
            total_timesteps=10**8,
            num_envs=setting.num_envs,
            update_frequency=setting.update_frequency,
            buffer_size=100_000,
            learning_starts=2_000,
            compile=setting.compile,
        )
    )


def count_kernels(run) -> int:
    """How many kernels `run` launches."""
    with torch.profiler.profile() as profiler:
        run()
        torch.cuda.synchronize()
    on_device = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return sum(not event.is_user_annotation and not event.name.startswith(("Mem", "mem")) for event in on_device)


def measure(setting: Setting) -> dict:
    """The figures of one setting, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--here", json.dumps(asdict(setting))], capture_output=True, text=True, timeout=400
    )
    if done.returncode:
        raise RuntimeError(f"{setting}: {done.stdout[-500:]}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


@dataclass
class Args:
    rounds: int = 3
    """measurements of each setting, alternating"""


def main(args: Args) -> None:
    if not torch.cuda.is_available():
        sys.exit("no CUDA GPU here")
    print(f"{torch.cuda.get_device_name()}, {SETTINGS[0].threads} CPU threads, torch {torch.__version__}")
    print(
        f"{'environments':>12}{'per update':>12}{'graph':>7}{'compiled':>9}"
        + "".join(f"{title:>11}" for title in COLUMNS.values())
    )
    measured = defaultdict(list)
    for _ in range(args.rounds):
        rows = []
        for k, setting in enumerate(SETTINGS):
            measured[k].append(measure(setting))
            row = {name: middle([figures[name] for figures in measured[k]]) for name in COLUMNS}
            rows.append({"device": torch.cuda.get_device_name(), "torch": torch.__version__} | asdict(setting) | row)
            graph, compiled = ("yes" if on else "no" for on in (setting.graph, setting.compile))
            values = "".join(f"{'' if value is None else f'{value:,.3f}':>11}" for value in row.values())
            print(f"{setting.num_envs:12}{setting.update_frequency:12}{graph:>7}{compiled:>9}{values}", flush=True)
        with (HERE / "results" / "speed" / "gpu.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def middle(values: list) -> float | None:
    """The median, or None where nothing was measured."""
    return None if None in values else round(median(values), 4)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--here"]:  # as `measure` calls it
        measure_here(Setting(**json.loads(sys.argv[2])))
    else:
        main(tyro.cli(Args))
