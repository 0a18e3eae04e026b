"""How well the critics of Atari runs know replayed transitions and new ones: their squared error in both.

python benchmark/generalisation.py runs/BreakoutNoFrameskip-v4__*        a line per run and generalisation.csv

Of each run's last checkpoint: the latest --window transitions of its replay buffer, and as many that its actor plays
anew, from the beginning of games. From both, --samples are drawn. What is compared is (Q_i(s,a) - y)^2, the mean over
the twins, where y is the n-step target of the checkpoint's target networks, observations as they are. At D draws a
step, that is --batch-size / --update-frequency, one of N replayed transitions that is k steps old has been drawn some D
k / N times: the longer a run, the fewer the latest ones have been, so compare runs at the same step. The standard
errors, after the signs of plus and minus, are those of the samples; that few games make up either window is not in
them. Runs may be under way, if they write no checkpoint just then; those of study scripts that change the networks
cannot be loaded, or, with plain_filters.py, are taken for the script's and measured wrongly.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import saved_runs
import torch
import torch.nn.functional as F
import tyro
from saved_runs import script


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """directories of runs, each with a checkpoint"""
    window: int = 20_000
    """transitions, the latest ones of the replay buffer and new ones"""
    samples: int = 2_048
    """how many of either are looked at"""
    seed: int = 1_000
    """seed of the new games and of the samples"""
    csv: Path = Path(__file__).parent / "results" / "generalisation.csv"
    """where the table goes"""


@torch.no_grad()
def squared_errors(agent: script.Agent, batch: script.Batch, args: script.Args) -> torch.Tensor:
    """(Q_i(s,a) - y)^2, the mean over the twins: (B,)"""
    actions = batch.actions.unsqueeze(1)
    log_pi = F.log_softmax(agent.actor(batch.next_observations), dim=1)
    next_q = agent.qf1_target(batch.next_observations), agent.qf2_target(batch.next_observations)
    next_q = script.average_or_min(*next_q, args.double_average)
    y = batch.rewards + batch.discounts * script.soft_value(next_q, log_pi, agent.log_alpha.exp())
    errors = [(qf(batch.observations).gather(1, actions).squeeze(1) - y).square() for qf in (agent.qf1, agent.qf2)]
    return (errors[0] + errors[1]) / 2


@torch.no_grad()
def play(agent: script.Agent, args: script.Args, buffer: script.ReplayBuffer, seed: int) -> None:
    """Fills `buffer` with what the actor does, as `train` would."""
    envs = script.make_envs(args, args.num_envs)
    generator = torch.Generator().manual_seed(seed)
    observations, infos = envs.reset(seed=script.environment_seeds(np.random.SeedSequence(seed), args.num_envs))
    tracker = script.GameTracker(infos)
    for _ in range(buffer.rows):
        noise = script.exponential_noise(args.num_envs, int(envs.single_action_space.n), generator)
        actions, entropies = (x.numpy() for x in script.act(agent.actor, torch.from_numpy(observations), noise))
        next_observations, scores, terminated, truncated, infos = envs.step(actions)
        resets, _ = tracker.step(scores, terminated, truncated, infos)
        buffer.add(observations, actions, np.clip(scores, -1, 1), terminated, truncated, entropies, resets)
        observations = next_observations
    envs.close()


def measure(run_dir: Path, args: Args) -> dict:
    """A row of the table."""
    agent, trained, replayed, row = saved_runs.load(run_dir, args.window)
    window, shape = replayed.rows * trained.num_envs, (replayed.stack, *replayed.frame_shape)
    new = script.ReplayBuffer(window, trained.num_envs, shape, trained.n_step, trained.gamma)
    play(agent, trained, new, args.seed)
    for name, buffer in (("replayed", replayed), ("new", new)):
        buffer.rng = np.random.default_rng(args.seed)
        sizes = [64] * (args.samples // 64) + [args.samples % 64] * (args.samples % 64 > 0)
        errors = torch.cat([squared_errors(agent, buffer.sample(size), trained) for size in sizes])
        row[name], row[f"{name}_standard_error"] = errors.mean().item(), errors.std().item() / len(errors) ** 0.5
    return row


def main(args: Args) -> None:
    saved_runs.require_replay(args.runs)
    rows = []
    for run_dir in args.runs:
        row = measure(run_dir, args)
        rows.append({name: round(value, 5) if isinstance(value, float) else value for name, value in row.items()})
        shown = ", ".join(
            f"{name} {row[name]:.4f} ± {row[name + '_standard_error']:.4f}" for name in ("replayed", "new")
        )
        print(f"{row['run']}, step {row['step']:,}: {shown}", flush=True)
    saved_runs.write_table(args.csv, rows)


if __name__ == "__main__":
    main(tyro.cli(Args))
