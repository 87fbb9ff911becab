"""`ops.steer`: every backend is the definition, token by token, to the rounding of its type."""

import pytest
import torch
from torch import Tensor

from expertsteer import ops
from expertsteer.ops import extension
from expertsteer.ops.steering.reference import displacements

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# Odd widths, one that is a whole number of 16-byte accesses, and one too wide for shared memory.
SHAPES = [(1, 1, 1), (2, 3, 17), (3, 1, 63), (3, 4, 257), (2, 3, 1024), (2, 2, 12304)]
OPERATIONS = ops.STEER_OPERATIONS


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture(params=["reference", "native"])
def backend(request, device):
    reason = extension.why_not(device, torch.float32) if request.param == "native" else None
    if reason and device.type == "cuda":
        pytest.skip(reason)
    return request.param


def by_hand(
    hidden: Tensor,
    table: Tensor,
    rows: Tensor,
    strengths: Tensor,
    mask: Tensor | None = None,
    *,
    operation: str = "add",
    gates: Tensor | None = None,
    thresholds: Tensor | None = None,
) -> Tensor:
    """The definition in double precision, one token and one vector at a time."""
    batch, tokens, _ = hidden.shape
    table, out = table.double(), hidden.double().clone()
    for b in range(batch):
        own = b if rows.shape[0] > 1 else 0
        amounts = strengths[b if strengths.shape[0] > 1 else 0].double()
        vectors = [(table[r], a) for r, a in zip(rows[own].tolist(), amounts) if r != 0]
        for t in range(tokens):
            h = out[b, t].clone()
            if mask is not None and not mask[b, t]:
                continue
            if gates is not None:
                at = b if gates.shape[0] > 1 else 0
                limit = thresholds[b if thresholds.shape[0] > 1 else 0].double()
                gate = table[int(gates[at])]
                if int(gates[at]) != 0 and not h @ gate / gate.norm() > limit:
                    continue
            norm = h.norm()
            for vector, amount in vectors:
                unit = vector / vector.norm()
                if operation in ("add", "add_keep_norm"):
                    h = h + amount * vector
                elif operation == "remove":
                    h = h - amount * (h @ unit) * unit
                else:
                    h = h + (amount - h @ unit) * unit
            if operation == "add_keep_norm" and h.norm() > 0:
                h = h * (norm / h.norm())
            out[b, t] = h
    return out


def case(shape, dtype, device="cpu", vectors=1, table_rows=5, shared=False):
    """Arguments of a call, all drawn at random; ``shared``: one entry for all sequences."""
    batch, tokens, width = shape
    entries = 1 if shared else batch
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    table = torch.randn(table_rows, width, dtype=torch.float64)
    table[0] = 0
    arguments = {
        "hidden": (3 * torch.randn(shape, dtype=torch.float64)).to(dtype),
        "table": table.to(wide),
        "rows": torch.randint(0, table_rows, (entries, vectors), dtype=torch.int32),
        "strengths": torch.randn(entries, vectors, dtype=torch.float64).to(wide),
        "mask": torch.rand(batch, tokens) < 0.6,
        "gates": torch.randint(0, table_rows, (entries,), dtype=torch.int32),
        "thresholds": torch.randn(entries, dtype=torch.float64).to(wide),
    }
    arguments["rows"][0, 0] = table_rows - 1  # at least one sequence is steered
    return {name: tensor.to(device) for name, tensor in arguments.items()}


def without(arguments, *names):
    return {name: value for name, value in arguments.items() if name not in names}


def assert_close(got, expected, wide):
    """Equal to one rounding of the result's type and a few of the row's norm in ``wide``."""
    scale = expected.norm(dim=-1, keepdim=True).expand_as(expected).clamp(min=1.0)
    room = 0.51 * torch.finfo(got.dtype).eps * expected.abs() + 16 * torch.finfo(wide).eps * scale
    room = room + (2.0**-25 if got.dtype == torch.float16 else 0)  # half a subnormal
    wrong = (got.double() - expected).abs() > room
    assert not bool(wrong.any()), f"{int(wrong.sum())} elements, {got[wrong][:3]}"


