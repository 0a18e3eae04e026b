# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "ale-py==0.12.1",
#     "gymnasium==1.4.0",
#     "numpy==2.4.6",
#     "psutil==7.2.2",
#     "tensorboard==2.21.0",
#     "torch==2.13.0",
#     "tqdm==4.70.1",
#     "tyro==1.0.17",
# ]
# ///
"""Stable Discrete Soft Actor-Critic (SD-SAC) on Atari, in one file.

    python sdsac_atari.py                                    BreakoutNoFrameskip-v4, on CUDA where there is one
    python sdsac_atari.py --env-id ALE/Pong-v5 --seed 2      any game of the ALE (here with sticky actions)
    python sdsac_atari.py --no-double-average --no-q-clip --no-entropy-penalty --n-step 1 --random-shift 0
                                                             vanilla discrete SAC, but for the first filters
    tensorboard --logdir runs                                the curves

SD-SAC changes three things in discrete SAC. The mean of the two critics replaces their minimum, which under-estimates;
Q-clip holds each critic near its target network; and a penalty holds the policy's entropy near what it was when the
data were collected. To see how, read `gradients` and `update`, then `ReplayBuffer.pick` and the loop of `train`: the
rest is environments, speed, checkpoints and messages. Two things are no part of SD-SAC: sampled observations are moved
at random by a pixel or two, as in DrQ (Kostrikov et al. 2020, arXiv:2004.13649; `--random-shift 0` leaves it out), and
the filters of the first layer sum to zero (`BlockConv2d`).

Sources: Zhou et al. 2024, "Revisiting Discrete Soft Actor-Critic" (TMLR, arXiv:2209.10081): the algorithm;
Christodoulou 2019 (arXiv:1910.07207): SAC for discrete actions; Haarnoja et al. 2018 (arXiv:1812.05905): the tuned
temperature; Mnih et al. 2015 (Nature 518): the network and the treatment of the games. B stands for the batch size,
A for the number of actions, E for the number of environments; a step is an agent step, that is 4 frames of a game.
"""

import copy
import errno
import importlib.util
import io
import math
import os
import shlex
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

import ale_py
import gymnasium as gym
import numpy as np
import psutil
import torch
import torch.nn.functional as F
import tyro
from ale_py.vector_env import AtariVectorEnv
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

gym.register_envs(ale_py)

LOG_FREQUENCY = 1_000  # agent steps between two entries of the losses in TensorBoard
LINES = {  # of tqdm, without a terminal: one every half minute, with the rate since the last
    "mininterval": 30,
    "miniters": 1,
    "smoothing": 1,
    "bar_format": "step {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left{postfix}\n",
}
FILM_PACKAGES = {"moviepy": "moviepy", "cv2": "opencv-python-headless"}  # module: what pip calls it
PROBE_PROBABILITY = 0.01  # chance per step of environment 0 that the diagnostics begin to follow a pair
PROBE_LENGTH = 1_000  # steps that they follow it for; what comes after is left to the critics' estimate
FRAME_SKIP = 4  # frames that each action is repeated for; the last two are maxed
GREEDY_EPSILON = 0.01  # share of random actions in greedy play, so that none stands still before an unserved ball
# Where the encoder is in bfloat16, which is faster there; set "cuda" to False for a GPU older than Ampere
BF16 = {"cpu": torch.cpu._is_avx512_bf16_supported(), "cuda": True}


@dataclass
class Args:
    exp_name: str = Path(__file__).stem
    """the name of this experiment"""
    seed: int = 1
    """seed of the environments, the networks, the actions and the replay samples"""
    torch_deterministic: bool = True
    """whether cuDNN uses deterministic algorithms only"""
    cuda: bool = True
    """whether CUDA is used where it is available"""
    compile: bool = True
    """whether losses and gradients are compiled by torch.compile, which takes half a minute and a C++ compiler;
    then an update takes a GPU two fifths less time, some CPUs a fifth less, others no less"""
    track: bool = False
    """whether this experiment is tracked with Weights and Biases (`pip install wandb`)"""
    wandb_project_name: str = "sdsac"
    """the Weights and Biases project"""
    wandb_entity: str | None = None
    """the entity (team) of the Weights and Biases project"""
    resume: Path | None = None
    """directory of an interrupted run to go on with, to its --total-timesteps or to a larger one given here"""
    checkpoint_frequency: int = 100_000
    """agent steps between checkpoints; one is also written at the end and on SIGTERM, SIGINT, SIGUSR1 and SIGHUP"""
    evaluate: Path | None = None
    """agent.pt, checkpoint.pt or a run's directory: plays it greedy and sampled and prints the returns; no training"""
    eval_episodes: int = 30
    """games per evaluation, shared out evenly over up to 10 environments"""
    eval_frequency: int | None = None
    """agent steps between evaluations of the greedy policy during training; None for no evaluation"""
    capture_video: bool = False
    """whether the trained agent, or that of --evaluate, is filmed (`pip install moviepy opencv-python-headless`)"""

    env_id: str = "BreakoutNoFrameskip-v4"
    """the id of the game: *NoFrameskip-v4 (deterministic), *NoFrameskip-v0 or ALE/*-v5 (sticky actions)"""
    total_timesteps: int = 5_000_000
    """total agent steps of 4 frames, summed over the environments"""
    num_envs: int = 8
    """number of environments stepped side by side"""
    buffer_size: int = 500_000
    """capacity of the replay buffer in transitions of 7 kB, summed over the environments"""
    gamma: float = 0.99
    """the discount factor"""
    n_step: int = 3
    """steps of reward before the bootstrap; entropy enters only there, so a larger n also makes it count for less"""
    random_shift: int = 2
    """largest shift of a sampled observation in pixels, up or down and left or right, drawn anew each time (DrQ); 0 for
    none, as in the paper"""
    tau: float = 0.005
    """the share of the critics that flows into their targets at each target update"""
    target_network_frequency: int = 1
    """agent steps between target updates; with a value no larger than --update-frequency, every update moves them"""
    batch_size: int = 64
    """transitions per update"""
    learning_starts: int = 10_000
    """agent steps with uniformly random actions; updates are counted from there"""
    update_frequency: int = 4
    """agent steps between updates"""
    gradient_steps: int = 1
    """updates each time one is due; all of them move the targets, or none"""
    policy_lr: float = 1e-3
    """learning rate of the actor"""
    q_lr: float = 3e-4
    """learning rate of the critics and of the temperature"""
    anneal_lr: bool = False
    """whether the learning rates fall linearly to zero over the run"""
    max_grad_norm: float | None = None
    """largest norm of the gradient, the two critics taken together and the actor apart; None for no clipping"""

    autotune: bool = False
    """whether the temperature is tuned to hold the policy's entropy at its target; otherwise it stays at --alpha"""
    alpha: float = 0.01
    """the temperature; with --autotune, its starting value"""
    target_entropy_scale: float = 0.5
    """target entropy as a share of log A, the entropy of the uniform policy; ignored with --no-autotune"""
    double_average: bool = True
    """whether the two critics' mean stands in target and actor loss; otherwise their minimum (vanilla SAC)"""
    q_clip: bool = True
    """whether critics are held near their targets by --clip-range; otherwise plain squared error (vanilla SAC)"""
    clip_range: float = 0.5
    """c of Q-clip, in units of return; ignored with --no-q-clip. Where the clipped branch wins the gradient is zero, so
    Q can only move by about tau * c per update: that times the number of updates should be well above the returns"""
    entropy_penalty: bool = True
    """whether the policy's entropy is held near the entropy it had when the transition was collected"""
    beta: float = 0.01
    """weight of the entropy penalty; ignored with --no-entropy-penalty"""


