"""Where the time of a step goes, before and after, and how it grows with the batch, the environments, the actions and
the buffer.

python benchmark/costs.py                    a table and two figures, some 15 minutes on 2 cores

Each measurement is the script's own training loop with a clock around the calls named in PARTS; a call inside another
one is counted where it is named itself, and what no clock covers is "rest". "Before" is the update of plain.py: an
encoder per network, float32, default memory layout, plain Adam. Medians over --rounds;
figures go to benchmark/results/speed/: costs.csv, scaling_atari.png, scaling_classic.png.
"""

import csv
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
import tyro

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
PARTS = ("environment", "buffer", "acting", "forward", "backward", "optimiser", "target", "logging", "rest")
GAMES = {4: "Breakout", 6: "Pong", 9: "MsPacman", 18: "Boxing"}  # number of actions: a game that has so many
SCALES = {
    "batch_size": (32, 64, 128, 256, 512),
    "num_envs": (1, 2, 4, 8, 16, 32, 64),
    "actions": tuple(GAMES),
    "buffer_size": (10_000, 100_000, 300_000, 1_000_000),
}
SKIPPED, MEASURED = 20, 100  # updates per measurement


@dataclass
class Setting:
    script: str = "atari"
    plain: bool = False
    batch_size: int = 64
    num_envs: int = 8
    actions: int = 4
    buffer_size: int = 10_000
    threads: int = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Clock:
    """Time spent in wrapped functions, less what wrapped functions inside of them took."""

    def __init__(self):
        self.parts, self.inner, self.updates, self.start = defaultdict(float), [], 0, 0.0

    def wrap(self, owner, name: str, part: str) -> None:
        function = getattr(owner, name)

        def timed(*args, **kwargs):
            self.inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                taken = time.perf_counter() - start
                self.parts[part] += taken - self.inner.pop()
                if self.inner:
                    self.inner[-1] += taken

        setattr(owner, name, timed)

    def count(self, owner, name: str) -> None:
        """Restarts the clock at the first update that counts, and ends the program after the last."""
        function = getattr(owner, name)

        def counted(*args, **kwargs):
            if self.updates == SKIPPED:
                self.parts.clear()
                self.start = time.perf_counter()
            if self.updates == SKIPPED + MEASURED:
                wall = time.perf_counter() - self.start
                self.parts["rest"] = wall - sum(self.parts.values())
                print(*(1e3 * self.parts[part] / MEASURED for part in PARTS), flush=True)
                os._exit(0)
            self.updates += 1
            return function(*args, **kwargs)

        setattr(owner, name, counted)


def full(buffer_class) -> None:
    """Makes every new buffer full of made-up transitions."""
    create, rng = buffer_class.__init__, np.random.default_rng(0)

    def created(self, size, num_envs, observation_shape, *args, **kwargs):
        create(self, size, num_envs, observation_shape, *args, **kwargs)
        observations = rng.integers(256, size=(num_envs, *observation_shape)).astype(np.uint8)
        numbers, none = rng.random(num_envs), np.zeros(num_envs, bool)
        for _ in range(self.rows):
            self.add(observations, none, numbers, rng.random(num_envs) < 0.002, none, numbers, none)

    buffer_class.__init__ = created


def measure_here(setting: Setting) -> None:
    """Trains until the clock has seen enough; prints milliseconds per update of each part."""
    import torch

    torch.set_num_threads(setting.threads)
    clock = Clock()
    if setting.script == "atari":
        import sdsac_atari as script

        env_id, every = f"{GAMES[setting.actions]}NoFrameskip-v4", 4
    else:
        import sdsac_classic as script

        env_id, every = "CartPole-v1", 1
        script.torch.set_num_threads = lambda threads: None  # the script would choose
    full(script.ReplayBuffer)
    if setting.plain:
        import plain

        plain.install(script)
    make_envs = script.make_envs

    def make_timed_envs(*args, **kwargs):
        envs = make_envs(*args, **kwargs)
        for name in ("send", "recv") if setting.script == "atari" else ("step",):
            clock.wrap(envs, name, "environment")
        return envs

    script.make_envs = make_timed_envs
    clock.count(script, "update")
    clock.wrap(script, "act", "acting")
    clock.wrap(script, "update", "forward")
    for name in ("add", "pick", "batch"):
        clock.wrap(script.ReplayBuffer, name, "buffer")
    clock.wrap(torch.autograd, "grad", "backward")
    clock.wrap(torch.optim.Adam, "step", "optimiser")
    clock.wrap(torch, "_foreach_lerp_", "target")
    clock.wrap(torch.Tensor, "lerp_", "target")
    clock.wrap(script.SummaryWriter, "add_scalar", "logging")
    os.chdir(tempfile.mkdtemp())
    script.train(
        script.Args(
            env_id=env_id,
            total_timesteps=10**6,
            batch_size=setting.batch_size,
            num_envs=setting.num_envs,
            buffer_size=setting.buffer_size,
            learning_starts=1_000,
            update_frequency=every,
            cuda=False,
            compile=False,
        )
    )


