"""The captured update: on a machine without a GPU, with a stand-in for the graph that keeps its rules."""

import contextlib
import copy

import numpy as np
import pytest
import torch

import sdsac_atari
import sdsac_classic

torch.set_num_threads(1)
SCRIPTS = pytest.mark.parametrize("script", [sdsac_classic, sdsac_atari], ids=["classic", "atari"])
SHAPES = {sdsac_classic: (4,), sdsac_atari: (4, 84, 84)}


def make_updater(script, captures):
    args = script.Args(
        batch_size=8, autotune=True, anneal_lr=True, buffer_size=200, num_envs=2, cuda=False, compile=False
    )
    torch.manual_seed(0)
    agent = script.make_agent(args, SHAPES[script], 3, "cpu")
    buffer = script.ReplayBuffer(200, 2, SHAPES[script], args.n_step, args.gamma, seed=1)
    rng, none = np.random.default_rng(2), np.zeros(2, bool)
    for _ in range(40):
        observations = rng.integers(256, size=(2, *SHAPES[script])).astype(np.uint8)
        buffer.add(observations, rng.integers(3, size=2), rng.random(2), rng.random(2) < 0.1, none, rng.random(2), none)
    updater = script.Updater(agent, buffer, args)
    updater.captures, updater.stream = captures, torch.cuda.Stream()
    return updater


def state_of(agent):
    """All tensors that an update changes."""
    modules = [module for module in vars(agent).values() if isinstance(module, torch.nn.Module)]
    tensors = [tensor for module in modules for tensor in module.state_dict().values()]
    optimizers = [value for value in vars(agent).values() if isinstance(value, torch.optim.Optimizer)]
    moments = [x for optimizer in optimizers for state in optimizer.state.values() for x in state.values()]
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    return [*tensors, *moments, *rates, agent.log_alpha, agent.target_step, agent.not_finite]


@pytest.fixture(autouse=True)
def streams(monkeypatch):
    class Stream(contextlib.nullcontext):
        def wait_stream(self, other):
            pass

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)


@pytest.fixture
def graphs(monkeypatch):
    """Graphs that are captured without being run, and that write to where they were captured when replayed."""
    made = []

    class Graph:
        def __init__(self):
            self.replays = 0
            made.append(self)

        def replay(self):
            self.replays += 1
            recorded = self.updater.outputs
            self.updater.run()
            for tag, value in self.updater.outputs.items():
                recorded[tag].copy_(value)
            self.updater.outputs = recorded

    @contextlib.contextmanager
    def capturing(graph, stream):
        graph.updater = made.updater
        state = state_of(made.updater.agent)
        before = [tensor.clone() for tensor in state]
        yield
        for tensor, value in zip(state, before, strict=True):
            tensor.data.copy_(value)

    class Made(list):
        updater = None

    made = Made()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    return made


@SCRIPTS
def test_a_replayed_update_is_the_update(script, graphs):
    """The same weights after twelve calls, at addresses that stay, with rates and target steps that change."""
    plain, captured = make_updater(script, False), make_updater(script, True)
    graphs.updater = captured
    addresses = None
    for call in range(12):
        for updater in (plain, captured):
            script.set_schedules(updater.agent, updater.args, 20_000 + 500 * call)
        expected, metrics = plain(), captured()
        for tag, value in expected.items():
            assert torch.equal(value, metrics[tag]), (call, tag)
        if call >= captured.WARM_UP:
            now = [tensor.data_ptr() for tensor in [*state_of(captured.agent), *captured.inputs, *metrics.values()]]
            assert addresses in (None, now)
            addresses = now
    (graph,) = graphs
    assert graph.replays == 12 - captured.WARM_UP
    for ours, theirs in zip(state_of(plain.agent), state_of(captured.agent), strict=True):
        assert torch.equal(ours, theirs)


@SCRIPTS
def test_where_capture_fails_updates_go_on_without(script, monkeypatch, capsys):
    plain, captured = make_updater(script, False), make_updater(script, True)

    @contextlib.contextmanager
    def failing(graph, stream):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", failing)
    for _ in range(8):
        plain(), captured()
    for ours, theirs in zip(state_of(plain.agent), state_of(captured.agent), strict=True):
        assert torch.equal(ours, theirs)
    message = capsys.readouterr().out
    assert message.count("operation not permitted when stream is capturing") == 1
    assert "more" not in message


@pytest.mark.parametrize("random_shift", [0, 4])
def test_frames_that_are_gathered_on_the_device_are_those_gathered_on_the_host(random_shift):
    """What is captured takes indices if the frames are on the device, and the frames themselves otherwise."""
    buffer = make_updater(sdsac_atari, False).buffer
    buffer.random_shift = random_shift
    other = copy.deepcopy(buffer)

    class Frames:
        device = torch.device("cuda")

        def __len__(self):
            return len(buffer.frames)

        def index_select(self, dim, indices):
            return buffer.frames.index_select(dim, indices)

    other.frames = Frames()
    frames, numbers = buffer.pick(16)
    indices, same_numbers = other.pick(16)
    assert (frames.dtype, indices.dtype) == (torch.uint8, torch.int64)
    assert torch.equal(numbers, same_numbers)
    for ours, theirs in zip(buffer.batch(frames, numbers), other.batch(indices, same_numbers), strict=True):
        assert torch.equal(ours, theirs)