def refuse(message: str) -> NoReturn:
    """Ends the program for bad input: one line, exit status 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def check_args(args: Args) -> None:
    """Refuses, before anything is created, values that no run can be made with. Comparisons are False for NaN."""

    def require(name: str, holds: bool, what: str) -> None:
        if not holds:
            refuse(f"--{name.replace('_', '-')} {getattr(args, name)}: must be {what}")

    for name in ("total_timesteps", "num_envs", "n_step", "batch_size", "checkpoint_frequency", "eval_episodes"):
        require(name, 1 <= getattr(args, name) <= 10**12, "from 1 to 10^12")
    for name in ("target_network_frequency", "eval_frequency"):
        value, last = getattr(args, name), args.total_timesteps
        require(name, value is None or 1 <= value <= last, f"from 1 to total_timesteps = {last}")
    require("gradient_steps", 1 <= args.gradient_steps <= 1000, "from 1 to 1000")
    for name in ("gamma", "target_entropy_scale"):
        require(name, 0 <= getattr(args, name) <= 1, "from 0 to 1")
    require("tau", 0 < args.tau <= 1, "above 0 and at most 1")
    for name in ("policy_lr", "q_lr", "alpha", "clip_range"):
        require(name, 0 < getattr(args, name) <= 1e9, "above 0 and at most 1e9")
    require("beta", 0 <= args.beta <= 1e9, "from 0 to 1e9")
    require("max_grad_norm", args.max_grad_norm is None or 0 < args.max_grad_norm <= 1e9, "above 0 and at most 1e9")
    require("seed", 0 <= args.seed < 2**63, "from 0 to 2^63 - 1")
    # A chain must be complete, and an update due, before the last step of all environments
    first, last = args.num_envs * (args.n_step + 1), args.total_timesteps - args.num_envs - 1
    require(
        "learning_starts", first <= args.learning_starts <= last, f"from num_envs * (n_step + 1) = {first} to {last}"
    )
    last = args.total_timesteps - args.num_envs - args.learning_starts
    require("update_frequency", 1 <= args.update_frequency <= last, f"from 1 to {last}, or there may be no update")
    smallest = max(args.batch_size, args.num_envs * (args.n_step + 6))  # leaves valid rows wherever episodes end
    require("buffer_size", args.buffer_size >= smallest, f"at least {smallest}, for this batch, num_envs and n_step")
    if args.track and importlib.util.find_spec("wandb") is None:
        refuse("--track needs Weights and Biases: pip install wandb")
    missing = [package for module, package in FILM_PACKAGES.items() if importlib.util.find_spec(module) is None]
    if args.capture_video and missing:
        refuse(f"--capture-video needs more: pip install {' '.join(missing)}")


# ----------------------------------------------------------------------------------------------------------------------
# Environments


def make_envs(args: Args, num_envs: int, num_threads: int = 0) -> AtariVectorEnv:
    """`num_envs` games stepped by ALE in C++ threads: observations (E, 4, 84, 84) uint8, rewards (E,) int32.

    A lost life sets `terminated` and the game goes on. After the step that ends a game comes a step that only resets
    (NEXT_STEP): its action is ignored, and the observation it is taken from is the last one of the game (of a truncated
    game without the very last frame, which ALE leaves out). ALE's own `episodic_life` would restart the game at each
    lost life, and its `reward_clipping` would lose the score.
    """
    kwargs = gym.spec(args.env_id).kwargs
    return AtariVectorEnv(
        kwargs["game"],
        num_envs,
        num_threads=num_threads or min(num_envs, usable_cores()),
        max_num_frames_per_episode=kwargs["max_num_frames_per_episode"],
        repeat_action_probability=kwargs["repeat_action_probability"],
        full_action_space=kwargs["full_action_space"],
        frameskip=FRAME_SKIP,
        life_loss_info=True,
        reward_clipping=False,
        autoreset_mode=gym.vector.AutoresetMode.NEXT_STEP,
    )


def usable_cores() -> int:
    """Cores that this process may use; a scheduler can have made them fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_env_id(args: Args) -> None:
    """Refuses what is not a game of the ALE with a fixed frame skip, and shifts as large as its frames."""
    given = f"--env-id {args.env_id}"
    try:
        kwargs = gym.spec(args.env_id).kwargs
    except gym.error.Error as error:
        refuse(f"{given}: {error}")
    if "game" not in kwargs:
        refuse(f"{given}: not an Atari game; sdsac_classic.py takes vector observations")
    if not isinstance(kwargs["frameskip"], int):
        name, version = args.env_id.rsplit("-", 1)
        refuse(f"{given}: its frame skip is random; use {name}NoFrameskip-{version}")
    if not 0 <= args.random_shift < 84:
        refuse(f"--random-shift {args.random_shift}: must be from 0 to 83")


# ----------------------------------------------------------------------------------------------------------------------
# Networks


class BlockConv2d(nn.Conv2d):
    """An 8 x 8 convolution of stride 4 on frames that are cut into blocks of 4 x 4 pixels, a channel per pixel of the
    block: (B, 64, 21, 21) -> (B, 32, 20, 20). There it is a 2 x 2 convolution of stride 1: the same sums, faster.

    Its filters are the weights less their mean: they sum to zero, and a plain background drives none. Any other filter
    it drives, and a step can push that below zero nearly everywhere, where it learns no more: half of Pong's died.
    """

    def forward(self, blocks: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight.unflatten(3, (2, 4)).unflatten(2, (2, 4))  # (32, 4, 2, 4, 2, 4)
        weight = weight.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)  # (32, 64, 2, 2)
        return F.conv2d(blocks, weight, self.bias)


class FlattenChannelsLast(nn.Module):
    """(B, C, H, W) -> (B, HWC), the order in which features lie in memory here: nothing is moved."""

    def forward(self, features: Tensor) -> Tensor:
        return features.permute(0, 2, 3, 1).flatten(1)


class Encoder(nn.Module):
    """The NatureCNN that actor and critics share: pixels (B, 4, 84, 84) uint8, or what `scale` made of them -> features
    (B, 512) float32.
    """

    num_features = 512

    def __init__(self, observation_shape: tuple[int, ...]):
        super().__init__()
        self.layers = nn.Sequential(
            BlockConv2d(observation_shape[0], 32, 8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=1),
            nn.ReLU(),
            FlattenChannelsLast(),
            nn.Linear(7 * 7 * 64, self.num_features),
            nn.ReLU(),
        )
        for layer in self.layers:  # PyTorch's own start is a 36th as sensitive to the frame: layers die of it
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.orthogonal_(layer.weight, math.sqrt(2))
                nn.init.zeros_(layer.bias)
        self.layers.to(memory_format=torch.channels_last)  # as `scale` lays out the pixels

    @staticmethod
    def scale(observations: Tensor) -> Tensor:
        """Contiguous uint8 (B, 4, 84, 84) -> [0, 1], in blocks of 4 x 4 pixels (B, 64, 21, 21); what `update` passes
        through several networks it scales once.
        """
        dtype = torch.bfloat16 if BF16.get(observations.device.type, False) else torch.float32
        # Observations are flat where the type changes, or the compiler may have chosen an order of its own
        words = observations.flatten(1).view(torch.int32)  # four pixels each; bytes are slow to move
        blocks = words.view(len(observations), -1, 21, 4, 21).permute(0, 2, 4, 1, 3).flatten(1).view(torch.uint8)
        return blocks.to(dtype).div_(255).view(-1, 21, 21, 64).permute(0, 3, 1, 2)

    def forward(self, observations: Tensor) -> Tensor:
        pixels = self.scale(observations) if observations.dtype == torch.uint8 else observations
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=pixels.dtype == torch.bfloat16):
            return self.layers(pixels).float()


class Actor(nn.Module):
    """The policy: pixels (B, 4, 84, 84) uint8 -> logits (B, A).

    Linear in the critics' features, as the logits of its optimum, Q / alpha, are.
    """

    def __init__(self, encoder: Encoder, num_actions: int):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.num_features, num_actions)

    def forward(self, observations: Tensor) -> Tensor:
        return self.head(self.encoder(observations))


class SoftQNetwork(nn.Module):
    """A critic: pixels (B, 4, 84, 84) uint8 -> soft Q-values of all actions (B, A).

    `update` calls encoder and head apart: what a network is to learn belongs in one of the two.
    """

    def __init__(self, encoder: Encoder, num_actions: int):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.num_features, num_actions)

    def forward(self, observations: Tensor) -> Tensor:
        return self.head(self.encoder(observations))


# ----------------------------------------------------------------------------------------------------------------------
# Replay buffer


class Batch(NamedTuple):
    """Transitions as the update takes them; `observations` are of the buffer's dtype."""

    observations: Tensor  # (B, *observation_shape)
    actions: Tensor  # (B,) int64
    rewards: Tensor  # (B,) float32: sum of gamma^i r_{t+i} over the k <= n steps taken
    discounts: Tensor  # (B,) float32: gamma^k, or 0 if the last of the k steps terminated
    next_observations: Tensor  # (B, *observation_shape): the observation k steps on
    old_entropies: Tensor  # (B,) float32: entropy in nats of the policy that drew the action