def measure(setting: Setting) -> dict:
    """Milliseconds per update, by part, in a process of its own."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in asdict(setting).items() if name != "plain"]
    command = [sys.executable, __file__, "--here", *flags, *(["--plain"] if setting.plain else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{setting}: {done.stderr[-2000:]}")
    return dict(zip(PARTS, map(float, done.stdout.splitlines()[-1].split()), strict=True))


def draw(rows: list[dict], script: str, caption: str) -> None:
    from matplotlib import pyplot as plt

    scales = [scale for scale in SCALES if any((r["script"], r["scale"]) == (script, scale) for r in rows)]
    figure, axes = plt.subplots(1, len(scales), figsize=(3.4 * len(scales), 3.6), layout="constrained")
    colours = plt.get_cmap("cividis")(np.linspace(0, 1, len(PARTS)))
    hatches = ("", "///", "", "\\\\\\", "", "...", "", "xxx", "")
    for axis, scale in zip(axes, scales, strict=True):
        own = [row for row in rows if (row["script"], row["scale"]) == (script, scale)]
        bottom = np.zeros(len(own))
        for part, colour, hatch in zip(PARTS, colours, hatches, strict=True):
            heights = np.array([row[part] for row in own])
            axis.bar(range(len(own)), heights, bottom=bottom, color=colour, hatch=hatch, edgecolor="white", label=part)
            bottom += heights
        axis.set_xticks(range(len(own)), [f"{row[scale]:,}" for row in own], fontsize=8)
        axis.set_xlabel(scale.replace("_", " "))
    steps = "4 agent steps" if script == "atari" else "agent step"
    axes[0].set_ylabel(f"ms per {steps} and update")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center", fontsize=8)
    figure.suptitle(caption, fontsize=8)
    figure.savefig(HERE / "results" / "speed" / f"scaling_{script}.png", dpi=130)
    plt.close(figure)


@dataclass
class Args:
    rounds: int = 3
    """measurements of each setting, alternating"""


def main(args: Args) -> None:
    from importlib.metadata import version

    from speed import processor

    base = {"atari": Setting(), "classic": Setting("classic", num_envs=1, actions=2)}
    settings = [("profile", Setting(plain=True)), ("profile", Setting()), ("profile", base["classic"])]
    for script, default in base.items():
        for scale, values in SCALES.items():
            if (script, scale) != ("classic", "actions"):
                settings += [(scale, Setting(**asdict(default) | {scale: value})) for value in values]
    measured = [[measure(setting) for _, setting in settings] for _ in range(args.rounds)]
    rows = []
    for k, (scale, setting) in enumerate(settings):
        parts = {part: median(figures[k][part] for figures in measured) for part in PARTS}
        rows.append({"scale": scale} | asdict(setting) | {part: round(ms, 3) for part, ms in parts.items()})
    with (HERE / "results" / "speed" / "costs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    each = f"medians of {args.rounds} rounds" if args.rounds > 1 else "one measurement each"
    caption = f"{processor()}, {base['atari'].threads} threads, torch {version('torch')}; {each}"
    print(f"{caption}\n\nms per update{'before':>12}{'Atari':>12}{'classic':>12}")
    for part in PARTS:
        print(f"{part:13}" + "".join(f"{row[part]:12.2f}" for row in rows[:3]))
    print(f"{'sum':13}" + "".join(f"{sum(row[part] for part in PARTS):12.2f}" for row in rows[:3]))
    for script in base:
        draw(rows, script, caption)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--here"]:  # as `measure` calls it
        measure_here(tyro.cli(Setting, args=sys.argv[2:]))
    else:
        main(tyro.cli(Args))
