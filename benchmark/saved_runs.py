"""What the scripts that look into Atari runs' checkpoints share. Not a script."""

import csv
import sys
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import sdsac_atari as script


def require_replay(runs: Iterable[Path]) -> None:
    """Ends with a line where a run has lost its replay buffer."""
    if missing := [str(run) for run in runs if not (run / "replay").is_dir()]:
        sys.exit(f"no replay/ in {', '.join(missing)}; benchmark/run.py deletes that of finished runs")


def load(run_dir: Path, window: int) -> tuple[script.Agent, script.Args, script.ReplayBuffer, dict]:
    """The last checkpoint of a run, which may be under way if it writes none just then: the agent, the flags it was
    trained with, less a study's own, the latest `window` transitions of its replay buffer, which samples without
    shifts, and the first columns of a table's row. From then on `script.keep_only` does nothing in this process.
    """
    saved = torch.load(run_dir / "checkpoint.pt", map_location="cpu", weights_only=True)
    known = {field.name for field in fields(script.Args)}  # a study's own flags are not
    args = script.Args(**{name: value for name, value in saved["args"].items() if name in known})
    agent = script.make_agent(args, saved["observation_shape"], saved["num_actions"], "cpu")
    window = min(window, args.buffer_size)
    buffer = script.ReplayBuffer(window, args.num_envs, saved["observation_shape"], args.n_step, args.gamma)
    script.keep_only = lambda directory, names: None  # loading deletes nothing of a run that is under way
    loop = script.load_checkpoint(run_dir, agent, buffer, torch.device("cpu"))  # of the replay what fits: the latest
    row = {"run": run_dir.name, "env_id": args.env_id, "exp_name": args.exp_name, "seed": args.seed}
    return agent, args, buffer, row | {"step": loop["counts"][0]}


def write_table(path: Path, rows: list[dict]) -> None:
    """`rows` as CSV, under the names of the first one's columns."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
