"""On a GPU: its updates, replayed as a graph or not, are those of the CPU; nothing in them waits for the device; runs
and agents move between devices. Skipped where there is none.
"""

import re
import warnings

import numpy as np
import pytest
import torch
from test_graph import SCRIPTS, SHAPES, state_of

import sdsac_atari
import sdsac_classic

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
PATHS = pytest.mark.parametrize("captures", [True, False], ids=["graph", "plain"])
FORMS = pytest.mark.parametrize(
    ("captures", "compile"), [(True, False), (False, False), (True, True)], ids=["graph", "plain", "compiled graph"]
)
NETWORKS = ("encoder", "actor", "qf1", "qf2", "encoder_target", "qf1_target", "qf2_target")


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """Products and convolutions in float32 on both devices, so that only the order of sums differs."""
    monkeypatch.setattr(sdsac_atari, "BF16", {"cpu": False, "cuda": False})
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(autouse=True)
def compiled_where_asked(capsys):
    """Where compiling fails, a script says so and goes on without."""
    yield
    assert "not compiled" not in capsys.readouterr().out


def random_observations(script, rng, count):
    if script is sdsac_atari:
        return rng.integers(256, size=(count, *SHAPES[script])).astype(np.uint8)
    return rng.standard_normal((count, *SHAPES[script])).astype(np.float32)


