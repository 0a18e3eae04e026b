"""The defaults learn CartPole-v1 to Gymnasium's threshold in half of their steps, on a seed that no setting was chosen
on (settings were on 1 to 10 and 101 to 105); and Pong's beginning leaves the encoder alive.
"""

import numpy as np
import torch

import sdsac_atari
import sdsac_classic

SEED = 11


def test_cartpole_reaches_its_threshold(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_dir = sdsac_classic.train(sdsac_classic.Args(total_timesteps=25_000, seed=SEED))
    agent, args = sdsac_classic.load_agent(run_dir / "agent.pt", "cpu")
    assert sdsac_classic.evaluate(agent.actor, args, episodes=100, greedy=True, seed=1000 + SEED).mean() >= 475


def test_the_encoder_outlives_the_beginning_of_pong(tmp_path, monkeypatch):
    """With plain first filters the features differ by 0.009 between states, and 7 to 10 of the 32 are dead; with plain
    ones and PyTorch's own weights they differed by 0.0018, and soon not at all."""
    monkeypatch.chdir(tmp_path)
    flags = {"env_id": "PongNoFrameskip-v4", "learning_starts": 2_000, "total_timesteps": 2_400, "buffer_size": 5_000}
    run_dir = sdsac_atari.train(sdsac_atari.Args(seed=22, cuda=False, compile=False, **flags))
    agent, args = sdsac_atari.load_agent(run_dir / "agent.pt", "cpu")
    envs, rng = sdsac_atari.make_envs(args, 8), np.random.default_rng(0)
    envs.reset(seed=np.arange(8))
    states = [envs.step(rng.integers(6, size=8))[0] for _ in range(200)][::20]
    with torch.no_grad():
        features = agent.encoder(torch.from_numpy(np.concatenate(states)))
    assert features.std(0).mean() > 0.013
