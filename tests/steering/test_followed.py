"""Steered passes that somebody follows: tracers, transforms of torch.func, forward mode."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import expertsteer as es
from helpers.steered_models import WIDTH, llama, logits, tokens, vectors

# Torch's own, where it loads what forward mode needs.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

IDS = tokens()
OPERATIONS = ("add", "remove", "clamp", "add_keep_norm")


class Logits(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(ids, use_cache=False).logits


def of_states(model):
    return lambda states: model(inputs_embeds=states, use_cache=False).logits


@pytest.fixture
def model():
    return llama().requires_grad_(False)


@pytest.fixture
def states(model):
    return model.get_input_embeddings()(IDS)


@pytest.fixture(autouse=True)
def plain_attention():
    with sdpa_kernel(SDPBackend.MATH):  # the others have no forward mode
        yield


def settings():
    yield {"mode": "fold"}
    for operation in OPERATIONS:
        yield {"mode": "slot", "operation": operation, "positions": "all"}
    yield {"mode": "slot", "positions": "last"}
    yield {"mode": "slot", "operation": "remove", "backend": "native"}


@pytest.fixture(params=settings(), ids=lambda given: "-".join(given.values()))
def steering(request, model):
    with es.attach(model, vectors(), strength=0.7, **request.param) as steering:
        yield steering


@pytest.mark.filterwarnings("ignore")  # what tracing says of every model
def test_a_traced_graph_is_the_steered_one(model, steering):
    expected = logits(model, IDS)
    traced = torch.jit.trace(Logits(model), (IDS,), check_trace=False)
    torch.testing.assert_close(traced(IDS), expected, rtol=1e-4, atol=1e-4)
    longer = tokens(length=9)
    found = traced(longer)
    torch.testing.assert_close(found, logits(model, longer), rtol=1e-4, atol=1e-4)
    steering.detach()
    torch.testing.assert_close(traced(IDS), expected, rtol=1e-4, atol=1e-4)  # it is a record
    assert not torch.allclose(logits(model, IDS), expected, rtol=1e-2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["fold", "slot"])
def test_a_tracer_that_checks_itself_sees_one_graph(mode):
    model = llama()  # learnable: the tracer's second run is without gradients
    with es.attach(model, vectors(), strength=0.7, mode=mode):
        traced = torch.jit.trace(Logits(model), (IDS,))
        torch.testing.assert_close(traced(IDS), logits(model, IDS), rtol=1e-4, atol=1e-4)
        assert "isfinite" not in str(traced.inlined_graph)


def test_under_a_dispatch_mode_the_same_is_added(model, steering):
    expected = logits(model, IDS)
    with FlopCounterMode(display=False):
        torch.testing.assert_close(logits(model, IDS), expected, rtol=1e-4, atol=1e-4)


def test_vmap_over_sequences_is_the_batch(model, steering, states):
    function = of_states(model)
    together = torch.func.vmap(lambda one: function(one.unsqueeze(0))[0])(states)
    torch.testing.assert_close(together, function(states), rtol=1e-4, atol=1e-4)


def test_forward_mode_gives_the_derivative(model, steering, states):
    function, tangent = of_states(model), torch.randn_like(states)
    # By two reverse passes, which autograd records.
    _, expected = torch.autograd.functional.jvp(function, states, tangent)
    _, found = torch.func.jvp(function, (states,), (tangent,))
    with forward_ad.dual_level():
        dual = function(forward_ad.make_dual(states, tangent))
        by_dual = forward_ad.unpack_dual(dual).tangent
    for one in (found, by_dual):
        assert float((one - expected).norm() / expected.norm()) < 1e-4


def test_reverse_mode_of_torch_func_is_autograd(model, steering, states):
    def loss(given):
        return of_states(model)(given).square().sum()

    given = states.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(given), given)
    torch.testing.assert_close(torch.func.grad(loss)(states), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["fold", "slot"])
def test_states_that_are_not_finite_are_told_inside_vmap_too(mode):
    model = llama().half().requires_grad_(False)
    one = torch.linspace(-1, 1, WIDTH)
    states, function = model.get_input_embeddings()(IDS), of_states(model)
    message = "strength 50000 makes the states not finite from layer 2 on"
    steering = es.attach(model, es.SteeringVectors({1: one, 2: one}), strength=5e4, mode=mode)
    with steering, pytest.raises(RuntimeError, match=message):
        torch.func.vmap(lambda given: function(given.unsqueeze(0))[0])(states)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_native_operation_itself_is_followed(operation):
    hidden, tangent = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    rows, strengths = torch.ones(1, 1, dtype=torch.int32), torch.full((1, 1), 0.5)
    table = torch.cat([torch.zeros(1, 8), torch.randn(1, 8)])

    def steered(backend):
        def function(states):
            return es.ops.steer(
                states.clone(), table, rows, strengths, operation=operation, backend=backend
            )

        return torch.func.jvp(function, (hidden,), (tangent,))

    for found, expected in zip(steered("native"), steered("reference")):
        torch.testing.assert_close(found, expected)


def test_a_vector_that_requires_gradients_is_refused_with_the_way_out():
    learned = nn.Parameter(torch.randn(WIDTH))
    with pytest.raises(ValueError, match=r"layers \[1\] require gradients.*vector.detach\(\)"):
        es.SteeringVectors({1: learned, 2: torch.randn(WIDTH)})
    given = es.SteeringVectors({1: learned.detach()})
    assert given.layers == (1,)
    given.vectors[1].requires_grad_()
    with pytest.raises(ValueError, match=r"layers \[1\] require gradients"):
        es.attach(llama(), given)