def make_buffer(script, args, device):
    """The same transitions and the same draws on every device."""
    buffer = script.ReplayBuffer(args.buffer_size, 2, SHAPES[script], args.n_step, args.gamma, device, seed=1)
    buffer.random_shift = getattr(args, "random_shift", 0)
    rng, none = np.random.default_rng(2), np.zeros(2, bool)
    for _ in range(args.buffer_size // 2):
        observations = random_observations(script, rng, 2)
        buffer.add(observations, rng.integers(3, size=2), rng.random(2), rng.random(2) < 0.1, none, rng.random(2), none)
    return buffer


def make_updater(script, device, captures=True, epsilon=1e-8, **flags):
    flags = {"autotune": True, "anneal_lr": True, "buffer_size": 400, "num_envs": 2, "compile": False} | flags
    args = script.Args(**flags)
    torch.manual_seed(0)
    agent = script.make_agent(args, SHAPES[script], 3, device)
    for optimizer in (agent.actor_optimizer, agent.q_optimizer):
        optimizer.param_groups[0]["eps"] = epsilon
    updater = script.Updater(agent, make_buffer(script, args, torch.device(device)), args)
    updater.captures = updater.captures and captures
    return updater


def weights(agent):
    """name -> tensor of everything that gradients or targets move, on the CPU."""
    named = {f"{name}.{key}": x for name in NETWORKS for key, x in getattr(agent, name).state_dict().items()}
    return {name: x.detach().cpu().clone() for name, x in (named | {"log_alpha": agent.log_alpha}).items()}


def warmed_up(updater):
    """The updater after so many calls that the next one replays the graph, if there is one."""
    captures = updater.captures  # a capture that fails takes it back
    for call in range(updater.WARM_UP + 1):
        sdsac_atari.set_schedules(updater.agent, updater.args, 20_000 + 500 * call)
        updater()
    assert (updater.graph is not None) == captures
    return updater


@SCRIPTS
@FORMS
def test_one_update_is_that_of_the_cpu(script, captures, compile):
    flags = {"clip_range": 0.1, "max_grad_norm": 0.01}  # both cut in
    if script is sdsac_atari:
        flags["random_shift"] = 4
    flags["epsilon"] = 1e-5  # with Adam's default, steps down gradients near 0 are a matter of rounding
    cpu = warmed_up(make_updater(script, "cpu", **flags))
    gpu = warmed_up(make_updater(script, "cuda", captures, compile=compile, **flags))
    for ours, theirs in zip(state_of(gpu.agent), state_of(cpu.agent), strict=True):
        ours.data.copy_(theirs)  # in place, for a graph knows addresses only
    before = weights(cpu.agent)
    expected, metrics = cpu(), gpu()
    assert 0 < expected["losses/q_clip_fraction"] < 1
    assert min(expected["losses/critic_grad_norm"], expected["losses/actor_grad_norm"]) > 0.01
    for tag, value in expected.items():
        torch.testing.assert_close(metrics[tag].cpu(), value, rtol=1e-5, atol=1e-6, msg=tag)
    after, wanted = weights(gpu.agent), weights(cpu.agent)
    for name, start in before.items():
        moved = wanted[name] - start
        assert moved.norm() > 0, name
        rounding = torch.finfo(torch.float32).eps * start.abs().max()  # of a weight itself
        assert (after[name] - wanted[name]).norm() < 1e-4 * moved.norm() + rounding, name


def distances_of_curves(script, captures, compile):
    """How far the metrics of 200 updates are from those of the CPU, on average and in standard deviations of the CPU's
    curve: tag -> float, without norms of gradients, which are noise."""
    # slow, for rounding grows faster in fast ones
    flags = {"batch_size": 8, "policy_lr": 1e-4, "q_lr": 1e-4, "beta": 0.1}
    cpu = make_updater(script, "cpu", **flags)
    gpu = make_updater(script, "cuda", captures, compile=compile, **flags)
    curves = [[], []]
    for call in range(200):
        for updater, rows in zip((cpu, gpu), curves, strict=True):
            script.set_schedules(updater.agent, updater.args, 20_000 + 100 * call)
            rows.append({tag: value.item() for tag, value in updater().items() if "grad_norm" not in tag})
    assert (gpu.graph is not None) == captures
    cpu_curves, gpu_curves = (np.array([[*row.values()] for row in rows]) for rows in curves)
    distances = np.abs(gpu_curves - cpu_curves).mean(0) / np.maximum(cpu_curves.std(0), 1e-9)
    return dict(zip(curves[0][0], distances, strict=True))


@SCRIPTS
@FORMS
def test_curves_of_200_updates_lie_on_those_of_the_cpu(script, captures, compile):
    distances = distances_of_curves(script, captures, compile)
    assert max(distances.values()) < 0.15, distances


def test_curves_of_200_updates_of_the_default_form_lie_near_those_of_float32(monkeypatch):
    monkeypatch.setitem(sdsac_atari.BF16, "cuda", True)
    distances = distances_of_curves(sdsac_atari, True, True)
    for tag in ("losses/qf1_loss", "losses/qf2_loss", "losses/alpha", "losses/entropy_penalty", "policy/entropy"):
        assert distances[tag] < 0.15, distances
    assert max(distances.values()) < 0.4, distances  # Q's mean moves little; from other weights 0.43 to 0.67


def test_the_default_form_is_within_two_percent_of_float32(monkeypatch):
    """Compiled, captured and with the encoder in bfloat16: losses and Q of one update."""
    monkeypatch.setitem(sdsac_atari.BF16, "cuda", True)
    cpu, gpu = warmed_up(make_updater(sdsac_atari, "cpu")), warmed_up(make_updater(sdsac_atari, "cuda", compile=True))
    for ours, theirs in zip(state_of(gpu.agent), state_of(cpu.agent), strict=True):
        ours.data.copy_(theirs)
    observations = torch.from_numpy(random_observations(sdsac_atari, np.random.default_rng(3), 64))
    with torch.no_grad():
        q, same_q = cpu.agent.qf1(observations), gpu.agent.qf1(observations.cuda()).cpu()
    assert 0 < (same_q - q).norm() < 0.02 * q.norm()
    expected, metrics = cpu(), gpu()
    for tag in ("losses/qf1_loss", "losses/qf2_loss", "policy/entropy", "losses/critic_grad_norm"):
        torch.testing.assert_close(metrics[tag].cpu(), expected[tag], rtol=0.02, atol=0, msg=tag)


@SCRIPTS
def test_a_replay_updates_everything_and_follows_rates_and_target_steps(script):
    updater = warmed_up(make_updater(script, "cuda"))
    agent, before = updater.agent, [tensor.clone() for tensor in state_of(updater.agent)]
    updater()
    still = [torch.equal(old, new) for old, new in zip(before, state_of(agent), strict=True)]
    constant = 3 + 2  # three learning rates; target_step and not_finite
    assert sum(still) == constant

    start = weights(agent)
    agent.target_step.fill_(0.0)
    agent.q_optimizer.param_groups[0]["lr"].fill_(0.0)
    updater()
    moved = {name.split(".")[0] for name, value in weights(agent).items() if not torch.equal(value, start[name])}
    assert moved == {"actor", "log_alpha"}

    start = weights(agent)
    agent.target_step.fill_(1.0)
    updater()
    for name, value in weights(agent).items():
        if "_target" in name:
            assert torch.equal(value, start[name.replace("_target", "")])


@SCRIPTS
@PATHS
def test_no_update_waits_for_the_device_and_acting_waits_once(script, captures):
    updater = warmed_up(make_updater(script, "cuda", captures))
    observations = np.zeros((2, *SHAPES[script]), np.uint8 if script is sdsac_atari else np.float32)
    generator = torch.Generator().manual_seed(0)
    agent, device = updater.agent, torch.device("cuda")
    acting = script.Captured(lambda *inputs: torch.cat([*script.act(agent.actor, *inputs), agent.not_finite]), device)
    acting.captures = captures
    for _ in range(acting.WARM_UP + 1):
        acting(observations, script.exponential_noise(2, 3, generator))
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        for call in range(5):
            script.set_schedules(updater.agent, updater.args, 40_000 + 500 * call)
            updater()
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            acting(observations, script.exponential_noise(2, 3, generator)).cpu()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(waits) == 1, [str(wait.message) for wait in waits]


@SCRIPTS
def test_acting_is_that_of_the_cpu(script):
    cpu, gpu = make_updater(script, "cpu").agent.actor, make_updater(script, "cuda").agent.actor
    observations = torch.from_numpy(random_observations(script, np.random.default_rng(3), 500))
    noise = script.exponential_noise(500, 3, torch.Generator().manual_seed(0))
    actions, entropies = script.act(cpu, observations, noise)
    captured = script.Captured(lambda *inputs: script.act(gpu, *inputs), torch.device("cuda"))
    for _ in range(captured.WARM_UP + 2):
        same_actions, same_entropies = captured(observations, noise)
    assert captured.graph
    assert (actions != same_actions.cpu()).sum() <= 1  # a tie, but for rounding
    torch.testing.assert_close(same_entropies.cpu(), entropies, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("script", "bf16", "growth"), [(sdsac_classic, False, 1.2), (sdsac_atari, False, 1.05), (sdsac_atari, True, 1.05)]
)
def test_acting_follows_weights_and_observations_that_change(script, bf16, growth, monkeypatch):
    """A replay that keeps copies of the first weights, in bfloat16 say, would play the untrained policy for ever."""
    monkeypatch.setitem(sdsac_atari.BF16, "cuda", bf16)
    device, rng, generator = torch.device("cuda"), np.random.default_rng(3), torch.Generator().manual_seed(0)
    actor = make_updater(script, "cuda").agent.actor
    captured = script.Captured(lambda *inputs: script.act(actor, *inputs), device)
    means = []
    for _ in range(captured.WARM_UP + 5):
        with torch.no_grad():
            for weight in actor.parameters():
                weight.mul_(growth)  # in place, as optimisers do
        observations = torch.from_numpy(random_observations(script, rng, 200))
        noise = script.exponential_noise(200, 3, generator)
        actions, entropies = (x.clone() for x in captured(observations, noise))
        same_actions, same_entropies = script.act(actor, observations.to(device), noise.to(device))
        assert (actions != same_actions).sum() <= 1
        torch.testing.assert_close(entropies, same_entropies, rtol=1e-3, atol=1e-4)
        means.append(entropies.mean().item())
    assert captured.graph
    assert (np.diff(means) < -1e-3).all(), means  # larger logits, less entropy


def test_a_capture_that_fails_leaves_nothing_behind():
    device, stream = torch.device("cuda"), torch.cuda.current_stream()
    failing = sdsac_atari.Captured(lambda x: x + x.sum().item(), device)  # which waits, as no capture may
    sound = sdsac_atari.Captured(lambda x: 2 * x, device)
    for captured, factor in ((failing, 4), (sound, 2)):
        for k in range(8):
            assert captured(np.full(3, k, np.float32)).tolist() == [factor * k] * 3
            assert torch.cuda.current_stream() == stream
    assert (failing.captures, failing.graph) == (False, None)
    assert sound.graph


def test_batches_are_the_same_wherever_the_frames_are(monkeypatch):
    args = sdsac_atari.Args(buffer_size=400)
    on_device = make_buffer(sdsac_atari, args, torch.device("cuda"))
    monkeypatch.setattr(sdsac_atari.ReplayBuffer, "fits", staticmethod(lambda *rest: False))
    on_host = make_buffer(sdsac_atari, args, torch.device("cuda"))
    assert (on_device.frames.device.type, on_host.frames.device.type) == ("cuda", "cpu")
    for ours, theirs in zip(on_device.sample(64), on_host.sample(64), strict=True):
        assert ours.device.type == "cuda"
        assert torch.equal(ours, theirs)


def test_a_graph_takes_frames_from_the_host_too(monkeypatch):
    on_device = warmed_up(make_updater(sdsac_atari, "cuda"))
    monkeypatch.setattr(sdsac_atari.ReplayBuffer, "fits", staticmethod(lambda *rest: False))
    on_host = warmed_up(make_updater(sdsac_atari, "cuda"))
    assert (on_device.inputs[0].dtype, on_host.inputs[0].dtype) == (torch.int64, torch.uint8)
    for _ in range(5):
        expected, metrics = on_device(), on_host()
        for tag, value in expected.items():
            torch.testing.assert_close(metrics[tag], value, rtol=1e-5, atol=1e-6, msg=tag)


@SCRIPTS
def test_runs_move_between_devices(script, tmp_path, monkeypatch, capsys):
    """Trained on the GPU without a warning, gone on with on the CPU and back again, evaluated on the CPU."""
    monkeypatch.chdir(tmp_path)
    flags = {"total_timesteps": 600, "learning_starts": 200, "buffer_size": 400, "batch_size": 8}
    flags |= {"cuda": True, "compile": False}
    if script is sdsac_atari:
        flags |= {"env_id": "BreakoutNoFrameskip-v4", "num_envs": 4}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_dir = script.train(script.Args(**flags))
    assert not [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    printed = capsys.readouterr().out
    assert "device: cuda" in printed
    assert "no CUDA graph" not in printed
    for total, device in ((900, "cpu"), (1_200, "cuda")):
        flags = ["--cuda", "--compile"] if device == "cuda" else ["--no-cuda", "--no-compile"]
        script.main(["--resume", str(run_dir), "--total-timesteps", str(total), *flags])
        printed = capsys.readouterr().out
        assert f"device: {device}" in printed
        assert not re.search("no CUDA graph|not compiled", printed)
    agent, args = script.load_agent(run_dir / "agent.pt", "cpu")
    assert args.total_timesteps == 1_200
    if script is sdsac_classic:
        assert len(script.evaluate(agent.actor, args, 5, greedy=True, seed=0)) == 5
