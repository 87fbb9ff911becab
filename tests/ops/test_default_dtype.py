"""What `torch.set_default_dtype` and `torch.set_default_device` say is for the user's own tensors.

People set them to load models. Nothing that is measured, fitted or steered here may follow them.
"""

from __future__ import annotations

import ast
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import expertsteer as es
from expertsteer import ops
from expertsteer.ops import extension
from expertsteer.support.tensors import as_tensor
from helpers.steered_models import llama, tokens, vectors

PACKAGE = Path(es.__file__).parent
# Functions of torch that follow the defaults where neither type nor device is named. The result of
# the second group has a type of its own.
BOTH = {"empty", "zeros", "ones", "full", "eye", "rand", "randn", "linspace", "logspace", "tensor"}
DEVICE = {"arange", "randint", "randperm", "tril_indices", "triu_indices", "as_tensor", "asarray"}


def unnamed(path: Path) -> list[str]:
    """Allocations of a file that leave their type or device to what is set elsewhere."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if not isinstance(node.func.value, ast.Name) or node.func.value.id != "torch":
            continue
        name = node.func.attr
        wanted = {"dtype"} if name in BOTH else set()
        wanted |= {"device"} if name in BOTH | DEVICE else set()
        missing = wanted - {keyword.arg for keyword in node.keywords}
        if missing:
            place = f"{path.relative_to(PACKAGE)}:{node.lineno}"
            found.append(f"{place}: torch.{name} without {', '.join(sorted(missing))}")
    return found


def test_every_allocation_names_its_type_and_device():
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 100
    assert [line for path in files for line in unnamed(path)] == []


@pytest.fixture(scope="module")
def given():
    """Inputs and a model, made while nothing is set."""
    generator = torch.Generator().manual_seed(0)
    cause = torch.randn(96, 4, generator=generator)
    sides = []
    for layers, width in ((3, 24), (2, 20)):
        mixing = torch.randn(layers, 4, width, generator=generator)
        states = cause @ mixing + 0.3 * torch.randn(layers, 96, width, generator=generator)
        labels = (cause[:, 0] > 0).long()
        sides.append(es.HiddenStates(states, labels, keys=torch.arange(96)))
    return {"expert": sides[0], "target": sides[1], "model": llama(), "ids": tokens()}


def measured(given) -> dict[str, Tensor]:
    """One result of every operation that feeds a kernel, and of every step built on them."""
    x, y = given["expert"], given["target"]
    found = {}
    for backend in ops.backends_of("gaussian_information"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mi = es.mutual_information(x, y, backend=backend, components=3, null=3, bootstrap=20)
        found |= {f"gaussian {backend} {n}": getattr(mi, n) for n in ("nats", "floor", "low")}
    for backend in ("native", "reference"):
        found[f"ksg {backend}"] = es.mutual_information(x, y, "ksg", backend=backend)
    found["renyi2"] = es.mutual_information(x, y, "renyi2")
    few = [side.take(range(40)) for side in (x, y)]
    with pytest.warns(UserWarning, match="too few for an unbiased"):
        found["shrunk"] = es.mutual_information(*few, components=16)
    for rule in ("lowest", "random"):
        chosen = es.pair_layers(mi, 2, rule)
        found[f"pairs {rule}"] = torch.tensor([p[:2] for p in chosen], device="cpu")
    for method, options in (
        ("autoencoder", {}),
        ("autoencoder", {"solver": "adam", "steps": 5}),
        ("ridge", {}),
    ):
        alignment = es.align(x, y, method, **options)
        found[f"align {method} {options}"] = alignment.encode(x.states)
    for method in ("rfm", "mean_difference", "pca", "logistic"):
        fitted = es.fit_vectors(x, y, alignment, chosen, method)
        found |= {f"vector {method} {i}": v for i, v in fitted.vectors.items()}
    return found | machines(x) | steered(given)


def machines(x: es.HiddenStates) -> dict[str, Tensor]:
    points, one = x.states[0], x.labels.float()
    several = torch.stack([one, 1 - one, points[:, 0]], dim=1)
    cases = {
        "gram": ({"regime": "gram"}, one),
        "gram max": ({"regime": "gram", "normalize": "max", "bandwidth_mode": "constant"}, one),
        "gram reference": ({"regime": "gram", "backend": "reference"}, one),
        "gram several": ({"regime": "gram", "center_grads": True}, several),
        "feature": ({"regime": "feature"}, one),
        "streamed": ({"regime": "streamed"}, one),
    }
    found = {}
    for name, (settings, y) in cases.items():
        machine = es.RFM(**settings).fit(points[:64], y[:64], points[64:], y[64:])
        found[f"direction {name}"] = machine.direction_
        found[f"outputs {name}"] = machine.predict(points[64:])
    batch = es.RFM().fit(x.states, one, sizes=torch.full((3,), 80, dtype=torch.int64, device="cpu"))
    return found | {"direction padded": batch.direction_}


def steered(given) -> dict[str, Tensor]:
    hidden = given["target"].states[:, :12, :16].contiguous()
    table = given["expert"].states[0, :3, :16].contiguous()
    rows = torch.tensor([[1, 2]], dtype=torch.int32, device="cpu")
    strengths = torch.tensor([[0.5, -1.0]], dtype=torch.float32, device="cpu")
    return {
        f"steer {operation} {backend}": ops.steer(
            hidden.clone(), table, rows, strengths, operation=operation, backend=backend
        )
        for operation in ops.STEER_OPERATIONS
        for backend in ("native", "reference")
    }


@pytest.fixture(scope="module")
def ordinary(given):
    return measured(given)


@pytest.fixture(params=["float64", "bfloat16", "float16"])
def default_dtype(request):
    was = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, request.param))
    yield
    torch.set_default_dtype(was)


@pytest.fixture
def default_device():
    """Tensors there hold nothing, so that whatever follows the default cannot be computed."""
    with torch.device("meta"):  # what set_default_device enters; old releases cannot take it back
        yield


def same(found: dict[str, Tensor], ordinary: dict[str, Tensor]) -> None:
    assert found.keys() == ordinary.keys()
    for name, value in found.items():
        assert value.dtype == ordinary[name].dtype and value.device.type == "cpu", name
        assert torch.equal(value, ordinary[name]), name


@pytest.mark.skipif(extension.MISSING is not None, reason="the extension is not built")
class TestTheDefaults:
    def test_of_the_type_change_no_result(self, ordinary, given, default_dtype):
        same(measured(given), ordinary)

    def test_of_the_device_change_no_result(self, ordinary, given, default_device):
        weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.float32, device="cpu"))
        weight.grad = torch.ones_like(weight)
        try:
            torch.optim.Adam([weight]).step()
        except RuntimeError as reason:
            pytest.skip(f"torch's own optimiser follows it in this release: {reason}")
        same(measured(given), ordinary)


def test_a_live_model_is_steered_alike_whatever_type_is_default(given, default_dtype):
    model, ids, added = given["model"], given["ids"], vectors()
    chosen, results = torch.get_default_dtype(), []
    for default in (torch.float32, chosen):
        torch.set_default_dtype(default)
        with es.attach(model, added) as steering, torch.no_grad():
            results.append(model(ids).logits)
            steering.set(positions="last", strength=0.5)
            results.append(model(ids).logits)
    assert not torch.equal(results[0], results[1])
    assert all(torch.equal(results[i], results[i + 2]) for i in (0, 1))


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0, 1], torch.int64),
        ([True, False], torch.bool),
        ([0.1, 0.2], torch.float32),
        (np.array([0.1, 0.2]), torch.float64),
        (np.array([0.1, 0.2], np.float16), torch.float16),
    ],
    ids=repr,
)
def test_values_become_tensors_of_their_own_type(values, dtype, default_dtype, default_device):
    made = as_tensor(values)
    assert made.dtype == dtype and made.device.type == "cpu"
    assert made.tolist() == pytest.approx(list(values), abs=1e-7)


def test_a_tensor_stays_where_it_is(default_device):
    kept = torch.zeros(2, dtype=torch.float64, device="cpu")
    assert as_tensor(kept) is kept
