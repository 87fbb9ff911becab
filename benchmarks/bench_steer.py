"""What steering costs: the addition itself, and a whole decoding step of a small model.

    python -m pytest benchmarks/bench_steer.py --benchmark-only

Each benchmark first checks its result against the reference and reports no speed when that fails.
"""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import expertsteer as es
from expertsteer import ops
from expertsteer.ops import native, reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def require(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 2048), (8, 128, 2048)], ids=str)
@pytest.mark.parametrize("backend", ["reference", "native"])
def bench_steer_add(benchmark, backend, shape, dtype, device):
    require(device)
    reason = native.why_not(torch.device(device), dtype) if backend == "native" else None
    if reason:
        pytest.skip(reason)
    hidden = torch.randn(shape).to(device, dtype)
    delta = torch.randn(shape[2], device=device)
    expected = reference.steer_add(hidden, delta)
    if not torch.equal(ops.steer_add(hidden.clone(), delta, backend=backend), expected):
        pytest.fail("the result differs from the reference; no speed is reported")
    benchmark.group = f"steer_add {shape} {dtype} {device}"
    add = ops.choose("steer_add", backend, hidden.device, dtype)

    def call():
        add(hidden, delta)
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(call, rounds=50, iterations=20, warmup_rounds=5)


def tiny_llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    return LlamaForCausalLM(config).eval()


def hooked(model, vectors):
    """What people write by hand: a Python forward hook that adds out of place."""

    def hook(layer):
        delta = vectors.displacement(layer)
        return lambda module, inputs, output: output + delta

    for layer in vectors.layers:
        model.model.layers[layer].register_forward_hook(hook(layer))
    return model


@pytest.mark.parametrize("layers", [1, 8], ids=lambda n: f"{n} layers")
@pytest.mark.parametrize("how", ["unsteered", "python hook", "expertsteer"])
def bench_decoding_step(benchmark, how, layers):
    model = tiny_llama()
    vectors = es.SteeringVectors({i: torch.randn(256) for i in range(layers)})
    tokens = torch.randint(0, 128, (1, 1))
    expected = hooked(copy.deepcopy(model), vectors)(tokens, use_cache=False).logits
    benchmark.group = f"one decoding step, width 256, 8 blocks, {layers} steered"
    if how == "python hook":
        model = hooked(model, vectors)
    elif how == "expertsteer":
        es.attach(model, vectors)
    with torch.inference_mode():
        logits = model(tokens, use_cache=False).logits
        if how != "unsteered" and not torch.allclose(logits, expected, atol=1e-5):
            pytest.fail("the logits differ from the hooked model's; no speed is reported")
        benchmark.pedantic(
            lambda: model(tokens, use_cache=False), rounds=30, iterations=5, warmup_rounds=3
        )
