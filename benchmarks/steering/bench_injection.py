"""What injection adds to a layer call, a decoding step and a whole decode, tool beside tool.

    python -m pytest benchmarks/steering/bench_injection.py --benchmark-only     # each part
    python -m benchmarks.steering.table                                # the committed tables

Each benchmark first compares its output with that of a plain hook and reports no speed when they
differ. The tables pair the tools within rounds; here each one runs alone.
"""

from contextlib import ExitStack

import pytest
import torch

from benchmarks.steering import cases
from expertsteer.steering.decoder_slot import OpenPass

SIZES = [(width, batch) for width in cases.WIDTHS for batch in cases.BATCHES]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("tool", ["unsteered", "python hook", "slot"])
def bench_layer_call(benchmark, tool, width=256):
    """A layer that returns its input, inside an open pass with a mask."""
    deltas = cases.displacements(width, cases.LAYERS["all 16"])
    model, hidden = cases.hollow(width), torch.zeros(1, 1, width)
    with ExitStack() as stack:
        steering = stack.enter_context(cases.steered(tool, model, deltas))
        if tool == "slot":
            stack.callback(OpenPass(steering, torch.ones(1, 1).bool(), (1, 1)).close)
        layer = model.model.layers[8]
        if not torch.equal(layer(hidden.clone()), deltas[8] * (tool != "unsteered") + hidden):
            pytest.fail("the layer's output is not the steered one; no speed is reported")
        benchmark.group = f"one call of an empty layer, hidden {width}"
        benchmark.pedantic(layer, args=(hidden,), rounds=100, iterations=500, warmup_rounds=5)


@pytest.mark.parametrize("layers", cases.LAYERS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("tool", cases.OWN_TOOLS)
def bench_decoding_step(benchmark, tool, size, layers):
    """One step of the prompt's last token, without a cache."""
    width, batch = size
    deltas = cases.displacements(width, cases.LAYERS[layers])
    model, ids = cases.llama(width), cases.prompt(batch)[:, -1:]
    with cases.hooks(model, deltas if tool != "unsteered" else {}):
        expected = cases.logits(model, ids)
    with cases.steered(tool, model, deltas):
        if cases.difference(cases.logits(model, ids), expected) > cases.TOLERANCE:
            pytest.fail("the logits differ from a plain hook's; no speed is reported")
        benchmark.group = f"one step, hidden {width}, batch {batch}, {layers} layers"
        benchmark.pedantic(cases.logits, args=(model, ids), rounds=10, iterations=2)


@pytest.mark.parametrize("tool", cases.OWN_TOOLS)
def bench_decode(benchmark, tool, width=256, batch=1, new=64):
    deltas = cases.displacements(width, cases.LAYERS["all 16"])
    model, ids = cases.llama(width), cases.prompt(batch)
    with cases.hooks(model, deltas if tool != "unsteered" else {}):
        expected = cases.decode(model, ids, new)
    with cases.steered(tool, model, deltas):
        if not torch.equal(cases.decode(model, ids, new), expected):
            pytest.fail("the tokens differ from a plain hook's; no speed is reported")
        benchmark.group = f"{new} tokens, hidden {width}, batch {batch}, all 16 layers"
        benchmark.pedantic(cases.decode, args=(model, ids, new), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("bias", [False, True], ids=["without bias", "with bias"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def bench_last_linear(benchmark, size, bias):
    """torch's own linear at the end of a block: no folded vector can cost less than its bias."""
    width, batch = size
    mlp = cases.llama(width).model.layers[0].mlp
    inputs, weight = torch.randn(batch, 1, mlp.down_proj.in_features), mlp.down_proj.weight
    zeros = torch.zeros(width) if bias else None
    plain = torch.nn.functional.linear(inputs, weight)
    if not torch.allclose(torch.nn.functional.linear(inputs, weight, zeros), plain, atol=1e-5):
        pytest.fail("a zero bias changes the product; no speed is reported")
    benchmark.group = f"last linear of a block, hidden {width}, batch {batch}"
    iterations = 500 if width * batch <= 1024 else 20
    call = torch.nn.functional.linear
    benchmark.pedantic(
        call, args=(inputs, weight, zeros), rounds=60, iterations=iterations, warmup_rounds=5
    )
