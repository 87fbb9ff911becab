"""Steering vectors for programs that do not know this package, one module per format.

| module | writes | reads |
|---|---|---|
| `export.checkpoint` | a checkpoint that plain transformers loads (vLLM, SGLang, TGI) | |
| `export.gguf` | a control vector for llama.cpp, or for repeng | the same, ours and repeng's |
| `export.repeng` | an object like repeng's ``ControlVector`` | the same |
| `export.npz` | a plain NumPy archive | the same |
| `export.sglang` | forward hooks for SGLang | |
| `export.lm_eval` | a file of steering vectors for lm-eval's ``steered`` models | |

Every one reads back what it wrote and compares. What a format cannot hold is refused with the
reason and the way out. ``python -m expertsteer.export.families`` lists the model families that
have a stock checkpoint.
"""
