"""What denormal numbers cost on a CPU: the time of an update as a run goes on, with them and flushed to zero.

python benchmark/denormals.py                                       CartPole-v1, 20,000 steps, 3 minutes on one core
python benchmark/denormals.py --script sdsac_atari --env-id PongNoFrameskip-v4 --total-timesteps 40000

Where a unit is dead its gradients are 0, and Adam's running means of them halve every 7 updates: after some 800 they
are denormal numbers (below 1.2e-38), which processors are slow with, and stay so. The scripts flush them to zero. This
trains a script with one seed, not compiled, flushed and not, in processes of their own, and prints the median
milliseconds of `update` in each tenth of the run.
"""

import importlib
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


@dataclass
class Args:
    script: str = "sdsac_classic"
    """sdsac_classic or sdsac_atari"""
    env_id: str = "CartPole-v1"
    """the id of the environment"""
    total_timesteps: int = 20_000
    """agent steps of each run"""
    rounds: int = 1
    """runs of each kind, alternating"""
    threads: int = 1
    """threads of each run"""
    here: bool | None = None
    """used by the script itself: trains in this process, with denormal numbers flushed or not"""


def train(args: Args) -> None:
    """Trains and prints the median milliseconds of `update` in each tenth of the run."""
    import torch

    script = importlib.import_module(args.script)
    torch.set_flush_denormal(args.here)
    torch.set_flush_denormal = lambda mode: None  # the script would flush
    torch.set_num_threads(args.threads)
    torch.set_num_threads = lambda threads: None
    times, update = [], script.update

    def timed(*arguments):
        start = time.perf_counter()
        metrics = update(*arguments)
        times.append(1e3 * (time.perf_counter() - start))
        return metrics

    script.update = timed
    flags = {"env_id": args.env_id, "total_timesteps": args.total_timesteps, "cuda": False, "compile": False}
    script.train(script.Args(**flags, checkpoint_frequency=args.total_timesteps))
    tenth = len(times) // 10
    print(*(median(times[k * tenth : (k + 1) * tenth]) for k in range(10)))


def main(args: Args) -> None:
    if args.here is not None:
        return train(args)
    for _ in range(args.rounds):
        for flush in (True, False):
            command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--here", str(flush)]
            with tempfile.TemporaryDirectory() as directory:
                done = subprocess.run(command, capture_output=True, text=True, cwd=directory)
            if done.returncode:
                raise RuntimeError(done.stderr[-2000:])
            tenths = "".join(f"{float(ms):7.2f}" for ms in done.stdout.splitlines()[-1].split())
            print(f"{'flushed' if flush else 'as they are':12}{tenths} ms", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args))
