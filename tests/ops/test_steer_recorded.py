"""`ops.steer` under what records a call: gradients, a compiler, a CUDA graph."""

import pytest
import torch

from expertsteer import ops
from expertsteer.ops import extension
from helpers.steer_calls import OPERATIONS, assert_close, by_hand, case


@pytest.mark.parametrize("operation", OPERATIONS)
def test_gradients_flow_whatever_the_backend(operation):
    arguments = case((2, 3, 5), torch.float64, vectors=2)
    values = ("hidden", "table", "strengths")
    leaves = [arguments[name].clone().requires_grad_() for name in values]

    def call(*leaves):
        return ops.steer(
            **arguments | dict(zip(values, leaves)), operation=operation, backend="native"
        )

    out = call(*leaves)
    assert out is not leaves[0] and torch.equal(leaves[0], arguments["hidden"])
    assert torch.autograd.gradcheck(call, leaves)
    with torch.no_grad():  # nothing is recorded: in place
        assert call(*leaves) is leaves[0]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_compiler_traces_it_whole_and_once(operation):
    traced = []

    def count(module, inputs):
        traced.append(module)
        return module.forward

    torch._dynamo.reset()
    call = torch.compile(ops.steer, fullgraph=True, dynamic=False, backend=count)
    for seed in range(3):  # other vectors, strengths, gates and masks
        torch.manual_seed(seed)
        arguments = case((2, 3, 17), torch.float32, vectors=2)
        out = call(**arguments, operation=operation, backend="reference")
        expected = by_hand(**arguments, operation=operation)
        assert_close(out, expected, torch.float32)
    assert len(traced) == 1


@pytest.mark.gpu
def test_a_graph_captures_it_and_reads_what_changed():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if extension.why_not(torch.device("cuda"), torch.float32):
        pytest.skip("no CUDA extension")
    arguments = case((4, 1, 256), torch.bfloat16, "cuda", 2)
    norms = ops.inverse_norms(arguments["table"])
    source, hidden = arguments["hidden"], arguments["hidden"].clone()
    for operation in OPERATIONS:
        call = arguments | {"hidden": hidden, "inverse_norms": norms, "operation": operation}
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            ops.steer(**call, backend="native")
        for strength in (0.5, -2.0):
            hidden.copy_(source)
            arguments["strengths"].fill_(strength)
            graph.replay()
            expected = by_hand(**arguments, operation=operation)
            assert_close(hidden, expected, torch.float32)