@pytest.mark.parametrize("conditions", ["none", "mask", "gates", "mask and gates"])
@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_backend_is_the_definition(
    backend, device, operation, dtype, shape, vectors, conditions
):
    arguments = case(shape, dtype, device, vectors)
    if "mask" not in conditions:
        arguments = without(arguments, "mask")
    if "gates" not in conditions:
        arguments = without(arguments, "gates", "thresholds")
    expected = by_hand(**arguments, operation=operation)
    hidden = arguments["hidden"].clone()
    out = ops.steer(**arguments | {"hidden": hidden}, operation=operation, backend=backend)
    assert out.dtype == dtype and out.shape == hidden.shape
    assert_close(out, expected, arguments["table"].dtype)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_entry_serves_all_sequences(backend, device, operation, dtype):
    arguments = case((4, 3, 33), dtype, device, vectors=3, shared=True)
    each = {
        name: arguments[name].expand(4, *arguments[name].shape[1:])
        for name in ("rows", "strengths", "gates", "thresholds")
    }
    hidden = arguments["hidden"]
    outs = [
        ops.steer(**a | {"hidden": hidden.clone()}, operation=operation, backend=backend)
        for a in (arguments, arguments | each, arguments | {"rows": each["rows"]})
    ]
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])
    assert not torch.equal(outs[0], hidden)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides_are_served(backend, device, operation, dtype):
    whole = case((4, 6, 48), dtype, device, vectors=2)
    whole["table"] = whole["table"][:, :20].contiguous()
    hidden, mask = whole["hidden"], whole["mask"]
    views = {
        "columns": (hidden[:, :, :20], mask),
        "rows": (hidden[::2, 1::2, 25:45], mask[::2, 1::2]),
        "sequences and tokens swapped": (hidden[:, :, :20].transpose(0, 1), mask.T),
        "every other element": (hidden[:, :, 1:41:2], mask),
        "tokens and elements swapped": (hidden.flatten()[:480].view(4, 20, 6).mT, mask),
        "one sequence expanded": (hidden[:1, :, :20].expand(4, 6, 20), mask),
    }
    kept = hidden.clone()
    for name, (view, chosen) in views.items():
        shared = {k: whole[k][:1] for k in ("rows", "strengths", "gates", "thresholds")}
        arguments = whole | shared | {"mask": chosen}
        outside = arguments | {"hidden": view.clone(memory_format=torch.contiguous_format)}
        expected = by_hand(**outside, operation=operation)
        out = ops.steer(**arguments | {"hidden": view}, operation=operation, backend=backend)
        assert_close(out, expected, whole["table"].dtype)
        in_place = out.data_ptr() == view.data_ptr()
        assert in_place == (backend == "native" and "expanded" not in name), name
        hidden.copy_(kept)


def test_strided_writes_stay_within_the_view():
    arguments = case((2, 3, 34), torch.float32)
    arguments["table"] = arguments["table"][:, :17].contiguous()
    hidden = arguments["hidden"]
    between = hidden[:, :, 1::2].clone()
    ops.steer(**arguments | {"hidden": hidden[:, :, ::2]}, operation="remove", backend="native")
    assert torch.equal(hidden[:, :, 1::2], between)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("vectors", [1, 2])
