import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from rl_lightning.compress import fake_quantise, harden, quantise, refake, requantise
from rl_lightning.compress.packed import PackedLinear
from rl_lightning.compress.rounding import rounded
from rl_lightning.compress.straight_through import StraightThrough
from rl_lightning.core.errors import ConfigurationError


class Net(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.table = nn.Embedding(7, 5)
        self.bag = nn.EmbeddingBag(7, 5)
        self.conv1 = nn.Conv1d(5, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(1, 2, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, ids):
        h = self.conv1(self.table(ids).transpose(1, 2) + self.bag(ids)[..., None])  # (N, 4, L)
        return self.head(self.conv2(h[:, None]).mean(-1).flatten(1))


IDS = torch.tensor([[0, 1, 2, 6], [3, 3, 5, 4]])


def test_the_gradient_passes_as_if_nothing_was_rounded():
    w = torch.tensor([[3.5, -1.2, 0.2]], requires_grad=True)
    out = StraightThrough(4)(w)
    assert out.tolist() == [[3.5, -1.0, 0.0]]
    (out * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert w.grad.tolist() == [[1.0, 2.0, 3.0]]


@pytest.mark.parametrize("bits", [16, 8, 4, 3, 2, 1])
@pytest.mark.parametrize("group_size", [None, 3])
def test_hardened_is_what_was_trained(bits, group_size):
    net = Net()
    parameters = [id(p) for p in net.parameters()]
    record = fake_quantise(net, bits, group_size=group_size)
    assert record["operator"] == "fake_quantise"
    assert sorted(parameters) == sorted(id(p) for p in net.parameters())
    optimizer = torch.optim.Adam(net.parameters(), 0.05)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        net(IDS).square().sum().backward()
        optimizer.step()
    assert all(not torch.equal(before[name], p) for name, p in net.named_parameters())
    trained = net(IDS)
    assert torch.equal(net.head.weight, rounded(net.head.weight, 16)) == (bits == 16)
    hard = harden(net)
    assert hard["operator"] == "quantise"
    assert hard["layers"] == record["layers"]
    assert type(net.head) is PackedLinear
    assert torch.equal(net(IDS), trained)
    again = Net(seed=1)
    requantise(again, hard)
    again.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(again(IDS), trained)


def test_fake_computes_what_quantise_would():
    fake, packed = Net(), Net()
    fake_quantise(fake, {"": 8, "head": 2, "conv1": 32}, keep=["table"])
    record = quantise(packed, {"": 8, "head": 2, "conv1": 32}, keep=["table"])
    assert torch.equal(fake(IDS), packed(IDS))
    assert {n: e["bits"] for n, e in record["layers"].items()} == {"bag": 8, "conv2": 8, "head": 2}
    some, every = Net(), Net()
    fake_quantise(some, 1, layers=["head"])
    fake_quantise(every, 1)
    assert not parametrize.is_parametrized(some.table)
    assert not torch.equal(some(IDS), every(IDS))


@pytest.mark.parametrize("bits", [2, 1])
def test_training_under_quantisation_ends_nearer_than_rounding_at_the_end(bits):
    torch.manual_seed(0)
    x = torch.randn(128, 6)
    y = torch.sin(2 * x[:, :2]).sum(1, keepdim=True)

    def fitted(under):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 1))
        if under:
            fake_quantise(net, bits)
        optimizer = torch.optim.Adam(net.parameters(), 0.01)
        for _ in range(250):
            optimizer.zero_grad()
            (net(x) - y).square().mean().backward()
            optimizer.step()
        if under:
            harden(net)
        else:
            quantise(net, bits)
        return float((net(x) - y).square().mean().detach())

    assert fitted(under=True) < 0.6 * fitted(under=False)


def test_a_checkpoint_from_the_middle_of_training_goes_on_the_same(tmp_path):
    def step(net, optimizer):
        optimizer.zero_grad()
        net(IDS).square().sum().backward()
        optimizer.step()

    net = Net()
    record = fake_quantise(net, 4, group_size=2)
    optimizer = torch.optim.Adam(net.parameters(), 0.05)
    step(net, optimizer)
    torch.save((record, net.state_dict(), optimizer.state_dict()), tmp_path / "middle.pt")
    step(net, optimizer)

    record, state, momenta = torch.load(tmp_path / "middle.pt", weights_only=True)
    again = Net(seed=1)
    refake(again, record)
    again.load_state_dict(state, strict=True)
    optimizer = torch.optim.Adam(again.parameters(), 0.05)
    optimizer.load_state_dict(momenta)
    step(again, optimizer)
    assert torch.equal(again(IDS), net(IDS))
    harden(again)
    harden(net)
    assert torch.equal(again(IDS), net(IDS))


def test_an_agent_is_fitted_under_quantisation():
    import lightning

    from rl_lightning import PPO, RolloutDataModule

    data = RolloutDataModule(env="CartPole-v1", num_envs=2, rollout_steps=16, total_frames=64)
    agent = PPO(spec=data.spec)
    record = fake_quantise(agent, 2)
    start = {name: p.detach().clone() for name, p in agent.named_parameters()}
    lightning.Trainer(
        accelerator="cpu", max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(agent, data)  # fmt: skip
    assert len(record["layers"]) == 6
    changed = [name for name, p in agent.named_parameters() if not torch.equal(p, start[name])]
    assert len([name for name in changed if name.endswith("original")]) == 6
    x = torch.randn(32, 4)
    trained = agent.act(x, explore=False)["action"]
    weights = {name: agent.get_submodule(name).weight for name in record["layers"]}
    harden(agent)
    assert torch.equal(agent.act(x, explore=False)["action"], trained)
    for name, weight in weights.items():
        assert torch.equal(agent.get_submodule(name).weight, weight)


def test_copies_harden_by_themselves():
    net = Net()
    fake_quantise(net, 4)
    copied = copy.deepcopy(net)
    expected = net(IDS)
    harden(net)
    assert torch.equal(copied(IDS), expected)
    harden(copied)
    assert torch.equal(copied(IDS), net(IDS))


def test_shared_weights_stay_shared():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(6, 4)
            self.head = nn.Linear(4, 6, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids):
            return self.head(self.table(ids))

    net = Tied()
    fake_quantise(net, 4)
    assert len(list(net.parameters())) == 1
    net(IDS[:, 0]).sum().backward()
    expected = net(IDS[:, 0])
    harden(net)
    assert net.head.codes is net.table.codes
    assert torch.equal(net(IDS[:, 0]), expected)


class Half(nn.Module):
    """A mask, as pruning puts it on."""

    def __init__(self, shape):
        super().__init__()
        self.register_buffer("mask", torch.arange(shape.numel()).view(shape) % 2 == 0)

    def forward(self, weight):
        return torch.where(self.mask, weight, 0.0)


def test_rounding_comes_after_a_mask():
    net = Net()
    parametrize.register_parametrization(net.head, "weight", Half(net.head.weight.shape))
    masked = net.head.weight
    fake_quantise(net, 2)
    assert torch.equal(net.head.weight, rounded(masked, 2))
    net(IDS).sum().backward()
    gradient = net.head.parametrizations["weight"].original.grad
    assert bool((gradient[net.head.parametrizations["weight"][0].mask] != 0).any())
    assert not gradient[~net.head.parametrizations["weight"][0].mask].any()
    expected = net(IDS)
    harden(net)
    assert torch.equal(net(IDS), expected)
    assert bool((net.head.weight == 0).sum() >= net.head.weight.numel() // 2)

    late = Net()
    fake_quantise(late, 2)
    parametrize.register_parametrization(late.head, "weight", Half(late.head.weight.shape))
    with pytest.raises(ConfigurationError, match="head is changed by a Half after it was rounded"):
        harden(late)


def test_what_cannot_be_is_said():
    net = Net()
    with pytest.raises(ConfigurationError, match="call fake_quantise and train first"):
        harden(net)
    record = fake_quantise(net, 4, layers=["head"])
    for operator in (quantise, fake_quantise):
        with pytest.raises(ConfigurationError, match="trained under quantisation: call harden"):
            operator(net, 4, layers=["head"])
    with pytest.raises(ConfigurationError, match="no record of fake_quantise"):
        refake(Net(), {**record, "operator": "quantise"})
    with pytest.raises(ConfigurationError, match="no record of quantise"):
        requantise(Net(), record)
    with pytest.raises(ConfigurationError, match="here it is trained under quantisation"):
        refake(net, record)
    bad = {**record, "layers": {"head": record["layers"]["head"], "tail": {}}}
    fresh = Net()
    with pytest.raises(ConfigurationError, match="tail"):
        refake(fresh, bad)
    assert not parametrize.is_parametrized(fresh.head)
    net.head.parametrizations["weight"].original.data[0, 0] = float("inf")
    with pytest.raises(ConfigurationError, match="weight of head is not finite"):
        harden(net)
    cached = Net()
    fake_quantise(cached, 4)
    harden(cached, cached=True)
    assert cached.head.weight is cached.head.weight