def to_device(array: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """A host array on `device`; a GPU is given it by way of page-locked memory, so that nothing waits for the copy."""
    tensor = torch.as_tensor(array).contiguous()
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def shifted(frames: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """`frames`, (B, 4, H, W) uint8, moved `down` and `right` by so many pixels, (B,) int64 each, negative for up and
    left -> (B, 4, H, W). What comes in at an edge repeats it (DrQ, Kostrikov et al. 2020, arXiv:2004.13649).
    """
    height, width = frames.shape[2:]
    rows = (torch.arange(height, device=frames.device) - down[:, None]).clamp(0, height - 1)  # (B, H)
    columns = (torch.arange(width, device=frames.device) - right[:, None]).clamp(0, width - 1)  # (B, W)
    sources = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)  # (B, H * W): the pixel that each comes from
    return frames.flatten(2).gather(2, sources[:, None, :].expand(-1, frames.shape[1], -1)).view(frames.shape)


class ReplayBuffer:
    """Ring of vector steps that keeps, with each transition, the entropy of the policy that collected it.

    Row s of environment e holds the newest frame of the observation that step s started from; stacks are put together
    when sampled. The next observation of a row is the observation of the row after it, so each frame is stored once;
    after a game's end that next row is the one that only reset the environment, which is never sampled itself.
    """

    # What is saved: once, so that a row must not change after it is written, but for the newest one
    COLUMNS = ("frames", "ages", "actions", "rewards", "entropies", "terminated", "ended", "resets")
    SEGMENT = 8_192  # transitions per file

    def __init__(
        self,
        size: int,
        num_envs: int,
        observation_shape: tuple[int, ...],
        n_step: int,
        gamma: float,
        device: torch.device | str = "cpu",
        seed: int | np.random.SeedSequence = 0,
        random_shift: int = 0,
    ):
        """`size` is in transitions, summed over `num_envs`; batches are made on `device`, where the frames are kept too
        if they fit. Sampled observations are moved by up to `random_shift` pixels."""
        self.num_envs, self.n_step, self.device = num_envs, n_step, torch.device(device)
        self.rows = size // num_envs  # a row is one step of all environments
        self.stack, *self.frame_shape = observation_shape
        count = self.rows * num_envs + 1  # the last one stays black: what a stack shows before a game's first frame
        place = self.device if self.fits(size, observation_shape, self.device) else "cpu"
        self.frames = torch.empty((count, *self.frame_shape), dtype=torch.uint8, device=place)
        self.frames[-1] = 0
        self.ages = np.zeros(self.rows * num_envs, np.uint8)  # frames of the game before this one, up to a full stack
        self.current_ages = np.zeros(num_envs, np.uint8)
        self.actions = np.zeros(self.rows * num_envs, np.uint8)
        self.rewards = np.zeros(self.rows * num_envs, np.float32)
        self.entropies = np.zeros(self.rows * num_envs, np.float32)
        self.terminated = np.zeros(self.rows * num_envs, bool)
        self.ended = np.zeros(self.rows * num_envs, bool)  # terminated or truncated: no chain goes on from here
        self.resets = np.zeros(self.rows * num_envs, bool)
        self.steps = 0  # vector steps ever added
        self.powers = gamma ** np.arange(n_step + 1)
        self.rng = np.random.default_rng(seed)
        self.random_shift = random_shift

    @staticmethod
    def fits(size: int, observation_shape: tuple[int, ...], device: torch.device) -> bool:
        """Whether the frames fit into the memory of `device`, a GPU, and leave 2 GB for the networks."""
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
        return free > ReplayBuffer.nbytes(size, observation_shape) + 2e9

    @staticmethod
    def nbytes(size: int, observation_shape: tuple[int, ...]) -> int:
        """Bytes of memory that a full ring of `size` transitions takes."""
        return size * (math.prod(observation_shape[1:]) + 13)  # a frame and the columns

    def add(self, observations, actions, rewards, terminated, truncated, entropies, resets) -> None:
        """Stores one step of all environments, each argument with leading axis E.

        `rewards` are the learner's; `entropies`, in nats, are of the policies that drew `actions`; `resets` marks
        environments that this step only reset.
        """
        row = self.steps % self.rows
        here = slice(row * self.num_envs, (row + 1) * self.num_envs)
        self.frames[here] = to_device(observations[:, -1], self.frames.device)
        self.ages[here] = self.current_ages
        self.current_ages = np.where(resets, 0, np.minimum(self.current_ages + 1, self.stack - 1))
        self.actions[here] = actions
        self.rewards[here] = rewards
        self.entropies[here] = entropies
        self.terminated[here] = terminated
        self.ended[here] = terminated | truncated
        self.resets[here] = resets
        self.steps += 1

    def index(self, steps, envs):
        """Where step `steps` of environment `envs` is stored."""
        return (steps % self.rows) * self.num_envs + envs

    def chains(self, steps, envs):
        """The n-step chains from (steps, envs), both (B,): where their rows are (B, n), their lengths k (B,), whether
        they ended in termination (B,), and whether they are valid (B,).

        Valid is what starts at a real step, with all of its stack of frames still in the ring, and either ended in
        termination or has the observation it bootstraps from.
        """
        rows = self.index(steps[:, None] + np.arange(self.n_step), envs[:, None])
        ends = self.ended[rows]  # rows past the newest step hold old data, which the next comparisons rule out
        lengths = np.where(ends.any(1), ends.argmax(1) + 1, self.n_step)
        last = self.index(steps + lengths - 1, envs)
        stored = steps + lengths < self.steps  # so is the observation to bootstrap from
        terminated = self.terminated[last] & (steps + lengths <= self.steps)  # it needs none
        stacked = steps - self.ages[rows[:, 0]] >= self.steps - self.rows
        return rows, lengths, terminated, (stored | terminated) & stacked & ~self.resets[rows[:, 0]]

    def stack_indices(self, steps, envs) -> np.ndarray:
        """Where the frames of the observations at (steps, envs), both (B,), are stored: (B, 4) int64."""
        back = np.arange(self.stack)[::-1]
        shown = back <= self.ages[self.index(steps, envs)][:, None]
        return np.where(shown, self.index(steps[:, None] - back, envs[:, None]), len(self.frames) - 1)

    def gather(self, indices: Tensor) -> Tensor:
        """The frames at `indices`, of any shape: (*indices.shape, 84, 84) uint8."""
        return self.frames.index_select(0, indices.flatten()).view(*indices.shape, *self.frame_shape)

    def pick(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """`batch_size` transitions, drawn uniformly with replacement from all valid ones, in two host tensors for
        `batch`: where the frames of both observations are stored, (2, B, 4) int64, or, if that is the host, the frames
        themselves, (2, B, 4, 84, 84) uint8; and, (8, B) float32, rewards, discounts, entropies, actions, shifts of the
        observations down and right, and of the next ones.
        """
        drawn, valid = np.zeros(batch_size, np.int64), np.zeros(batch_size, bool)
        oldest = max(0, self.steps - self.rows)
        while not valid.all():  # draws the invalid ones again
            drawn[~valid] = self.rng.integers(oldest * self.num_envs, self.steps * self.num_envs, (~valid).sum())
            steps, envs = np.divmod(drawn, self.num_envs)
            rows, lengths, terminated, valid = self.chains(steps, envs)
        taken = np.arange(self.n_step) < lengths[:, None]
        rewards = (self.rewards[rows] * taken) @ self.powers[:-1]
        discounts = np.where(terminated, 0.0, self.powers[lengths])
        shifts = self.rng.integers(-self.random_shift, self.random_shift, (4, batch_size), endpoint=True)
        numbers = np.stack([rewards, discounts, self.entropies[rows[:, 0]], self.actions[rows[:, 0]], *shifts])
        # What terminated in the newest step has no successor yet; any will do, for its discount is 0
        successors = np.minimum(steps + lengths, self.steps - 1)
        indices = np.stack([self.stack_indices(steps, envs), self.stack_indices(successors, envs)])
        frames = torch.from_numpy(indices)
        if self.frames.device.type == "cpu":
            frames = self.gather(frames)
        return frames, torch.from_numpy(numbers.astype(np.float32))

    def batch(self, frames: Tensor, numbers: Tensor) -> Batch:
        """What `pick` drew, on the buffer's device, as `update` takes it."""
        observations, next_observations = frames if frames.dtype == torch.uint8 else self.gather(frames)
        rewards, discounts, entropies, actions = numbers[:4]
        if self.random_shift:
            observations = shifted(observations, *numbers[4:6].long())
            next_observations = shifted(next_observations, *numbers[6:8].long())
        return Batch(observations, actions.long(), rewards, discounts, next_observations, entropies)

    def sample(self, batch_size: int) -> Batch:
        """`batch_size` transitions, drawn uniformly with replacement from all valid ones; there must be one."""
        return self.batch(*(to_device(part, self.device) for part in self.pick(batch_size)))

    def cut(self, observations) -> None:
        """Ends all games here as truncated, `observations` (E, 4, 84, 84) being their last: they are not resumed."""
        newest = (self.steps - 1) % self.rows * self.num_envs
        self.ended[newest : newest + self.num_envs] = True
        nothing = np.zeros(self.num_envs, bool)
        self.add(observations, nothing, nothing, nothing, nothing, nothing, ~nothing)

    def column(self, name: str) -> Tensor:
        """One of COLUMNS as (rows, E, ...), sharing its memory."""
        flat = torch.as_tensor(getattr(self, name))[: self.rows * self.num_envs]
        return flat.view(self.rows, self.num_envs, *flat.shape[1:])

    def save(self, directory: Path) -> dict:
        """Writes what of the ring is not in `directory` yet; returns what `load` needs to put it back.

        The ring is cut by absolute step into segments, a file each; all but the newest are written once.
        """
        directory.mkdir(exist_ok=True)
        length = max(1, self.SEGMENT // self.num_envs)
        start, segments = max(0, self.steps - self.rows), []
        while start < self.steps:
            end = min((start // length + 1) * length, self.steps)
            path = directory / f"{start // length}-{end}{'-newest' * (end == self.steps)}.npz"
            if not path.exists():
                steps = np.arange(start, end)
                columns = {name: self.column(name)[steps % self.rows].cpu().numpy() for name in self.COLUMNS}
                write_file(path, lambda file: np.savez(file, steps=steps, **columns))  # noqa: B023, called at once
            segments.append(path.name)
            start = end
        state = {"steps": self.steps, "rng": self.rng.bit_generator.state, "ages": self.current_ages.tolist()}
        return state | {"segments": segments}

    def load(self, directory: Path, state: dict) -> None:
        """Puts back what `save` returned `state` for, and deletes what a later, unfinished `save` left."""
        self.steps, self.rng.bit_generator.state = state["steps"], state["rng"]
        self.current_ages = np.array(state["ages"], np.uint8)
        for segment in state["segments"]:
            with np.load(directory / segment) as saved:
                kept = saved["steps"] >= self.steps - self.rows
                rows = torch.from_numpy(saved["steps"][kept] % self.rows)
                for name in self.COLUMNS:
                    column = self.column(name)
                    column[rows.to(column.device)] = torch.from_numpy(saved[name][kept]).to(column.device)
        keep_only(directory, state["segments"])


# ----------------------------------------------------------------------------------------------------------------------
# Losses and update


@dataclass
class Agent:
    """All that learning changes. `actor`, `qf1` and `qf2` map observations to (B, A)."""

    encoder: Encoder  # trained by the critics; the actor's gradient stops before it
    encoder_target: Encoder
    actor: Actor
    qf1: SoftQNetwork
    qf2: SoftQNetwork
    qf1_target: SoftQNetwork
    qf2_target: SoftQNetwork
    log_alpha: Tensor  # 0-d
    actor_optimizer: torch.optim.Optimizer
    q_optimizer: torch.optim.Optimizer
    a_optimizer: torch.optim.Optimizer
    target_step: Tensor  # 0-d: the share of the critics that flows into the targets at the next update, tau or 0
    not_finite: Tensor  # (2,) int64: the first metric that was not finite; the updates since, with it, 0 while all are


def soft_value(q: Tensor, log_pi: Tensor, alpha: Tensor | float) -> Tensor:
    """V(s) = sum_a pi(a|s) [Q(s,a) - alpha log pi(a|s)], exact over the actions (Christodoulou 2019).

    q (B, A), log_pi (B, A), alpha scalar -> (B,)
    """
    return (log_pi.exp() * (q - alpha * log_pi)).sum(1)


def average_or_min(q1: Tensor, q2: Tensor, double_average: bool) -> Tensor:
    """Double average (Zhou et al. 2024): the two critics' mean; or SAC's minimum, which under-estimates.

    (B, A), (B, A) -> (B, A)
    """
    return (q1 + q2) / 2 if double_average else torch.minimum(q1, q2)


def critic_loss(q: Tensor, q_target: Tensor, y: Tensor, clip_range: float | None) -> Tensor:
    """Q-clip (Zhou et al. 2024): mean of max((Q - y)^2, (Q' + clip(Q - Q', -c, c) - y)^2), the maximum per sample.

    q, q_target, y (B,), in units of return; clip_range c > 0, or None for the plain squared error -> scalar.
    Only q gets a gradient.
    """
    q_target, y = q_target.detach(), y.detach()
    squared = (q - y).square()
    if clip_range is not None:
        clipped = q.clamp(q_target - clip_range, q_target + clip_range)  # = Q' + clip(Q - Q', -c, c), rounded once
        squared = torch.maximum(squared, (clipped - y).square())  # equal within the range: each gets half the gradient
    return squared.mean()


def clipped_fraction(q: Tensor, q_target: Tensor, y: Tensor, clip_range: float | None) -> Tensor:
    """Share of all samples whose clipped error is the larger, which takes |Q - Q'| > c: those get no gradient.

    q, q_target, y (B,) -> scalar in [0, 1], 0 where clip_range is None
    """
    if clip_range is None:
        return torch.zeros((), device=q.device)
    clipped = q.clamp(q_target - clip_range, q_target + clip_range)
    return ((clipped - y).square() > (q - y).square()).float().mean()


def actor_loss(log_pi: Tensor, q: Tensor, alpha: Tensor | float, old_entropy: Tensor, beta: float) -> Tensor:
    """mean sum_a pi(a|s) [alpha log pi(a|s) - Q(s,a)] + beta 1/2 mean (H_old - H)^2 (Zhou et al. 2024).

    log_pi (B, A), q (B, A), alpha scalar, old_entropy (B,) in nats, beta 0 for no penalty -> scalar.
    Only log_pi gets a gradient.
    """
    return -soft_value(q.detach(), log_pi, alpha).mean() + entropy_penalty(log_pi, old_entropy, beta)


def entropy_penalty(log_pi: Tensor, old_entropy: Tensor, beta: float) -> Tensor:
    """beta 1/2 mean (H_old - H)^2: (B, A), (B,) in nats -> scalar. Only log_pi gets a gradient."""
    return beta * 0.5 * (old_entropy.detach() - entropy_of(log_pi)).square().mean()


def entropy_of(log_pi: Tensor) -> Tensor:
    """Entropy in nats of categorical distributions: (B, A) -> (B,)"""
    return -(log_pi.exp() * log_pi).sum(1)


def temperature_loss(log_alpha: Tensor, entropy: Tensor, target_entropy: float) -> Tensor:
    """log(alpha) mean(H - H_target) (Haarnoja et al. 2018, with log(alpha) for alpha, as is usual): raises alpha while
    the entropy is below its target.

    log_alpha scalar, entropy (B,) in nats -> scalar. Only log_alpha gets a gradient.
    """
    return (log_alpha * (entropy.detach() - target_entropy)).mean()


def make_agent(args: Args, observation_shape: tuple[int, ...], num_actions: int, device: torch.device | str) -> Agent:
    """Networks, targets, temperature and optimisers on `device`, drawn from torch's global generator."""
    encoder = Encoder(observation_shape).to(device)
    actor = Actor(encoder, num_actions).to(device)
    qf1, qf2 = (SoftQNetwork(encoder, num_actions).to(device) for _ in range(2))
    encoder_target, qf1_target, qf2_target = copy.deepcopy((encoder, qf1, qf2))  # together, so they share theirs too
    for target in (qf1_target, qf2_target):
        target.requires_grad_(False)
    log_alpha = torch.full((), math.log(args.alpha), device=device, requires_grad=args.autotune)

    def adam(parameters, lr):  # the rate is a tensor on the device, which can change without a new optimiser or graph
        lr = torch.tensor(lr, device=device)
        return torch.optim.Adam(parameters, lr=lr, fused=True, capturable=True)

    actor_optimizer = adam(actor.head.parameters(), args.policy_lr)
    q_optimizer = adam(critic_parameters(encoder, qf1, qf2), args.q_lr)
    a_optimizer = adam([log_alpha], args.q_lr)
    networks = (encoder, encoder_target, actor, qf1, qf2, qf1_target, qf2_target)
    target_step = torch.tensor(args.tau, device=device)
    not_finite = torch.zeros(2, dtype=torch.int64, device=device)
    return Agent(*networks, log_alpha, actor_optimizer, q_optimizer, a_optimizer, target_step, not_finite)


def critic_parameters(encoder: Encoder, qf1: SoftQNetwork, qf2: SoftQNetwork) -> list[Tensor]:
    """What the critics' optimiser steps and the targets follow: the encoder once, then both heads."""
    return [*encoder.parameters(), *qf1.head.parameters(), *qf2.head.parameters()]


def gradients(agent: Agent, batch: Batch, args: Args) -> tuple[tuple, tuple, tuple, dict[str, Tensor]]:
    """The gradients of the three losses of Algorithm 1 (Zhou et al. 2024), all taken at the agent's present weights.

    Returns the gradients of the critics, the actor and the temperature (none if it is fixed), each in the order of its
    optimiser's parameters, and the metrics, by TensorBoard tag, as 0-d tensors on the agent's device. Notes in
    `agent.not_finite` whether these are finite.
    """
    clip_range = args.clip_range if args.q_clip else None
    beta = args.beta if args.entropy_penalty else 0.0
    alpha = agent.log_alpha.detach().exp()
    actions = batch.actions.unsqueeze(1)  # (B, 1)

    stacked = Encoder.scale(torch.cat([batch.observations, batch.next_observations]))  # s, then s': 2B rows
    observations, next_observations = stacked.chunk(2)

    # Target y = R + gamma^k V'(s'): R and s' of the k <= n steps taken, V' = 0 where they ended in termination. Encoder
    # and heads are called apart, so that features are computed once and shared by the heads.
    with torch.no_grad():
        target_features = agent.encoder_target(stacked)
        slow_q1, next_q1 = agent.qf1_target.head(target_features).chunk(2)  # (B, A) each: Q'_1 at s and at s'
        slow_q2, next_q2 = agent.qf2_target.head(target_features).chunk(2)
        next_log_pi = F.log_softmax(agent.actor.head(agent.encoder(next_observations)), dim=1)  # (B, A)
        next_v = soft_value(average_or_min(next_q1, next_q2, args.double_average), next_log_pi, alpha)
        y = batch.rewards + batch.discounts * next_v  # (B,)
        q1_target = slow_q1.gather(1, actions).squeeze(1)  # (B,): Q'_1(s, a), near which Q-clip holds Q_1(s, a)
        q2_target = slow_q2.gather(1, actions).squeeze(1)

    # Critics
    features = agent.encoder(observations)
    q1, q2 = agent.qf1.head(features), agent.qf2.head(features)  # (B, A)
    q1_taken, q2_taken = q1.gather(1, actions).squeeze(1), q2.gather(1, actions).squeeze(1)  # (B,)
    qf1_loss = critic_loss(q1_taken, q1_target, y, clip_range)
    qf2_loss = critic_loss(q2_taken, q2_target, y, clip_range)
    clipped_1 = clipped_fraction(q1_taken.detach(), q1_target, y, clip_range)
    clipped_2 = clipped_fraction(q2_taken.detach(), q2_target, y, clip_range)
    critic_weights = critic_parameters(agent.encoder, agent.qf1, agent.qf2)
    critic_gradients = torch.autograd.grad(qf1_loss + qf2_loss, critic_weights)

    # Actor
    log_pi = F.log_softmax(agent.actor.head(features.detach()), dim=1)  # (B, A)
    q = average_or_min(q1, q2, args.double_average)  # (B, A), from before the critics' step
    policy_loss = actor_loss(log_pi, q, alpha, batch.old_entropies, beta)
    actor_gradients = torch.autograd.grad(policy_loss, [*agent.actor.head.parameters()])

    # Temperature
    entropy = entropy_of(log_pi.detach())  # (B,)
    alpha_loss, alpha_gradients = torch.zeros_like(alpha), ()
    if args.autotune:
        target_entropy = args.target_entropy_scale * math.log(log_pi.shape[1])
        alpha_loss = temperature_loss(agent.log_alpha, entropy, target_entropy)
        alpha_gradients = torch.autograd.grad(alpha_loss, [agent.log_alpha])

    metrics = {
        "losses/alpha": alpha,
        "losses/qf1_values": q1_taken.detach().mean(),
        "losses/qf2_values": q2_taken.detach().mean(),
        "losses/qf1_loss": qf1_loss.detach(),
        "losses/qf2_loss": qf2_loss.detach(),
        "losses/qf_loss": (qf1_loss + qf2_loss).detach() / 2,  # the step is down their sum
        "losses/actor_loss": policy_loss.detach(),
        "losses/alpha_loss": alpha_loss.detach(),
        "losses/entropy_penalty": entropy_penalty(log_pi.detach(), batch.old_entropies, beta),
        "losses/q_clip_fraction": (clipped_1 + clipped_2) / 2,
        "losses/critic_grad_norm": torch.nn.utils.get_total_norm(critic_gradients),
        "losses/actor_grad_norm": torch.nn.utils.get_total_norm(actor_gradients),
        "policy/entropy": entropy.mean(),
        "policy/old_entropy": batch.old_entropies.mean(),
    }
    latch(agent.not_finite, torch.stack([*metrics.values()]).isfinite())
    return critic_gradients, actor_gradients, alpha_gradients, metrics


def update(agent: Agent, batch: Batch, args: Args, compute: Callable = gradients) -> dict[str, Tensor]:
    """One update of Algorithm 1 (Zhou et al. 2024): critics, actor, temperature, targets.

    `compute` is `gradients` or its compiled form. Returns the metrics; nothing here waits for the device.
    """
    critic_gradients, actor_gradients, alpha_gradients, metrics = compute(agent, batch, args)
    descend(agent.q_optimizer, critic_gradients, args.max_grad_norm, metrics["losses/critic_grad_norm"])
    descend(agent.actor_optimizer, actor_gradients, args.max_grad_norm, metrics["losses/actor_grad_norm"])
    if args.autotune:
        descend(agent.a_optimizer, alpha_gradients)

    # Targets: Q' <- Q' + share (Q - Q'), the share being tau, or 0 where no move is due
    with torch.no_grad():
        online = critic_parameters(agent.encoder, agent.qf1, agent.qf2)
        target = critic_parameters(agent.encoder_target, agent.qf1_target, agent.qf2_target)
        torch._foreach_lerp_(target, online, [agent.target_step] * len(target))
    return metrics


def descend(optimizer: torch.optim.Optimizer, gradients: tuple, max_norm: float | None = None, norm=None) -> None:
    """One step down `gradients`, of norm `norm`, which are scaled to `max_norm` if that is given and smaller."""
    parameters = optimizer.param_groups[0]["params"]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        same = gradient.stride() == parameter.stride()  # fused Adam walks through both as they lie in memory
        parameter.grad = gradient if same else torch.empty_like(parameter).copy_(gradient)
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    optimizer.step()


def latch(not_finite: Tensor, finite: Tensor) -> None:
    """Notes in `not_finite`, (2,) int64, the first index of `finite`, (N,) bool, ever to be False, and the calls since.

    Both stay on the device; the loop looks at them when it waits for actions anyway.
    """
    index, calls = not_finite[0], not_finite[1]
    index.copy_(torch.where(calls > 0, index, finite.int().argmin()))
    calls += (calls > 0) | ~finite.all()


# ----------------------------------------------------------------------------------------------------------------------
# Acting, and what the diagnostics follow


@torch.no_grad()
def act(actor: Actor, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Actions drawn from the policy, (E,) int64, and its entropies in nats, (E,), from one forward pass.

    `noise`, (E, A), is of `exponential_noise`.
    """
    log_pi = F.log_softmax(actor(observations), dim=1)
    return (log_pi - noise.log()).argmax(1), entropy_of(log_pi)  # Gumbel-max: multinomial would wait for a GPU


def exponential_noise(num_envs: int, num_actions: int, generator: torch.Generator) -> Tensor:
    """What `act` draws actions with, (E, A): from the host's generator, whatever the device, so that a run can be
    resumed on another one.
    """
    return torch.empty(num_envs, num_actions).exponential_(generator=generator)


class ReturnProbe:
    """Follows state-action pairs of one environment: what the critics predicted and what really followed.

    Each step begins a pair with the same probability, wherever in an episode it is. The prediction is the critics' mean
    once the step is taken. What followed is sum_k gamma^k r_{t+k} + alpha sum_{j>=1} gamma^{jn} H_{t+jn}, for a soft Q
    contains the entropy at each bootstrap; up to termination as the learner sees it, or to truncation or PROBE_LENGTH
    steps, where gamma^k V of the last observation stands for the rest.
    """

    def __init__(self, args: Args, seed: np.random.SeedSequence):
        self.args, self.rng = args, np.random.default_rng(seed)
        self.pairs = []  # under way: steps followed so far, prediction, what followed, temperature at the first step

    @torch.no_grad()
    def follow(self, agent, observation, action, reward, terminated, truncated, entropy, next_observation):
        """Takes one real step: observations (1, ...), host arrays as the networks take them; the rest are scalars.

        Returns (predicted, followed) of the pairs that end with it, a list.
        """
        gamma, n_step, device = self.args.gamma, self.args.n_step, agent.log_alpha.device
        reward, entropy = float(reward), float(entropy)  # NumPy's would make sums depend on where a run was resumed
        if self.rng.random() < PROBE_PROBABILITY:
            observation = torch.as_tensor(observation, device=device)
            q = (agent.qf1(observation) + agent.qf2(observation)) / 2
            self.pairs.append((0, q[0, action].item(), 0.0, agent.log_alpha.exp().item()))
        under_way, finished = [], []
        for length, predicted, followed, alpha in self.pairs:
            if length > 0 and length % n_step == 0:
                followed += gamma**length * alpha * entropy
            followed += gamma**length * reward
            length += 1
            if not (terminated or truncated) and length < PROBE_LENGTH:
                under_way.append((length, predicted, followed, alpha))
                continue
            if not terminated:
                next_observation = torch.as_tensor(next_observation, device=device)
                log_pi = F.log_softmax(agent.actor(next_observation), dim=1)
                q = (agent.qf1(next_observation) + agent.qf2(next_observation)) / 2
                followed += gamma**length * soft_value(q, log_pi, alpha).item()
            finished.append((predicted, followed))
        self.pairs = under_way
        return finished


# ----------------------------------------------------------------------------------------------------------------------
# Speed


class Captured:
    """`function` of tensors, called in the same way whatever the device.

    At batch 64 a GPU runs the kernels of an update faster than they can be launched one by one. So on CUDA, after some
    calls in which optimisers and cuDNN make what they keep, the call is captured as one graph and replayed from then
    on: the same kernels on the same addresses. Where capture fails, it tries to go on without.
    """

    WARM_UP = 3  # calls before the capture

    def __init__(self, function: Callable, device: torch.device):
        self.function, self.device, self.captures = function, device, device.type == "cuda"
        self.stream = torch.cuda.Stream() if self.captures else None
        self.calls, self.graph, self.inputs, self.outputs = 0, None, [], None

    def __call__(self, *arrays: np.ndarray | Tensor):
        """What `function` returns for host arrays of the same shapes in each call; the next replay overwrites it."""
        inputs = [to_device(array, self.device) for array in arrays]
        self.calls += 1
        if self.captures and self.calls > self.WARM_UP:
            for mine, new in zip(self.inputs, inputs, strict=True):
                mine.copy_(new)
            if self.graph is None:
                self.capture()
            self.graph.replay() if self.graph else self.run()
        else:
            self.inputs = inputs
            self.run_aside() if self.captures else self.run()
        return self.outputs

    def run(self) -> None:
        self.outputs = self.function(*self.inputs)

    def run_aside(self) -> None:
        """`run` on the stream that it is captured on later, as it must have been."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            self.run()
        torch.cuda.current_stream().wait_stream(self.stream)

    def capture(self) -> None:
        """Records `run` without running it."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(torch.cuda.current_stream()):  # a capture that fails does not go back to it
                with torch.cuda.graph(graph, stream=self.stream):
                    self.run()
            self.graph = graph
        except RuntimeError as error:
            self.captures = False
            cause = str(error.__context__ or error).partition("\n")[0]
            tqdm.write(f"no CUDA graph, so steps are slower: {cause}")


class Updater(Captured):
    """`update` on a new sample at each call; returns its metrics."""

    def __init__(self, agent: Agent, buffer: ReplayBuffer, args: Args):
        self.agent, self.buffer, self.args = agent, buffer, args
        compute = compiled(gradients) if args.compile else gradients
        super().__init__(lambda *picked: update(agent, buffer.batch(*picked), args, compute), buffer.device)

    def __call__(self) -> dict[str, Tensor]:
        return super().__call__(*self.buffer.pick(self.args.batch_size))


def compiled(function: Callable) -> Callable:
    """`function` by torch.compile, the gradients that it takes included; as it is where that fails."""
    warnings.filterwarnings("ignore", module="torch._inductor")  # advice on speed
    fast = None

    def call(*args):
        nonlocal fast
        try:
            torch._dynamo.config.trace_autograd_ops = True
            fast = fast or torch.compile(function, fullgraph=True)
            return fast(*args)
        except Exception as error:  # no C++ compiler, say; what is wrong with `function` itself, it raises again
            fast = function
            tqdm.write(f"not compiled, so updates are slower: {str(error).strip().partition(chr(10))[0]}")
            return function(*args)

    return call


# ----------------------------------------------------------------------------------------------------------------------
# Evaluation


class GameTracker:
    """Tells lost lives from ended games, and sums up whole games: raw score and agent steps.

    Neither `terminated` (also set at a lost life) nor `lives` (0 throughout Pong) says that a game has ended. What does
    is the reset in the step after: the game's frame number falls back.
    """

    def __init__(self, infos: dict):
        self.frame_numbers = infos["episode_frame_number"]
        self.ended = np.zeros(len(self.frame_numbers), bool)
        self.returns = np.zeros(len(self.frame_numbers))
        self.lengths = np.zeros(len(self.frame_numbers), int)

    def step(self, rewards, terminated, truncated, infos) -> tuple[np.ndarray, list[tuple[int, float, int]]]:
        """Takes what the environments returned. Returns `resets`, (E,) bool: environments that this step only reset;
        and for each of them (index, score, length) of the game that had ended with the step before.
        """
        resets = self.ended & (infos["episode_frame_number"] <= self.frame_numbers)
        games = [(int(i), float(self.returns[i]), int(self.lengths[i])) for i in np.flatnonzero(resets)]
        self.returns = np.where(resets, 0, self.returns + rewards)
        self.lengths = np.where(resets, 0, self.lengths + 1)
        self.frame_numbers = infos["episode_frame_number"]
        self.ended = terminated | truncated
        return resets, games


@torch.no_grad()
def greedy_actions(actor: Actor, observations: Tensor, generator: torch.Generator) -> Tensor:
    """The most probable actions, (E,) int64, but for a share of GREEDY_EPSILON that is uniformly random."""
    logits = actor(observations)
    uniform = torch.randint(logits.shape[1], logits.shape[:1], generator=generator)
    exchange = torch.rand(len(logits), generator=generator) < GREEDY_EPSILON
    return torch.where(exchange.to(logits.device), uniform.to(logits.device), logits.argmax(1))


@torch.no_grad()
def evaluate(
    actor: Actor, args: Args, episodes: int, greedy: bool, seed: int, stop: "StopSignals | None" = None
) -> np.ndarray:
    """Raw scores of `episodes` whole games, (episodes,) float64, greedy or sampled, in environments of their own.

    Every environment plays its quota: stopping at the first so many games to finish would favour short ones. Fewer
    are returned if `stop` receives a signal.
    """
    num_envs = min(episodes, 10)
    quota = np.bincount(np.arange(episodes) % num_envs)
    envs = make_envs(args, num_envs)
    device = next(actor.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    num_actions = int(envs.single_action_space.n)
    observations, infos = envs.reset(seed=environment_seeds(np.random.SeedSequence((seed, 1)), num_envs))
    tracker = GameTracker(infos)
    returns, played = [], np.zeros(num_envs, int)
    while (played < quota).any() and not (stop and stop.received):
        inputs = torch.as_tensor(observations, device=device)
        if greedy:
            actions = greedy_actions(actor, inputs, generator)
        else:
            actions, _ = act(actor, inputs, exponential_noise(num_envs, num_actions, generator).to(device))
        observations, rewards, terminated, truncated, infos = envs.step(actions.cpu().numpy())
        _, games = tracker.step(rewards, terminated, truncated, infos)
        for i, game_return, _ in games:
            if played[i] < quota[i]:
                returns.append(game_return)
            played[i] += 1
    envs.close()
    return np.array(returns, np.float64)


class FireReset(gym.Wrapper):
    """Presses FIRE for one frame at the start of a game that has it, as ALE's vector environment does."""

    def reset(self, **kwargs):
        observation, info = self.env.reset(**kwargs)
        meanings = self.env.unwrapped.get_action_meanings()
        if "FIRE" in meanings:
            observation, _, _, _, info = self.env.step(meanings.index("FIRE"))
        return observation, info


@torch.no_grad()
def film(actor: Actor, args: Args, directory: Path, seed: int) -> Path:
    """Films a game, greedily played and every frame of it, with Gymnasium's recorder; returns the video's path."""
    env = gym.make(args.env_id, render_mode="rgb_array", frameskip=1)
    name = f"{args.env_id}__{seed}".replace("/", "-")
    env = FireReset(gym.wrappers.RecordVideo(env, str(directory), name_prefix=name, fps=60, disable_logger=True))
    env = gym.wrappers.AtariPreprocessing(env, noop_max=0, frame_skip=FRAME_SKIP)
    env = gym.wrappers.FrameStackObservation(env, 4, padding_type="zero")
    device = next(actor.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    observation, _ = env.reset(seed=seed & 0x7FFFFFFF)
    ended = False
    while not ended:
        inputs = torch.as_tensor(observation[None], device=device)
        observation, _, terminated, truncated, _ = env.step(greedy_actions(actor, inputs, generator).item())
        ended = terminated or truncated
    env.close()
    return directory / f"{name}-episode-0.mp4"


def play(args: Args) -> None:
    """Plays the agent of --evaluate, greedy and sampled, prints the returns and films it with --capture-video."""
    check_args(args)
    check_env_id(args)
    path = agent_file(args.evaluate)
    try:
        agent, trained = load_agent(path, "cuda" if args.cuda and torch.cuda.is_available() else "cpu")
    except Exception as error:  # of another shape, or not whole
        refuse(f"--evaluate {path}: cannot be loaded ({type(error).__name__}: {str(error).partition(chr(10))[0]})")
    print(f"{trained.env_id}, from a run of {trained.total_timesteps:,} steps with seed {trained.seed}: {path}")
    print(f"{'':8}{'mean':>9}{'deviation':>11}{'median':>9}{'min':>9}{'max':>9}{'distinct':>10}{'episodes':>10}")
    for mode, greedy in (("greedy", True), ("sampled", False)):
        returns = evaluate(agent.actor, trained, args.eval_episodes, greedy, args.seed)
        mean, low, high = f"{returns.mean():9.2f}{returns.std():11.2f}", returns.min(), returns.max()
        distinct = len(np.unique(returns))
        print(f"{mode:8}{mean}{np.median(returns):9g}{low:9g}{high:9g}{distinct:10}{len(returns):10}", flush=True)
    if args.capture_video:
        print(f"filmed: {film(agent.actor, trained, path.parent / 'videos', args.seed)}")


# ----------------------------------------------------------------------------------------------------------------------
# Checkpoints


def write_file(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Writes a whole file or none: under another name first, flushed to disk, then renamed.

    `write` writes to memory, for torch.save turns the OSError of a full disk into a RuntimeError.
    """
    content, unfinished = io.BytesIO(), path.with_name(path.name + ".unfinished")
    write(content)
    try:
        with unfinished.open("wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:  # a full disk, say
        unfinished.unlink(missing_ok=True)
        raise


def keep_only(directory: Path, names: list[str]) -> None:
    """Deletes all files of `directory` but those named."""
    for path in directory.iterdir():
        if path.name not in names:
            path.unlink()


def save_checkpoint(run_dir: Path, state: dict, agent: Agent, buffer: ReplayBuffer, loop: dict) -> None:
    """Writes the replay buffer's new segments, then checkpoint.pt that names them: its renaming is the commit.

    `state` is that of `agent_state`, so that `load_agent` reads checkpoints too; `loop` that of the training loop, in
    types that `torch.load(..., weights_only=True)` takes.
    """
    learned = {name: x.detach() if isinstance(x, Tensor) else x.state_dict() for name, x in vars(agent).items()}
    state |= {"agent": learned, "buffer": buffer.save(run_dir / "replay"), "loop": loop}
    write_file(run_dir / "checkpoint.pt", lambda file: torch.save(state, file))
    keep_only(run_dir / "replay", state["buffer"]["segments"])


def load_checkpoint(run_dir: Path, agent: Agent, buffer: ReplayBuffer, device: torch.device) -> dict:
    """Puts agent and buffer back as `save_checkpoint` had them; returns `loop`."""
    state = torch.load(run_dir / "checkpoint.pt", map_location=device, weights_only=True)
    for name, value in vars(agent).items():
        if isinstance(value, Tensor):
            value.data.copy_(state["agent"][name])
        else:
            value.load_state_dict(state["agent"][name])
    buffer.load(run_dir / "replay", state["buffer"])
    return state["loop"]


def last_checkpoint(run_dir: Path) -> str:
    """Says what there is to go on from."""
    if not (run_dir / "checkpoint.pt").exists():
        return "there is no checkpoint yet"
    step = torch.load(run_dir / "checkpoint.pt", map_location="cpu", weights_only=True)["loop"]["counts"][0]
    return f"the last good checkpoint, of step {step:,}, is in {run_dir}"


def resume_command(run_dir: Path) -> str:
    """Says how to go on."""
    return f"to go on:\n{shlex.join(['python', sys.argv[0], '--resume', str(run_dir)])}"


def agent_file(path: Path) -> Path:
    """What --evaluate means: a file, or the agent of a run's directory, or of its last checkpoint while it trains."""
    files = [path / "agent.pt", path / "checkpoint.pt"] if path.is_dir() else [path]
    return next((file for file in files if file.exists()), files[0])


def read_args(command: list[str] | None = None) -> Args:
    """The arguments of the command line. With --resume and --evaluate, what is not given there is as the run has it.

    Refuses what is no sound checkpoint or agent, and flags that contradict the run's.
    """
    args = tyro.cli(Args, args=command)
    if args.resume and args.evaluate:
        refuse(f"--evaluate {args.evaluate}: not together with --resume, which trains")
    if args.resume:
        given, file = f"--resume {args.resume}", args.resume / "checkpoint.pt"
        free = ("resume", "total_timesteps", "cuda", "compile", "track", "wandb_project_name", "wandb_entity")
    elif args.evaluate:
        given, file = f"--evaluate {args.evaluate}", agent_file(args.evaluate)
        free = ("evaluate", "eval_episodes", "capture_video", "cuda", "seed", "track")
    else:
        return args
    try:
        saved = Args(**torch.load(file, map_location="cpu", weights_only=True)["args"])
        # Wrong types raise here too. Packages are left to the check of the final arguments
        check_args(Args(**asdict(saved) | {"track": False, "capture_video": False}))
    except Exception as error:  # torch.load has many for a file that is not sound
        refuse(f"{given}: {file} cannot be read ({type(error).__name__})")
    if args.evaluate:
        saved.track = saved.capture_video = False
    if (args.resume or args.capture_video) and not os.access(file.parent, os.W_OK):
        refuse(f"{given}: {file.parent} cannot be written to")
    args = tyro.cli(Args, args=command, default=saved)
    for name, value in vars(args).items():
        if name not in free and value != getattr(saved, name):
            refuse(f"--{name.replace('_', '-')} {value}: the run in {file.parent} has {getattr(saved, name)}")
    if args.total_timesteps < saved.total_timesteps:
        refuse(f"--total-timesteps {args.total_timesteps}: the run in {file.parent} has {saved.total_timesteps}")
    return args


def check_finite(not_finite: np.ndarray, metrics: dict[str, Tensor], updates: int, run_dir: Path) -> None:
    """Ends the program, with exit status 3, if an update measured what is not finite; `not_finite` is the agent's."""
    index, since = not_finite.astype(int)
    if since:
        stop_diverged(f"{list(metrics)[index]} was not finite at update {updates - since + 1:,}", run_dir)


def stop_diverged(what: str, run_dir: Path) -> NoReturn:
    """Ends the program with exit status 3. To resume is no advice: with the same arguments it may diverge again."""
    tqdm.write(f"error: {what}; {last_checkpoint(run_dir)}", sys.stderr)
    raise SystemExit(3)


@contextmanager
def disk_trouble(run_dir: Path) -> Iterator[None]:
    """Ends the program, with exit status 4, when a file cannot be written: on a full disk a run stops. Files that were
    whole stay so, and the run goes on from its last checkpoint when there is space again.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS):
            raise
        tqdm.write(f"error: {error}; {last_checkpoint(run_dir)}; {resume_command(run_dir)}", sys.stderr)
        raise SystemExit(4) from error


class StopSignals:
    """Notes SIGTERM, SIGINT and, where they exist, SIGUSR1 (what schedulers send before they kill) and SIGHUP (the
    terminal is closed), for the loop to act on after its step. A SIGINT after any of them ends the program at once.
    """

    NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")

    def __enter__(self) -> "StopSignals":
        self.received = None
        numbers = [getattr(signal, name) for name in self.NAMES if hasattr(signal, name)]
        heard = [n for n in numbers if n.name != "SIGHUP" or signal.getsignal(n) != signal.SIG_IGN]  # not under nohup
        self.before = {number: signal.signal(number, self.note) for number in heard}
        return self

    def note(self, number: int, frame) -> None:
        self.received = number
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def __exit__(self, *exception) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def agent_state(agent: Agent, args: Args, observation_shape: tuple[int, ...], num_actions: int) -> dict:
    """The trained networks and what is needed to build them again."""
    return {
        "args": asdict(args) | {"resume": None, "evaluate": None},  # less the paths, which weights_only refuses
        "observation_shape": observation_shape,
        "num_actions": num_actions,
        "log_alpha": agent.log_alpha.detach(),
        "actor": agent.actor.state_dict(),
        "qf1": agent.qf1.state_dict(),
        "qf2": agent.qf2.state_dict(),
    }


def load_agent(path: Path, device: torch.device | str) -> tuple[Agent, Args]:
    """The agent of an agent.pt or a checkpoint.pt on `device`, and the arguments it was trained with.

    Ready to act. Targets, which were not saved, equal their critics, and the optimisers start anew.
    """
    state = torch.load(path, map_location=device, weights_only=True)
    args = Args(**state["args"])
    agent = make_agent(args, tuple(state["observation_shape"]), state["num_actions"], device)
    agent.actor.load_state_dict(state["actor"])
    for name in ("qf1", "qf2"):
        getattr(agent, name).load_state_dict(state[name])
        getattr(agent, f"{name}_target").load_state_dict(state[name])
    agent.log_alpha.data.copy_(state["log_alpha"])
    return agent, args


# ----------------------------------------------------------------------------------------------------------------------
# Training


def environment_seeds(seeds: np.random.SeedSequence, num_envs: int) -> np.ndarray:
    """One 31-bit seed per environment. Consecutive ones would make runs of neighbouring seeds share environments."""
    return (seeds.generate_state(num_envs) & 0x7FFFFFFF).astype(np.int64)


def available_memory() -> int:
    """Bytes that this process may take: free on the machine, and left to its container or cluster job."""
    available = [psutil.virtual_memory().available]
    with suppress(OSError):  # on Linux, what the limits of its control groups leave, version 2 (no controllers) or 1
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            limit, usage, cache = ("max", "current", "inactive_file")
            if controllers:
                limit, usage, cache = ("limit_in_bytes", "usage_in_bytes", "total_inactive_file")
            group = Path("/sys/fs/cgroup", controllers, path.strip("/"))
            for folder in (group, *group.parents):
                file = folder / f"memory.{limit}"
                if file.exists() and file.read_text() != "max\n":
                    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                    used = int((folder / f"memory.{usage}").read_text()) - int(stat.get(cache, 0))
                    available.append(int(file.read_text()) - used)
    return min(available)


def check_memory(args: Args, needed: int) -> None:
    """Refuses a replay buffer of `needed` bytes that the machine's memory does not hold."""
    available = available_memory()
    if needed > available:
        fits = int(0.9 * args.buffer_size * available / needed)
        figures = f"takes {needed / 1e9:.2f} GB of memory, {available / 1e9:.2f} GB are free; {fits} fits"
        refuse(f"--buffer-size {args.buffer_size}: {figures}")


def make_run_dir(args: Args) -> Path:
    """runs/{env_id}__{exp_name}__{seed}__{time}, with a suffix where that exists already."""
    name = f"{args.env_id}__{args.exp_name}__{args.seed}__{int(time.time())}".replace("/", "-")
    for suffix in ["", *(f"-{k}" for k in range(2, 1000))]:
        run_dir = Path("runs") / (name + suffix)
        try:
            run_dir.mkdir(parents=True, exist_ok=False)
            return run_dir
        except FileExistsError:
            continue
        except OSError as error:
            refuse(f"{run_dir}: cannot be created here ({error.strerror})")
    raise FileExistsError(run_dir)


def make_writer(args: Args, run_dir: Path, purge_step: int | None) -> SummaryWriter:
    """TensorBoard in `run_dir`, less what an interrupted run wrote from `purge_step` on; the arguments as a table of
    text. With --track all of it goes to Weights and Biases too.
    """
    if args.track:
        import wandb

        wandb.init(
            project=args.wandb_project_name,
            entity=args.wandb_entity,
            sync_tensorboard=True,
            config=asdict(args),
            name=run_dir.name,
            id=run_dir.name.replace(":", "-"),
            resume="allow",
            dir=run_dir,
        )
    writer = SummaryWriter(run_dir, purge_step=purge_step)
    if not args.resume:
        rows = "\n".join(f"|{key}|{value}|" for key, value in asdict(args).items())
        writer.add_text("hyperparameters", f"|flag|value|\n|-|-|\n{rows}")
    return writer


def train(args: Args) -> Path:
    """Trains, from scratch or on from the last checkpoint of `args.resume`, and returns the run's directory.

    A run that is resumed needs its own arguments: `read_args` gives them.
    """
    check_args(args)
    check_env_id(args)
    envs = make_envs(args, args.num_envs)
    observation_shape, num_actions = envs.single_observation_space.shape, int(envs.single_action_space.n)
    device = torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.deterministic = args.torch_deterministic
    # Adam's moments of dead units decay to denormal numbers, which slow a CPU down. Later threads inherit this
    torch.set_flush_denormal(True)
    buffer_bytes = ReplayBuffer.nbytes(args.buffer_size, observation_shape)
    if not ReplayBuffer.fits(args.buffer_size, observation_shape, device):
        check_memory(args, buffer_bytes)
    seeds = np.random.SeedSequence(args.seed)
    warm_up_seed, buffer_seed, probe_seed, action_seed = seeds.spawn(4)
    buffer = ReplayBuffer(
        args.buffer_size,
        args.num_envs,
        observation_shape,
        args.n_step,
        args.gamma,
        device,
        buffer_seed,
        args.random_shift,
    )
    if buffer.frames.device.type == "cuda":  # more would have little to do, and take the games' cores
        torch.set_num_threads(1)
    run_dir = args.resume or make_run_dir(args)

    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(int(action_seed.generate_state(1)[0]))
    warm_up_rng = np.random.default_rng(warm_up_seed)
    agent = make_agent(args, observation_shape, num_actions, device)
    probe = ReturnProbe(args, probe_seed)

    target_entropy, uniform = args.target_entropy_scale * np.log(num_actions), np.log(num_actions)
    tuned = f"tuned from {args.alpha} to entropy {target_entropy:.3f} (uniform policy: {uniform:.3f})"
    sticky = gym.spec(args.env_id).kwargs["repeat_action_probability"]
    print(
        f"environment: {args.env_id}, {args.num_envs} at a time, {num_actions} actions, sticky with probability "
        f"{sticky}, frame skip {FRAME_SKIP}\n"
        "protocol: raw scores of whole games; the learner's rewards are clipped to [-1, 1], and a lost life ends its "
        "bootstrapping, not the game\n"
        f"alpha: {tuned if args.autotune else f'fixed at {args.alpha}'}\n"
        f"replay buffer: {args.buffer_size:,} transitions, {buffer_bytes / 1e9:.2f} GB on {buffer.frames.device}\n"
        f"device: {device}; writing to {run_dir}"
    )
    if device.type == "cpu":
        rate = 100 if BF16["cpu"] else 30  # roughly, as measured with AVX-512 BF16 and without
        print(f"no CUDA: expect some {rate} steps per second on 2 cores, {1e6 / rate / 3600:.0f} hours for a million")

    observations, infos = envs.reset(seed=environment_seeds(seeds, args.num_envs))
    tracker = GameTracker(infos)
    global_step = updates = logged = checkpoints = evaluations = 0
    last_returns, metrics = deque(maxlen=20), {}
    if args.resume:
        try:
            loop = load_checkpoint(run_dir, agent, buffer, device)
            global_step, updates, logged, checkpoints, evaluations = loop["counts"]
            last_returns.extend(loop["last_returns"])
            metrics = loop["metrics"]
            warm_up_rng.bit_generator.state = loop["warm_up_rng"]
            generator.set_state(loop["generator"].cpu())
            probe.rng.bit_generator.state, _ = loop["probe"]  # its pairs are of games that are lost
            last_observations = loop["observations"].cpu().numpy()
        except Exception as error:  # as many as there are ways to damage a file, or to have written it otherwise
            cause = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            refuse(f"--resume {run_dir}: its checkpoint cannot be read ({cause})")
        buffer.cut(last_observations)
        observations, infos = envs.reset(
            seed=environment_seeds(np.random.SeedSequence((args.seed, 2, global_step)), args.num_envs)
        )
        tracker = GameTracker(infos)
        print(f"resumed at step {global_step:,}; the games that were under way are lost, and new ones begin")
    with disk_trouble(run_dir):
        writer = make_writer(args, run_dir, global_step + 1 if args.resume else None)
    (run_dir / "agent.pt").unlink(missing_ok=True)  # of a finished run that is made longer

    def checkpoint() -> None:
        check_finite(agent.not_finite.cpu().numpy(), metrics, updates, run_dir)
        writer.flush()
        loop = {
            "counts": (global_step, updates, logged, checkpoints, evaluations),
            "last_returns": list(last_returns),
            "metrics": metrics,
            "warm_up_rng": warm_up_rng.bit_generator.state,
            "generator": generator.get_state(),
            "probe": (probe.rng.bit_generator.state, probe.pairs),
            "observations": torch.from_numpy(observations),
        }
        save_checkpoint(run_dir, agent_state(agent, args, observation_shape, num_actions), agent, buffer, loop)

    updater = Updater(agent, buffer, args)  # after the load, which gives the optimisers new tensors
    acting = Captured(lambda *inputs: torch.cat([*act(agent.actor, *inputs), agent.not_finite]), device)
    log_time, log_step = time.perf_counter(), global_step
    style = {} if sys.stderr.isatty() else LINES  # a bar, or a plain line every half minute
    bar = tqdm(total=args.total_timesteps, initial=global_step, unit=" steps", **style)
    with StopSignals() as stop, disk_trouble(run_dir), closing(writer), closing(envs), closing(bar):
        if args.resume:
            checkpoint()  # with the new --total-timesteps, if one was given: nothing else remembers it
        while True:
            # Evaluate
            if args.eval_frequency and global_step // args.eval_frequency > evaluations:
                returns = evaluate(agent.actor, args, args.eval_episodes, True, args.seed, stop)
                if not stop.received:
                    evaluations = global_step // args.eval_frequency
                    writer.add_scalar("eval/episodic_return", returns.mean(), global_step)

            # Keep
            finished = global_step >= args.total_timesteps
            if finished or stop.received or global_step // args.checkpoint_frequency > checkpoints:
                checkpoints = global_step // args.checkpoint_frequency
                checkpoint()
            if stop.received:
                name = signal.Signals(stop.received).name
                with suppress(OSError):  # after SIGHUP there may be nobody any more to read it
                    bar.close()
                    tqdm.write(f"{name}: stopped at step {global_step:,}; {resume_command(run_dir)}")
                raise SystemExit(128 + stop.received)
            if finished:
                break

            # Act
            if global_step < args.learning_starts:
                actions = warm_up_rng.integers(num_actions, size=args.num_envs)
                entropies = np.full(args.num_envs, np.log(num_actions))
            else:
                acted = acting(observations, exponential_noise(args.num_envs, num_actions, generator))
                acted = acted.cpu().numpy()  # the one wait for the device in a step
                actions, entropies = acted[: args.num_envs].astype(np.int64), acted[args.num_envs : -2]
                check_finite(acted[-2:], metrics, updates, run_dir)
            envs.send(actions)

            # Learn while the games run on: as many updates as are due, whatever the number of environments
            due = max(0, global_step - args.learning_starts) // args.update_frequency * args.gradient_steps
            while updates < due:
                update_step = args.learning_starts + (updates // args.gradient_steps + 1) * args.update_frequency
                set_schedules(agent, args, update_step)
                metrics = updater()
                updates += 1

            # Observe
            next_observations, scores, terminated, truncated, infos = envs.recv()
            resets, games = tracker.step(scores, terminated, truncated, infos)
            rewards = np.clip(scores, -1, 1)
            buffer.add(observations, actions, rewards, terminated, truncated, entropies, resets)
            global_step += int((~resets).sum())  # a step that only resets is no agent step

            for _, game_return, game_length in games:
                last_returns.append(game_return)
                writer.add_scalar("charts/episodic_return", game_return, global_step)
                writer.add_scalar("charts/episodic_length", game_length, global_step)
                bar.set_postfix(mean_return=f"{np.mean(last_returns):.1f}", refresh=False)
            if global_step > args.learning_starts and not resets[0]:
                step0 = (actions[0], rewards[0], terminated[0], truncated[0], entropies[0])
                pairs = probe.follow(agent, observations[:1], *step0, next_observations[:1])
                for predicted, followed in pairs:
                    writer.add_scalar("diagnostics/q_predicted", predicted, global_step)
                    writer.add_scalar("diagnostics/q_monte_carlo", followed, global_step)
            observations = next_observations

            # Log
            if metrics and global_step // LOG_FREQUENCY > logged:
                logged = global_step // LOG_FREQUENCY
                now = time.perf_counter()
                writer.add_scalar("charts/SPS", (global_step - log_step) / (now - log_time), global_step)
                log_time, log_step = now, global_step
                for tag, value in zip(metrics, torch.stack([*metrics.values()]).tolist(), strict=True):
                    writer.add_scalar(tag, value, global_step)
            if not stop.received:  # upon a signal, what reads this may be gone: nothing may come before the checkpoint
                bar.update(min(global_step, args.total_timesteps) - bar.n)
        state = agent_state(agent, args, observation_shape, num_actions)
        write_file(run_dir / "agent.pt", lambda file: torch.save(state, file))  # there: the run is finished
    if args.capture_video:
        print(f"filmed: {film(agent.actor, args, run_dir / 'videos', args.seed)}")
    return run_dir


def set_schedules(agent: Agent, args: Args, update_step: int) -> None:
    """Sets what changes from update to update, for the update that is due at agent step `update_step`: in place, for a
    captured graph follows what is in tensors, not new Python numbers.
    """
    moves = update_step % args.target_network_frequency < args.update_frequency  # a multiple since the update before
    agent.target_step.fill_(args.tau if moves else 0.0)
    if args.anneal_lr:
        remaining = 1 - update_step / args.total_timesteps
        agent.actor_optimizer.param_groups[0]["lr"].fill_(args.policy_lr * remaining)
        agent.q_optimizer.param_groups[0]["lr"].fill_(args.q_lr * remaining)
        agent.a_optimizer.param_groups[0]["lr"].fill_(args.q_lr * remaining)


def main(command: list[str] | None = None) -> None:
    """What the command line asks for; `command` stands for it in tests."""
    args = read_args(command)
    if args.evaluate:
        play(args)
    else:
        print(f"done: {train(args)}")


if __name__ == "__main__":
    main()
