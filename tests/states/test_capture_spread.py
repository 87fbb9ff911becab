"""Capture from models that lie elsewhere: on other devices, on disk, in parts, in fewer bits."""

from __future__ import annotations

import pytest
import torch

from expertsteer.models.loading import load
from expertsteer.states.in_memory import capture
from expertsteer.states.on_disk import capture_to
from helpers.checkpoints import save
from helpers.contrasts import CONTRAST
from helpers.families import build
from helpers.passes import hidden_of
from helpers.tiny_tokenizer import tiny_tokenizer

pytestmark = pytest.mark.transformers


def test_parameters_on_another_device_are_run_where_they_are(model):
    accelerate = pytest.importorskip("accelerate")
    expected = capture(model, tiny_tokenizer(), CONTRAST).states
    accelerate.cpu_offload(model, execution_device="cpu")  # parameters on "meta" between calls
    torch.testing.assert_close(capture(model, tiny_tokenizer(), CONTRAST).states, expected)


@pytest.mark.parametrize("position", ["last", "mean"])
def test_layers_on_disk_and_in_memory_give_the_states_of_one_place(model, tmp_path, position):
    accelerate = pytest.importorskip("accelerate")
    expected = capture(model, tiny_tokenizer(), CONTRAST, position=position).states
    places = {"model.embed_tokens": "disk", "model.layers.0": "cpu", "model.layers.1": "disk"}
    places |= {"model.layers.2": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    model = accelerate.dispatch_model(
        model,
        places | {"lm_head": "disk"},
        main_device="cpu",
        offload_dir=tmp_path,
        force_hooks=True,
    )
    assert {p.device.type for p in model.model.layers[1].parameters()} == {"meta"}
    states = capture(model, tiny_tokenizer(), CONTRAST, position=position).states
    torch.testing.assert_close(states, expected)
    stored = capture_to(tmp_path / "out", model, tiny_tokenizer(), CONTRAST, position=position,
                        progress=False)  # fmt: skip
    torch.testing.assert_close(stored.read().states, expected)


def test_a_model_loaded_onto_all_devices_is_captured(model, tmp_path):
    pytest.importorskip("accelerate")
    save(model, tmp_path)
    spread, tokenizer = load(tmp_path, device="auto")
    states = capture(spread, tokenizer, CONTRAST).states
    expected = capture(model, tiny_tokenizer(), CONTRAST).states
    torch.testing.assert_close(states, expected, rtol=1e-3, atol=1e-4)


def test_layers_that_were_never_loaded_are_named(model):
    model.model.layers[1].to("meta")
    with pytest.raises(ValueError, match="weights of layer 1 were never loaded"):
        capture(model, tiny_tokenizer(), CONTRAST)


@pytest.mark.parametrize("spread_over", ["tokens", "width", "nothing"])
def test_a_distributed_output_is_put_together(model, spread_over):
    distributed = pytest.importorskip("torch.distributed.tensor")
    expected = capture(model, tiny_tokenizer(), CONTRAST).states
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        kinds = {"tokens": distributed.Shard(1), "width": distributed.Shard(2)}
        kind = kinds.get(spread_over, distributed.Replicate())

        def local(module, args, kwargs):
            return (args[0].to_local() if hasattr(args[0], "to_local") else args[0],), kwargs

        def spread(module, args, output):
            states = distributed.DTensor.from_local(hidden_of(output), mesh, [kind])
            return (states, *output[1:]) if isinstance(output, tuple) else states

        for layer in [*model.model.layers, model.model.norm]:
            layer.register_forward_pre_hook(local, with_kwargs=True)
        for layer in model.model.layers:
            layer.register_forward_hook(spread)
        states = capture(model, tiny_tokenizer(), CONTRAST).states
    finally:
        torch.distributed.destroy_process_group()
    assert type(states) is torch.Tensor and torch.equal(states, expected)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_model_gives_nearly_the_states_of_the_whole(tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model = build("llama", width=64)  # a block of four-bit weights
    model.save_pretrained(tmp_path)
    expected = capture(model, tiny_tokenizer(), CONTRAST).states
    options = {"load_in_4bit": bits == 4, "load_in_8bit": bits == 8}
    narrow = ["gate_proj", "up_proj", "down_proj", "lm_head"]  # less than a block
    config = BitsAndBytesConfig(**options, llm_int8_skip_modules=narrow)
    packed = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    assert packed.is_quantized and packed.model.layers[0].self_attn.q_proj.weight.itemsize == 1
    came = capture(packed, tiny_tokenizer(), CONTRAST, dtype=torch.float32)
    assert came.states.shape == expected.shape and came.model["hidden_size"] == 64
    save(packed, tmp_path / "packed")
    again = capture(*load(tmp_path / "packed", device="cpu"), CONTRAST, dtype=torch.float32)
    torch.testing.assert_close(again.states, came.states, rtol=1e-3, atol=1e-3)
    like = torch.nn.functional.cosine_similarity(came.states, expected, dim=-1)
    assert like.min() > (0.8 if bits == 4 else 0.99)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_model_on_several_devices_gives_the_states_of_one(model):
    accelerate = pytest.importorskip("accelerate")
    expected = capture(model, tiny_tokenizer(), CONTRAST).states
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": 0}
    places |= {"model.layers.2": 0, "model.norm": 0, "model.rotary_emb": "cpu", "lm_head": 0}
    model = accelerate.dispatch_model(model, places, main_device=0)
    states = capture(model, tiny_tokenizer(), CONTRAST).states
    assert states.device.type == "cpu"
    torch.testing.assert_close(states, expected, rtol=1e-3, atol=1e-4)
