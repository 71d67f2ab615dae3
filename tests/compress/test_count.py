"""What a module costs, against hand-worked cases."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from rl_lightning.compress import count, prune_nodes, prune_weights, quantise
from rl_lightning.core.errors import ConfigurationError


def by_name(cost):
    return {layer.name: layer for layer in cost.layers}


def test_a_network_of_linear_layers():
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2, bias=False))
    cost = count(net, torch.zeros(3, 4))
    first, last = cost.layers
    assert (first.name, first.kind, first.output_shape) == ("0", "Linear", (3, 8))
    assert (first.parameters, first.bytes, first.macs) == (40, 160, 3 * 4 * 8)
    assert (last.parameters, last.bytes, last.macs) == (16, 64, 3 * 8 * 2)
    assert (cost.parameters, cost.bytes, cost.macs) == (56, 224, 144)


def test_the_batch_counts_and_a_single_vector_is_one():
    net = nn.Linear(4, 8)
    assert count(net, torch.zeros(4)).macs == count(net, torch.zeros(1, 4)).macs == 32
    assert count(net, torch.zeros(5, 7, 4)).macs == 35 * 32


@pytest.mark.parametrize(
    ("layer", "shape", "macs", "parameters"),
    [
        # 6 × 6 places, 5 filters of 3 × 3 × 2
        (nn.Conv2d(2, 5, 3), (1, 2, 8, 8), 36 * 5 * 18, 5 * 18 + 5),
        # stride 2: 4 places in each direction
        (nn.Conv2d(2, 5, 3, stride=2, padding=1), (1, 2, 8, 8), 16 * 5 * 18, 95),
        # two groups of 2 inputs each
        (nn.Conv1d(4, 6, 3, groups=2, bias=False), (2, 4, 10), 2 * 8 * 6 * 2 * 3, 36),
    ],
)
def test_convolutions(layer, shape, macs, parameters):
    cost = count(layer, torch.zeros(shape))
    assert (cost.macs, cost.parameters) == (macs, parameters)


def test_an_embedding_multiplies_nothing():
    (layer,) = count(nn.Embedding(10, 4), torch.zeros(2, 3, dtype=torch.long)).layers
    assert (layer.macs, layer.parameters, layer.output_shape) == (0, 40, (2, 3, 4))


def test_buffers_have_bytes_and_are_no_parameters():
    # 2 × 3 parameters, running mean and variance, and a count of 8 bytes
    cost = count(nn.BatchNorm1d(3), torch.zeros(2, 3))
    assert (cost.parameters, cost.bytes) == (6, 6 * 4 + 6 * 4 + 8)


@pytest.mark.parametrize(("kind", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)])
def test_recurrent_layers_count_every_weight_once_a_step(kind, gates):
    layer = kind(6, 5, num_layers=2, batch_first=True)
    steps, weights = 2 * 7, gates * (5 * 6 + 5 * 5 + 2 * 5 * 5)
    assert count(layer, torch.zeros(2, 7, 6)).macs == steps * weights


def test_torchs_own_attention():
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
    tokens, width = 2 * 5, 8
    projections = tokens * (4 * width * width + 2 * width * 16)
    products = 2 * 2 * (2 * 5 * 5 * 4)  # batch × heads × (QKᵀ and AV)
    assert count(layer.eval(), torch.zeros(2, 5, 8)).macs == projections + products


def bert():
    torch.manual_seed(0)
    return BertModel(
        BertConfig(
            vocab_size=30,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=32,
            max_position_embeddings=12,
        ),
        add_pooling_layer=False,
    )


def test_berts_attention():
    cost = count(bert(), torch.zeros(2, 5, dtype=torch.long))
    attention = by_name(cost)["encoder.layer.0.attention.self"]
    assert attention.macs == 2 * 4 * (2 * 5 * 5 * 4)  # batch × heads × (QKᵀ and AV)
    assert by_name(cost)["encoder.layer.1.attention.self.query"].macs == 10 * 16 * 16
    assert cost.macs == 2 * (2 * 4 * 200 + 10 * (4 * 16 * 16 + 2 * 16 * 32))
    assert cost.parameters == sum(p.numel() for p in bert().parameters())


def llama(tie=False):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=30,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=32,
            tie_word_embeddings=tie,
        )
    )


def test_llamas_grouped_attention_and_head():
    cost = by_name(count(llama(), torch.zeros(1, 6, dtype=torch.long)))
    assert cost["model.layers.0.self_attn"].macs == 4 * (2 * 6 * 6 * 4)
    assert cost["model.layers.0.self_attn.k_proj"].macs == 6 * 16 * 8
    assert cost["lm_head"].macs == 6 * 16 * 30


def test_a_shared_weight_is_stored_once_and_multiplied_where_it_is_used():
    cost = by_name(count(llama(tie=True), torch.zeros(1, 6, dtype=torch.long)))
    assert cost["model.embed_tokens"].parameters == 30 * 16
    assert (cost["lm_head"].parameters, cost["lm_head"].macs) == (0, 6 * 16 * 30)


def test_a_masked_weight_is_stored_whole_with_its_mask():
    net = nn.Sequential(nn.Linear(4, 8))
    prune_weights(net, 0.75)
    (layer,) = count(net, torch.zeros(1, 4)).layers
    assert (layer.kind, layer.parameters, layer.nonzero) == ("Linear", 40, 16)
    assert layer.bytes == 160 + 32  # and a byte for each place of the mask


def test_nodes_taken_out_cost_nothing():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    prune_nodes(net, 0.5, torch.zeros(1, 4))
    cost = count(net, torch.zeros(1, 4))
    assert (cost.parameters, cost.macs) == (4 * 4 + 4 + 4 * 2 + 2, 16 + 8)


class Stored(nn.Module):
    """y = x Wᵀ of a weight that is stored in some way."""

    def __init__(self, weight):
        super().__init__()
        if weight.is_floating_point():
            self.weight = nn.Parameter(weight, requires_grad=False)
        else:
            self.register_buffer("weight", weight)

    def forward(self, x):
        dense = self.weight if self.weight.layout is torch.strided else self.weight.to_dense()
        return x @ dense.float().T


def test_sparse_and_packed_weights_count_as_stored():
    dense = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 3.0]])
    x = torch.zeros(1, 3)
    coo = count(Stored(dense.to_sparse_coo()), x)
    assert (coo.parameters, coo.bytes) == (2, 2 * 4 + 2 * 2 * 8)
    csr = count(Stored(dense.to_sparse_csr()), x)
    assert (csr.parameters, csr.bytes) == (2, 2 * 4 + 2 * 8 + 3 * 8)
    packed = count(Stored(torch.ones(2, 3, dtype=torch.int8)), x)
    assert (packed.parameters, packed.bytes, packed.macs) == (0, 6, 6)


def test_the_table_names_layers_and_sums():
    text = str(count(nn.Sequential(nn.Linear(40, 80), nn.Linear(80, 2)), torch.zeros(1, 40)))
    lines = text.splitlines()
    assert len(lines) == 4
    assert lines[1].split() == ["0", "Linear", "3,280", "3,280", "13,120", "3,200", "1×80"]
    assert lines[-1].split() == ["sum", "3,442", "3,442", "13,768", "3,360"]


def test_the_module_is_as_before():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5)).train()
    net[2].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    count(net, torch.ones(3, 2))
    assert [part.training for part in net] == [True, True, False]
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_call_that_fails_says_so():
    with pytest.raises(ConfigurationError, match="Linear cannot be called with these inputs"):
        count(nn.Linear(4, 2), torch.zeros(1, 3))


def test_weights_in_few_bits_count_as_weights():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    before = count(network, torch.zeros(1, 8))
    quantise(network, 2)  # ternary: some of them are 0
    after = count(network, torch.zeros(1, 8))
    assert after.parameters == before.parameters == 8 * 4 + 4 + 4 * 2 + 2
    kept = sum(int(torch.count_nonzero(layer.weight)) for layer in (network[0], network[2]))
    assert after.nonzero == kept + 6 < before.nonzero
    assert after.macs == before.macs
    assert after.bytes < before.bytes
