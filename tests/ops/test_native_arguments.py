"""The extension takes no pointer that it did not check: every argument of every kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from expertsteer.ops import extension
from expertsteer.ops.steering.native import steer
from expertsteer.ops.steering.reference import inverse_norms
from expertsteer.steering.arming import standing
from expertsteer.steering.extension import QUICK

pytestmark = pytest.mark.skipif(extension.MISSING is not None, reason="the extension is not built")
F32, F64, I32 = torch.float32, torch.float64, torch.int32


def arguments(dtype=F32) -> dict[str, dict]:
    """A call of each kernel that it serves; ``dtype`` of what may have several."""
    wide = F64 if dtype == F64 else F32
    table = torch.randn(4, 6, dtype=wide)
    steer = {
        "hidden": torch.randn(2, 3, 6).to(dtype),
        "table": table,
        "rows": torch.tensor([[1, 2, 3], [0, 3, 1]], dtype=I32),
        "strengths": torch.randn(2, 3, dtype=wide),
        "mask": torch.tensor([[True, False, True], [False, True, True]]),
        "operation": 3,
        "gates": torch.tensor([1, 2], dtype=I32),
        "thresholds": torch.zeros(2, dtype=wide),
        "inverse_norms": inverse_norms(table),
        "threads": 1,
    }
    square = {name: torch.eye(5, dtype=wide) for name in ("gram", "kernel", "weights", "transform")}
    return {
        "steer_cpu": steer,
        "whiten_cpu": {
            "codes": torch.randn(2, 9, 3, dtype=F64),
            "whitened": torch.empty(2, 3, 9),
            "threads": 1,
        },
        "log_determinants_cpu": {
            "product": 0.1 * torch.randn(3 * 4, 2 * 5),
            "nats": torch.empty(2, 3, dtype=F64),
            "smallest": torch.empty(2, 3),
            "threads": 1,
        },
        "max_norm_distances_cpu": {
            "codes": torch.randn(2, 3, 9),
            "out": torch.empty(2, 4, 9),
            "first": 5,
            "threads": 1,
        },
        "ksg_counts_cpu": {
            "x": torch.rand(2, 4, 9),
            "y": torch.rand(3, 4, 9),
            "n_x": torch.empty(2, 3, 4, dtype=I32),
            "n_y": torch.empty(2, 3, 4, dtype=I32),
            "k": 3,
            "variant": 1,
            "threads": 1,
        },
        "median_distance": {"gram": square["gram"], "threads": 1},
        "mirror_lower": {"matrix": square["gram"], "threads": 1},
        "laplace": {
            "gram": square["gram"],
            "bandwidth": 1.0,
            "eps": 1e-9,
            "kernel": square["kernel"],
            "weights": square["weights"],
            "threads": 1,
        },
        "gradient_transform": {
            "weights": square["weights"],
            "alpha": torch.randn(5, dtype=wide),
            "transform": square["transform"],
            "sums": torch.empty(5, dtype=wide),
            "threads": 1,
        },
    }


def wrong(name: str, tensor: Tensor) -> dict[str, object]:
    """What the argument may not be, by what is wrong with it."""
    doubled = torch.stack([tensor, tensor], dim=-1)
    found = {
        "half": tensor.to(torch.bfloat16 if tensor.dtype == torch.float16 else torch.float16),
        "int64": tensor.to(torch.int64),
        "one more dimension": tensor.unsqueeze(-1),
        "one more entry": torch.cat([tensor, tensor[..., :1]], dim=-1),
        "elsewhere": tensor.to("meta"),
        "no tensor": tensor.tolist(),
    }
    if name not in ("hidden", "mask", "gates", "thresholds"):  # these have any strides
        found["gaps"] = doubled[..., 0]
    if name == "hidden":
        found["shared memory"] = tensor[:1].expand(tensor.shape)
        del found["half"]  # a type that states may have
    return found


TENSORS = [
    (kernel, name)
    for kernel, given in (arguments() if extension.MISSING is None else {}).items()
    for name, value in given.items()
    if isinstance(value, Tensor)
]


@pytest.mark.parametrize(("kernel", "name"), TENSORS)
def test_a_tensor_of_another_kind_is_refused_by_name(kernel, name):
    call = getattr(extension._C, kernel)
    given = arguments()[kernel]
    call(**given)
    for what, value in wrong(name, given[name]).items():
        kept = {n: v.clone() for n, v in given.items() if isinstance(v, Tensor)}
        with pytest.raises(ValueError, match=r"must be .*, came ") as error:
            call(**given | {name: value})
        # Where one tensor tells the sizes of the rest, another one is found to differ from it.
        named = str(error.value).split()[0]
        assert named == name or (what not in ("no tensor", "gaps") and named in given), what
        assert all(torch.equal(given[n], v) for n, v in kept.items()), what


@pytest.mark.parametrize(
    ("kernel", "change"),
    [
        ("max_norm_distances_cpu", {"first": 6}),
        ("max_norm_distances_cpu", {"first": -1}),
        ("ksg_counts_cpu", {"k": 0}),
        ("ksg_counts_cpu", {"k": 9}),
        ("ksg_counts_cpu", {"variant": 3}),
        ("steer_cpu", {"operation": 4}),
        ("steer_cpu", {"gates": None}),
        ("steer_cpu", {"inverse_norms": None}),
    ],
)
def test_a_number_that_would_leave_the_tensors_is_refused(kernel, change):
    with pytest.raises(ValueError, match=next(iter(change))):
        getattr(extension._C, kernel)(**arguments()[kernel] | change)


@pytest.fixture
def without_exchange():
    """As with a torch that has no exchange table: tensors are read by their attributes."""
    extension._C.use_tensor_type(int)
    yield
    extension._C.use_tensor_type(Tensor)


def results(dtype) -> dict[str, Tensor]:
    torch.manual_seed(0)
    found = {}
    for kernel, given in arguments(dtype).items():
        getattr(extension._C, kernel)(**given)
        found |= {f"{kernel} {n}": v for n, v in given.items() if isinstance(v, Tensor)}
    return found


@pytest.mark.parametrize("dtype", [F32, F64, torch.float16, torch.bfloat16])
def test_tensors_are_read_alike_by_their_attributes(dtype, request):
    quick = results(dtype)
    request.getfixturevalue("without_exchange")
    slow = results(dtype)
    assert all(torch.equal(slow[name], quick[name]) for name in quick)
    with pytest.raises(ValueError, match="codes must be a contiguous float64 tensor"):
        extension._C.whiten_cpu(**arguments()["whiten_cpu"] | {"codes": torch.zeros(2, 9, 3)})


def test_a_parameter_is_a_tensor_too():
    given = arguments()["steer_cpu"]
    expected = given["hidden"].clone()
    extension._C.steer_cpu(**given | {"hidden": expected})
    table = torch.nn.Parameter(given["table"])
    extension._C.steer_cpu(**given | {"table": table})
    assert torch.equal(given["hidden"], expected)


class _Buffers:
    def __init__(self, **changes):
        given = arguments()["steer_cpu"] | changes
        for name in ("table", "inverse_norms", "rows", "strengths", "gates", "thresholds"):
            setattr(self, name, given[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table": torch.zeros(4, 6, dtype=F64)}, "table must be"),
        ({"rows": torch.zeros(2, 3, dtype=torch.int64)}, "rows must be"),
        ({"strengths": torch.zeros(2, 4)}, "strengths must be"),
        ({"strengths": torch.zeros(3, 3)}, "strengths must be for 1 sequence or for 2"),
        ({"inverse_norms": torch.zeros(5)}, "inverse_norms must be"),
        ({"gates": torch.zeros(3, dtype=I32)}, "gates must be for 1 sequence or for 2"),
        ({"thresholds": None}, "belong together"),
    ],
)
def test_a_slot_is_armed_with_checked_tensors_only(change, message):
    slot = extension._C.Slot(lambda x: x, lambda x: x, extension._C.Passes())
    slot.arm(*standing(_Buffers(), F32, "add"))
    assert slot.armed
    with pytest.raises(ValueError, match=message):
        slot.arm(*standing(_Buffers(**change), F32, "add"))


@pytest.mark.skipif(not QUICK, reason="this torch hands no tensor on without Python: no quick way")
def test_a_slot_holds_the_tensors_that_it_points_into():
    slot = extension._C.Slot(lambda x: x, lambda x: None, passes := extension._C.Passes())
    given = arguments()["steer_cpu"]
    expected = steer(
        given["hidden"].clone(), given["table"], given["rows"], given["strengths"], given["mask"]
    )
    buffers = _Buffers(gates=None, thresholds=None)
    for name in ("table", "rows", "strengths"):
        setattr(buffers, name, given.pop(name).clone())
    slot.arm(*standing(buffers, F32, "add"))
    del buffers
    others = [torch.full((4, 6), float("nan")) for _ in range(64)]  # would take freed memory
    passes.open(True, 2, 3, given.pop("mask"))
    assert torch.equal(slot(given["hidden"]), expected) and len(others) == 64
    passes.close()
    slot.disarm()
    assert not slot.armed
