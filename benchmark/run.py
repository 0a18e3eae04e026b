"""Runs a sweep: every environment x variant x seed that a TOML file names is a cell, and every cell is run once.

    python benchmark/run.py benchmark/sweeps/classic.toml --workers 2
    python benchmark/run.py benchmark/sweeps/classic.toml --dry-run                       the cells and their state
    python benchmark/run.py benchmark/sweeps/classic.toml --variants default --seeds 21 22      a part of it
    python benchmark/run.py benchmark/sweeps/atari57.toml --slurm --partition gpu --time 1440 --workers 20

A cell has the directory ROOT/SWEEP/{env_id}__{variant}__{seed}/ with log.txt and the run below runs/. Whatever stopped
a sweep, the same command goes on with it: finished cells stay, interrupted ones are resumed from their checkpoints;
peers that write none start anew. A file lock, held by the process of the cell itself, keeps a second launcher away.
Exit status: 0, 1 when a cell failed (--dry-run: when one has and was not begun again), 2 for bad input, 128 + the
number of the signal that stopped the launcher.
"""

import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

import tyro
from tqdm import tqdm
from venvs import VENVS, interpreter, make_venv

HERE = Path(__file__).resolve().parent
PEER_VENVS = {"sb3-soft": "sb3", "sb3-dqn": "sb3", "sb3-ppo": "sb3"}
PEER_VENVS |= {"tianshou-sac": "tianshou", "tianshou-reinforce": "tianshou"}
LINES = "{desc}, {percentage:.0f}% of the steps, {remaining} left\n"  # where the bar does not go to a terminal


@dataclass
class Args:
    sweep: tyro.conf.Positional[Path]
    """TOML file of the sweep"""
    environments: tuple[str, ...] = ()
    """only these; none: all of the file's, as for variants and seeds"""
    variants: tuple[str, ...] = ()
    """only these"""
    seeds: tuple[int, ...] = ()
    """only these"""
    workers: int = 1
    """cells that run at a time"""
    threads: int = 1
    """threads per cell, and CPUs per Slurm job"""
    dry_run: bool = False
    """lists the cells and their state, with what failed ones ended with, and runs nothing"""
    root: Path = HERE / "runs"
    """directory of all sweeps"""
    venvs: Path = VENVS
    """directory of the peers' virtual environments, made when they are needed"""
    slurm: bool = False
    """submits the cells as one job array (`pip install submitit`) and ends"""
    partition: str | None = None
    """Slurm's partition; None for the cluster's default"""
    time: int = 240
    """minutes after which Slurm stops a job, which is then requeued and goes on"""
    sbatch: tuple[str, ...] = ()
    """more options of sbatch, as mem=8G gres=gpu:1 exclusive"""