@pytest.mark.parametrize("shape", SHAPES[:-1], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_add_is_the_wide_sum_rounded_once(backend, device, dtype, shape, vectors, masked):
    arguments = without(case(shape, dtype, device, vectors), "gates", "thresholds")
    hidden, table, strengths, mask = (
        arguments[name] for name in ("hidden", "table", "strengths", "mask")
    )
    arguments["rows"] = torch.randint_like(arguments["rows"], 1, 5)
    delta = strengths[:, 0, None] * table[arguments["rows"][:, 0].long()]
    if vectors == 2:
        delta = delta + strengths[:, 1, None] * table[arguments["rows"][:, 1].long()]
    expected = (hidden.to(table.dtype) + delta[:, None]).to(dtype)
    if masked:
        expected = torch.where(mask.unsqueeze(-1), expected, hidden)
    call = arguments | {"hidden": hidden.clone(), "mask": mask if masked else None}
    assert torch.equal(ops.steer(**call, backend=backend), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_precision_value_survives_and_rounds_like_torch(backend, device, dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    hidden = every.reshape(1, 256, 256).to(device)
    table = torch.tensor([0.0, 1.0], device=device).view(2, 1).repeat(1, 256)
    rows = torch.ones(1, 1, dtype=torch.int32, device=device)
    for shift in (2.0**-149, 2.0**-25, 0.1, -3.7, 6e4):
        strengths = torch.full((1, 1), shift, device=device)
        out = ops.steer(hidden.clone(), table, rows, strengths, backend=backend)
        expected = (hidden.float() + shift).to(dtype)
        nan = torch.isnan(expected)
        assert torch.equal(torch.isnan(out), nan)
        assert torch.equal(out[~nan].view(torch.int16), expected[~nan].view(torch.int16))


def test_as_many_distinct_vectors_as_sequences(backend, device):
    arguments = case((256, 1, 40), torch.float32, device, table_rows=257)
    arguments["rows"] = torch.randperm(256).to(torch.int32).view(256, 1).to(device) + 1
    arguments = without(arguments, "mask")
    for operation in OPERATIONS:
        expected = by_hand(**arguments, operation=operation)
        hidden = arguments["hidden"].clone()
        out = ops.steer(**arguments | {"hidden": hidden}, operation=operation, backend=backend)
        assert_close(out, expected, torch.float32)


def test_threads_do_not_change_a_bit(device):
    """Large enough for several threads; one sequence at a time is not."""
    arguments = case((5, 300, 3001), torch.bfloat16, vectors=2)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for operation in ("add", "remove"):
            hidden = arguments["hidden"].clone()
            together = ops.steer(**arguments | {"hidden": hidden}, operation=operation)
            for b in range(5):
                alone = {
                    name: t if name == "table" else t[b : b + 1].clone()
                    for name, t in arguments.items()
                }
                assert torch.equal(ops.steer(**alone, operation=operation)[0], together[b])
    finally:
        torch.set_num_threads(threads)


def components(hidden, vector):
    return hidden.double() @ (vector.double() / vector.double().norm())


def test_removing_twice_is_removing_once(backend, device):
    arguments = without(case((2, 3, 65), torch.float64, device), "mask", "gates", "thresholds")
    arguments["rows"].fill_(2)
    arguments["strengths"].fill_(1)
    once = ops.steer(**arguments, operation="remove", backend=backend).clone()
    twice = ops.steer(**arguments | {"hidden": once.clone()}, operation="remove", backend=backend)
    torch.testing.assert_close(twice, once, atol=1e-14, rtol=0)
    assert float(components(once, arguments["table"][2]).abs().max()) < 1e-14


def test_a_clamped_component_is_the_value_and_the_rest_stays(backend, device):
    arguments = without(case((2, 3, 65), torch.float64, device), "mask", "gates", "thresholds")
    arguments["rows"].fill_(3)
    for value in (-2.5, 0.0):  # zero is a value like any other
        arguments["strengths"].fill_(value)
        hidden = arguments["hidden"].clone()
        out = ops.steer(**arguments | {"hidden": hidden}, operation="clamp", backend=backend)
        along = components(out, arguments["table"][3])
        torch.testing.assert_close(along, torch.full_like(along, value), atol=1e-13, rtol=0)
        unit = arguments["table"][3] / arguments["table"][3].norm()
        for x in (out, arguments["hidden"]):
            x -= components(x, unit).unsqueeze(-1) * unit
        torch.testing.assert_close(out, arguments["hidden"], atol=1e-13, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_keep_norm_keeps_norms_and_leaves_zero_at_zero(backend, device, dtype):
    arguments = without(case((2, 3, 65), dtype, device, 2), "mask", "gates", "thresholds")
    before = arguments["hidden"].double().norm(dim=-1)
    hidden = arguments["hidden"].clone()
    out = ops.steer(**arguments | {"hidden": hidden}, operation="add_keep_norm", backend=backend)
    assert not torch.equal(out, arguments["hidden"])
    torch.testing.assert_close(out.double().norm(dim=-1), before, rtol=1e-6, atol=0)
    # The vector itself, taken away: nothing is left that could be rescaled.
    one = arguments | {"rows": arguments["rows"][:, :1] * 0 + 1}
    one["strengths"] = torch.full_like(arguments["strengths"][:, :1], -1.0)
    one["hidden"] = arguments["table"][1].expand(2, 3, 65).clone()
    out = ops.steer(**one, operation="add_keep_norm", backend=backend)
    assert bool((out == 0).all())


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_steered_keeps_its_bits(backend, device, operation, dtype):
    arguments = case((4, 5, 33), dtype, device, 2)
    hidden = arguments["hidden"]
    hidden[0, 0, 3], hidden[1, 1, 4] = float("nan"), float("inf")
    hidden[:, :, 9] = -0.0
    mask = arguments["mask"]
    shut = torch.full_like(arguments["thresholds"], float("inf"))
    idle = {
        "masked": {"mask": torch.zeros_like(mask)},
        "behind a gate": {"gates": arguments["gates"] * 0 + 1, "thresholds": shut},
        "without a vector": {"rows": torch.zeros_like(arguments["rows"])},
        "half masked": {},
    }
    if operation != "clamp":
        idle["without strength"] = {"strengths": torch.zeros_like(arguments["strengths"])}
    for name, change in idle.items():
        everywhere = {} if name == "half masked" else {"mask": torch.ones_like(mask)}
        call = arguments | everywhere | change | {"hidden": hidden.clone()}
        out = ops.steer(**call, operation=operation, backend=backend)
        kept = ~mask if name == "half masked" else torch.ones_like(mask)
        integers = torch.int16 if dtype.itemsize == 2 else torch.int32
        assert torch.equal(out[kept].view(integers), hidden[kept].view(integers)), name


@pytest.mark.parametrize("operation", OPERATIONS)
def test_unselected_tokens_do_not_reach_the_others(backend, device, operation):
    arguments = without(case((2, 3, 17), torch.float32, device), "gates", "thresholds")
    hidden, mask = arguments["hidden"], arguments["mask"]
    hidden[~mask] = float("nan")
    out = ops.steer(**arguments | {"hidden": hidden.clone()}, operation=operation, backend=backend)
    assert bool(torch.isnan(out[~mask]).all()) and bool(torch.isfinite(out[mask]).all())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_nan_stays_where_it_is(backend, device, operation):
    arguments = without(case((2, 3, 33), torch.float32, device), "mask", "gates", "thresholds")
    arguments["rows"].fill_(1)
    arguments["hidden"][0, 1, 7] = float("nan")
    out = ops.steer(**arguments, operation=operation, backend=backend)
    assert torch.isnan(out).nonzero().tolist() == [[0, 1, 7]]


@pytest.mark.parametrize("operation", ["remove", "clamp"])
def test_zero_vectors_are_skipped(backend, device, operation):
    arguments = without(case((2, 3, 33), torch.float32, device), "mask", "gates", "thresholds")
    arguments["table"][2] = 0
    arguments["rows"].fill_(2)
    arguments["hidden"][1, 2, 3] = -0.0
    bits = arguments["hidden"].clone().view(torch.int32)
    out = ops.steer(**arguments, operation=operation, backend=backend)
    assert torch.equal(out.view(torch.int32), bits)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_given_norms_change_nothing(backend, device, operation):
    arguments = case((2, 3, 33), torch.float32, device, 2)
    given = ops.inverse_norms(arguments["table"])
    outs = [
        ops.steer(
            **arguments | {"hidden": arguments["hidden"].clone()},
            operation=operation,
            inverse_norms=norms,
            backend=backend,
        )
        for norms in (None, given)
    ]
    assert torch.equal(*outs)


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


BAD = {
    "operation": ("subtract", "operation must be one of .*came 'subtract'"),
    "hidden": (torch.zeros(3, 4), r"hidden must be \[batch, tokens, width\]"),
    "table": (torch.zeros(3, 5), r"table must be \[rows, 4\]"),
    "table empty": (torch.zeros(0, 4), "at least row 0"),
    "table double": (torch.zeros(3, 4).double(), "table must be contiguous and torch.float32"),
    "table strided": (torch.zeros(4, 3).T, "table must be contiguous"),
    "rows": (torch.zeros(2, 1), "rows must be .* of torch.int32"),
    "rows long": (torch.zeros(2, 1).long(), "rows must be .* of torch.int32"),
    "rows batch": (torch.zeros(3, 1, dtype=torch.int32), r"rows must be \[2 or 1, vectors\]"),
    "rows none": (torch.zeros(2, 0, dtype=torch.int32), r"rows must be \[2 or 1, vectors\]"),
    "rows high": (torch.tensor([[1], [3]]).int(), r"rows must lie within .* 0..2, came 1..3"),
    "rows low": (torch.tensor([[-1]]).int(), "rows must lie within"),
    "strengths": (torch.zeros(2, 1).half(), "strengths must be .* of torch.float32"),
    "strengths count": (torch.zeros(2, 2), "one number per vector"),
    "mask": (torch.zeros(2, 3), "mask must be bool"),
    "mask shape": (torch.zeros(2, 2, dtype=torch.bool), r"mask must be bool of shape \(2, 3\)"),
    "gates": (None, "gates and thresholds belong together"),
    "gates shape": (torch.zeros(3, dtype=torch.int32), r"gates must be \[2 or 1\]"),
    "gates high": (torch.tensor([9]).int(), "gates must lie within"),
    "thresholds": (torch.zeros(2).double(), "thresholds must be"),
    "inverse_norms": (torch.ones(2), "inverse_norms must be contiguous"),
    "rows elsewhere": (torch.zeros(2, 1, dtype=torch.int32, device="meta"), "rows must be on cpu"),
    "hidden whole": (torch.zeros(2, 3, 4, dtype=torch.int32), "floating-point"),
    "backend": ("fast", "backend must be one of"),
    "backend of others": ("triton", "does not implement steer"),
}


@pytest.mark.parametrize("name", BAD)
def test_malformed_calls_name_the_argument(name):
    value, message = BAD[name]
    arguments = case((2, 3, 4), torch.float32, table_rows=3)
    with pytest.raises(ValueError, match=message):
        ops.steer(**arguments | {name.split()[0]: value})


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


@pytest.mark.parametrize("sequences", [1, 3])
def test_displacements_are_what_an_addition_adds(sequences):
    tables = torch.randn(2, 4, 17, dtype=torch.float64)
    tables[:, 0] = 0
    rows = torch.tensor([[1, 3], [0, 0], [2, 1]], dtype=torch.int32)[:sequences]
    strengths = torch.tensor([[0.5, -2.0], [1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)[:sequences]
    mask = torch.tensor([[1, 0], [1, 1], [1, 1]]).bool()
    hidden = torch.randn(3, 2, 17, dtype=torch.float64)
    hidden[:, :, 0] = -0.0
    added = displacements(tables, rows, strengths, mask)
    for table, own in zip(tables, added):
        expected = ops.steer(hidden, table, rows, strengths, mask, backend="reference")
        torch.testing.assert_close(hidden + own, expected)
        kept = (expected == hidden).all(-1)
        assert kept.sum() >= 1
        assert torch.equal((hidden + own)[kept].view(torch.int64), hidden[kept].view(torch.int64))
