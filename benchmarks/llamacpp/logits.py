"""Logits of llama.cpp, with and without a control vector; runs where llama-cpp-python is installed.

    python logits.py MODEL.gguf OUT.npz TOKENS [VECTOR.gguf ...]

OUT holds ``plain [tokens, vocabulary]`` and one such array per vector, ``steered.0`` and on.
"""

import ctypes
import sys

import gguf
import llama_cpp
import numpy as np


def control_vector(path: str) -> np.ndarray:
    """The buffer that llama.cpp's own loader fills: ``direction.1`` first, gaps of zeros."""
    found = {int(t.name.split(".")[1]): np.array(t.data) for t in gguf.GGUFReader(path).tensors}
    width = len(next(iter(found.values())))
    buffer = np.zeros((max(found), width), np.float32)
    for layer, direction in found.items():
        buffer[layer - 1] += direction
    return buffer


def logits(model, tokens: list[int], vector: np.ndarray | None) -> np.ndarray:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 64
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = 0  # keys and values in single precision
    params.flash_attn_type = 0
    context = llama_cpp.llama_init_from_model(model, params)
    if vector is not None:
        data = vector.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        layers = llama_cpp.llama_model_n_layer(model)
        # The range that llama.cpp's programs set by themselves.
        failed = llama_cpp.llama_set_adapter_cvec(
            context, data, vector.size, vector.shape[1], 1, layers
        )
        if failed:
            raise RuntimeError("llama.cpp refused the control vector")
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
        batch.seq_id[i][0], batch.logits[i] = 0, 1
    if llama_cpp.llama_decode(context, batch):
        raise RuntimeError("llama.cpp could not run the tokens")
    size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    rows = [
        np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, i), (size,)).copy()
        for i in range(len(tokens))
    ]
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    return np.stack(rows)


def main(path: str, out: str, tokens: str, *vectors: str) -> None:
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(path.encode(), params)
    if not model:
        raise RuntimeError(f"llama.cpp could not load {path}")
    ids = [int(token) for token in tokens.split(",")]
    found = {"plain": logits(model, ids, None)}
    for i, vector in enumerate(vectors):
        found[f"steered.{i}"] = logits(model, ids, control_vector(vector))
    np.savez(out, version=np.array(llama_cpp.__version__), **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