def refuse(message: str) -> NoReturn:
    """Ends the program for bad input: one line, exit status 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


@dataclass(frozen=True)
class Cell:
    """One run of the sweep. Its state is what lies in its directory, so that no kill can make it untrue."""

    directory: Path
    venv: str | None
    python: str
    command: tuple[str, ...]
    total_timesteps: int

    @property
    def name(self) -> str:
        return self.directory.name

    def state(self) -> str:
        """finished, resumable, changed (either, with other flags than the sweep has now) or to do."""
        finished = any(self.directory.glob("runs/*/agent.pt"))
        if not finished and not any(self.directory.glob("runs/*/checkpoint.pt")):
            return "to do"
        if (self.directory / "command.txt").read_text() != self.flags():
            return "changed"
        return "finished" if finished else "resumable"

    def flags(self) -> str:
        script, *flags = self.command
        return shlex.join([Path(script).name, *flags])

    def lock(self) -> IO | None:
        """The open file that holds the lock, None where another process has it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        file = (self.directory / "lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return file

    def start(self, lock: IO, threads: int) -> subprocess.Popen:
        """Resumes the run, or begins it afresh where it left no checkpoint."""
        resume = []
        for run_dir in self.directory.glob("runs/*"):
            if (run_dir / "checkpoint.pt").exists():
                resume = ["--resume", str(run_dir.relative_to(self.directory))]  # flags that contradict it are refused
            else:
                shutil.rmtree(run_dir)
        (self.directory / "failed.txt").unlink(missing_ok=True)
        if not resume:  # what is resumed has been run with these very flags
            (self.directory / "command.txt").write_text(self.flags())
        with (self.directory / "log.txt").open("ab" if resume else "wb") as log:
            return subprocess.Popen(
                [self.python, "-u", *self.command, *resume],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
                pass_fds=[lock.fileno()],  # the lock lives as long as the process, also when the launcher is killed
                start_new_session=True,  # Ctrl-C comes from the launcher alone: scripts end at once at a second one
            )

    def tidy_up(self) -> None:
        """Deletes the replay buffer of a finished run: gigabytes for a game, and the run does not go on."""
        for replay in self.directory.glob("runs/*/replay"):
            shutil.rmtree(replay)

    def failure(self) -> str:
        """What it failed with the last time; nothing if it did not, or has been started again since."""
        path = self.directory / "failed.txt"
        return path.read_text() if path.exists() else ""

    def log(self) -> str:
        path = self.directory / "log.txt"
        return path.read_bytes()[-4000:].decode(errors="replace") if path.exists() else ""

    def steps(self) -> int:
        """Agent steps so far, which the log says every half minute."""
        if any(self.directory.glob("runs/*/agent.pt")):
            return self.total_timesteps
        said = re.findall(r"step (\d+) of ", self.log())
        return int(said[-1]) if said else 0


def read_sweep(args: Args) -> list[Cell]:
    """The cells that the command line asks for, seed by seed."""
    try:
        sweep = tomllib.loads(args.sweep.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        refuse(f"{args.sweep}: {error}")
    tables = {key: sweep.get(key, []) for key in ("environments", "variants", "seeds")}
    for key, there in tables.items():
        asked = getattr(args, key) or tuple(there)
        if not asked or any(value not in there for value in asked):
            refuse(f"--{key} {' '.join(map(str, asked))}: {args.sweep} has {' '.join(map(str, there)) or 'none'}")
        tables[key] = asked
    if any("__" in variant for variant in tables["variants"]):
        refuse(f"{args.sweep}: names of variants must not have __ in them, which separates the parts of a run's name")
    cells = []
    for seed in tables["seeds"]:
        for env_id in tables["environments"]:
            for variant in tables["variants"]:
                flags = sweep.get("flags", {}) | sweep["environments"][env_id] | sweep["variants"][variant]
                script, peer = flags.pop("script", None), flags.pop("peer", None)
                if "total-timesteps" not in flags or bool(script) == (peer in PEER_VENVS):
                    needed = f"total-timesteps, and a script or a peer ({', '.join(PEER_VENVS)})"
                    refuse(f"{args.sweep}: {env_id}, {variant}: needs {needed}")
                flags = {"env-id": env_id, "exp-name": variant, "seed": seed} | flags
                command = [str(HERE / "peers.py"), peer] if peer else [str(HERE.parent / script)]
                for name, value in flags.items():
                    toggle = f"--{name}" if value else f"--no-{name}"
                    command += [toggle] if isinstance(value, bool) else [f"--{name}", str(value)]
                directory = args.root.resolve() / args.sweep.stem / f"{env_id}__{variant}__{seed}".replace("/", "-")
                venv = PEER_VENVS.get(peer)
                python = interpreter(args.venvs, venv)
                cells.append(Cell(directory, venv, python, tuple(command), flags["total-timesteps"]))
    return cells


class Launcher:
    """Runs cells, `workers` at a time, each in a process of its own, until all are finished or a signal comes."""

    def __init__(self, cells: list[Cell], workers: int, threads: int):
        self.cells, self.workers, self.threads = cells, workers, threads
        self.waiting, self.running = list(cells), {}
        self.finished, self.failed, self.elsewhere = 0, [], set()
        self.signals, self.received = [], 0

    def run(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as SIGHUP is under nohup
                signal.signal(number, self.note)
        terminal = sys.stderr.isatty()
        style = {"dynamic_ncols": True} if terminal else {"bar_format": LINES}
        steps, total = sum(cell.steps() for cell in self.cells), sum(cell.total_timesteps for cell in self.cells)
        self.bar = tqdm(initial=steps, total=total, unit=" steps", desc=f"{len(self.cells)} cells", **style)
        shown = 0.0
        while self.running or (self.waiting and not self.received):
            self.pass_signals_on()
            self.reap()
            if not self.received:
                self.fill()
            if time.monotonic() > shown + (1 if terminal else 30):
                shown = time.monotonic()
                self.describe()
                self.bar.refresh()
            time.sleep(0.2)
        self.describe()
        self.bar.close()  # which shows it once more

    def note(self, number: int, frame) -> None:
        self.signals.append(number)
        self.received = number

    def pass_signals_on(self) -> None:
        """The scripts write a checkpoint and end; a second SIGINT ends them at once."""
        while self.signals:
            number = self.signals.pop(0)
            for process, _ in self.running.values():
                process.send_signal(number)

    def fill(self) -> None:
        """Starts as many cells as there are workers free. A cell that runs elsewhere is looked at again later."""
        for cell in list(self.waiting):
            if len(self.running) == self.workers:
                break
            lock = cell.lock()
            if lock is None:
                if cell not in self.elsewhere:
                    self.elsewhere.add(cell)
                    tqdm.write(f"{cell.name}: still runs under another launcher, or after one that was killed; waiting")
                continue
            self.waiting.remove(cell)
            state = cell.state()  # read under the lock
            if state in ("resumable", "to do"):
                try:
                    self.running[cell] = (cell.start(lock, self.threads), lock)
                except OSError as error:  # a full disk, say
                    self.fail(cell, str(error))
                    lock.close()
                continue
            if state == "finished":
                cell.tidy_up()  # it may have finished after its launcher was killed
                self.finished += 1
            else:
                sweep = f"{cell.directory.parent.name}.toml"
                self.fail(cell, f"run with other flags than {sweep} has now; to run it anew, delete {cell.directory}")
            lock.close()

    def reap(self) -> None:
        """Takes note of the processes that have ended."""
        for cell, (process, lock) in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[cell]
            if cell.state() == "finished":
                cell.tidy_up()
                self.finished += 1
            elif not self.received:
                said = [line for line in cell.log().splitlines() if line.strip()]
                last = "\n".join(f"    {line}" for line in said[-5:])
                hint = "; packages: benchmark/requirements.txt" if process.returncode == 2 else ""
                message = f"exit status {process.returncode}{hint}; {cell.directory / 'log.txt'} ends with\n{last}"
                self.fail(cell, message)
                with suppress(OSError):  # a full disk, which may be why the script has failed
                    (cell.directory / "failed.txt").write_text(message)
            lock.close()

    def fail(self, cell: Cell, message: str) -> None:
        self.failed.append(cell)
        tqdm.write(f"FAILED {cell.name}: {message}", sys.stderr)

    def describe(self) -> None:
        """Time left: the agent steps to go at the rate so far, whatever the cells; a failed cell's are not to go."""
        cells = [cell for cell in self.cells if cell not in self.failed]
        self.bar.total, self.bar.n = sum(cell.total_timesteps for cell in cells), sum(cell.steps() for cell in cells)
        self.bar.initial = min(self.bar.initial, self.bar.n)  # a cell without a checkpoint has begun afresh
        failed = f", {len(self.failed)} failed" if self.failed else ""
        self.bar.set_description_str(
            f"{self.finished} of {len(self.cells)} cells done, {len(self.running)} running{failed}", refresh=False
        )


class Job:
    """A cell as a job of Slurm, of so many minutes. submitit pickles it, and calls `checkpoint` to requeue it."""

    def __init__(self, threads: int, minutes: int):
        self.threads, self.minutes = threads, minutes

    def __call__(self, cell: Cell) -> None:
        requeue, start = signal.getsignal(signal.SIGUSR1), time.monotonic()  # submitit's
        launcher = Launcher([cell], 1, self.threads)
        launcher.run()
        while launcher.received:
            if cell.state() == "to do" and time.monotonic() - start > 60 * self.minutes - 300:
                raise RuntimeError(f"{cell.name}: no checkpoint within its time; needs more than --time {self.minutes}")
            if launcher.received == signal.SIGUSR1:  # the time is nearly up, or the job preempted
                requeue(signal.SIGUSR1, None)  # does not return
            time.sleep(1)  # SIGTERM: Slurm preempts, requeues or cancels the job, and ends it itself
        if launcher.failed:
            raise RuntimeError(f"{cell.name} failed: {cell.log()}")

    def checkpoint(self, cell: Cell):
        import submitit

        return submitit.helpers.DelayedSubmission(self, cell)  # the process is over, its checkpoint on disk


def submit(cells: list[Cell], args: Args) -> None:
    """One job array for all cells, `workers` of them at a time."""
    # Slurm may send the signal to every process of a job. The scripts take SIGUSR1 as one to stop at; SIGUSR2, what
    # submitit would use, kills them. Read when submitit is imported, here and in the job.
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"
    folder = cells[0].directory.parent / "slurm"
    options = {name: value or True for name, _, value in (option.partition("=") for option in args.sbatch)}
    try:
        import submitit

        executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=1_000)  # timeouts that requeue
        executor.update_parameters(
            name=folder.parent.name,
            timeout_min=args.time,
            cpus_per_task=args.threads,
            slurm_partition=args.partition,
            slurm_array_parallelism=args.workers,
            slurm_setup=[
                "export SUBMITIT_PREEMPT_SIGNAL=USR1",
                f"export SRUN_CPUS_PER_TASK={args.threads}",  # Slurm 22.05 and later do not pass sbatch's on to srun
            ],
            slurm_additional_parameters={"requeue": True} | options,
        )
        jobs = executor.map_array(Job(args.threads, args.time), cells)
    except (ImportError, RuntimeError) as error:  # no submitit, no Slurm, or sbatch's own refusal
        refuse(f"--slurm: {error}")
    print(f"submitted {len(jobs)} cells as job {jobs[0].job_id.split('_')[0]}; logs in {folder}")


def main(args: Args) -> int:
    """Returns the exit status."""
    if args.workers < 1:
        refuse(f"--workers {args.workers}: must be at least 1")
    cells = read_sweep(args)
    if args.dry_run:
        states = []
        for cell in cells:
            state = "running" if cell.directory.exists() and not cell.lock() else cell.state()
            failure = cell.failure() if state in ("to do", "resumable") else ""
            states.append("failed" if failure else state)
            print(f"{states[-1]:10}{cell.steps():>12,} of {cell.total_timesteps:>12,} steps  {cell.name}")
            if failure:
                print(f"    {failure}")
        print(", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) + f": {len(cells)} cells")
        return int("failed" in states)
    for venv in sorted({cell.venv for cell in cells if cell.venv and cell.state() != "finished"}):
        try:
            make_venv(args.venvs, venv)
        except subprocess.CalledProcessError as error:
            print(f"error: {shlex.join(map(str, error.cmd))} failed; no cell was started", file=sys.stderr)
            return 1
    if args.slurm:
        left = [cell for cell in cells if cell.state() != "finished"]
        print(f"{len(left)} of {len(cells)} cells to submit", flush=True)
        if left:
            submit(left, args)
        return 0
    launcher = Launcher(cells, args.workers, args.threads)
    launcher.run()
    if launcher.failed:
        print("failed: " + ", ".join(cell.name for cell in launcher.failed), file=sys.stderr)
    return 128 + launcher.received if launcher.received else int(bool(launcher.failed))


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Args)))
