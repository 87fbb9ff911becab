"""Whether llama.cpp steers as this package does, by the files that it writes: logits compared.

``make verify-llamacpp``. Builds llama-cpp-python from PyPI in an environment of its own (several
minutes, once), writes a tiny Llama as GGUF, exports vectors for it, and runs both. The bounds are
those of single precision; a vector that lands one block off misses them by a factor of thousands,
which is checked too.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import expertsteer as es
from benchmarks import common
from benchmarks.llamacpp.model import write_llama
from expertsteer.export.checkpoint import export_checkpoint
from expertsteer.export.gguf import export_gguf

BOUND = 1e-4  # of the largest logit
COLUMNS = ("difference", "effect", "one block off")


def environment(folder: Path) -> Path:
    """The Python of an environment with llama-cpp-python, made where it is missing."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    present = subprocess.run([python, "-c", "import llama_cpp, gguf"], capture_output=True)
    if present.returncode:
        print(f"building llama-cpp-python in {folder}, once; this takes several minutes")
        command = [python, "-m", "pip", "install", "--quiet", "numpy", "gguf", "llama-cpp-python"]
        subprocess.run(command, check=True)
    return python


def random_llama() -> torch.nn.Module:
    """Six layers, grouped queries, weights so large that layers differ by more than rounding."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=128,
        initializer_range=0.15,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def drawn(model, layers, seed: int = 1) -> es.SteeringVectors:
    generator = torch.Generator().manual_seed(seed)
    width = model.config.hidden_size
    unit = {i: torch.nn.functional.normalize(torch.randn(width, generator=generator), dim=0)
            for i in layers}  # fmt: skip
    return es.SteeringVectors(unit, {i: 2.0 + i for i in layers})


def ours(model, ids: list[int], vectors=None, strength: float = 1.0) -> np.ndarray:
    tokens = torch.tensor([ids])
    with torch.no_grad():
        if vectors is None:
            return model(tokens).logits[0].numpy()
        with es.attach(model, vectors, strength=strength):
            return model(tokens).logits[0].numpy()


def theirs(python: Path, model: Path, ids: list[int], vectors: list[Path]) -> dict[str, np.ndarray]:
    out = model.with_suffix(".npz")
    arguments = [model, out, ",".join(map(str, ids)), *vectors]
    command = [str(a) for a in (python, Path(__file__).with_name("logits.py"), *arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    with np.load(out, allow_pickle=False) as archive:
        return dict(archive)


def difference(result: np.ndarray, expected: np.ndarray) -> float:
    return float(abs(result - expected).max() / abs(expected).max())


def compare(name: str, model, python: Path, folder: Path, strength: float) -> dict:
    """The figures of one model; written and run as a user would."""
    depth = model.config.num_hidden_layers
    ids = torch.randint(
        3, model.config.vocab_size, (24,), generator=torch.Generator().manual_seed(5)
    )
    ids = ids.tolist()
    write_llama(model, folder / "base.gguf")
    several = drawn(model, (1, depth // 2, depth - 1))
    cases = {"layers " + ", ".join(map(str, several.layers)): several}
    cases |= {f"layer {i}": drawn(model, (i,)) for i in range(1, depth)}
    files = [
        export_gguf(vectors, folder / f"{i}.gguf", strength=strength)
        for i, vectors in enumerate(cases.values())
    ]
    found = theirs(python, folder / "base.gguf", ids, files)
    plain = ours(model, ids)
    rows = [{"case": "unsteered", "difference": difference(found["plain"], plain)}]
    for i, (case, vectors) in enumerate(cases.items()):
        expected = ours(model, ids, vectors, strength)
        row = {"case": case, "difference": difference(found[f"steered.{i}"], expected)}
        row["effect"] = difference(plain, expected)
        if len(vectors.layers) == 1:
            (layer,) = vectors.layers
            off = {
                at: ours(
                    model, ids, es.SteeringVectors({at: vectors.displacement(layer)}), strength
                )
                for at in (layer - 1, layer + 1)
                if at < depth
            }
            row["one block off"] = min(
                difference(found[f"steered.{i}"], other) for other in off.values()
            )
        rows.append(row)
    rows.append(folded(model, python, folder, ids, strength))
    return {
        "model": name,
        "layers": depth,
        "strength": strength,
        "llama_cpp_python": str(found["version"]),
        "rows": rows,
    }


def folded(model, python: Path, folder: Path, ids: list[int], strength: float) -> dict:
    """The way out for layer 0: the stock checkpoint, whose biases llama.cpp runs."""
    vectors = drawn(model, (0, 2))
    model.save_pretrained(folder / "base")
    export_checkpoint(folder / "base", vectors, folder / "steered", strength=strength)
    made = AutoModelForCausalLM.from_pretrained(folder / "steered").eval()
    write_llama(made, folder / "steered.gguf")
    found = theirs(python, folder / "steered.gguf", ids, [])
    expected = ours(model, ids, vectors, strength)
    return {
        "case": "stock checkpoint, layers 0, 2",
        "difference": difference(found["plain"], expected),
        "effect": difference(ours(model, ids), expected),
    }


def markdown(document: dict) -> str:
    lines = [
        "# llama.cpp against this package",
        "",
        "`make verify-llamacpp`",
        "",
        "Largest difference of a logit, as a share of the largest logit. *Effect*: what the "
        "vectors change; *one block off*: the difference, were they added a block earlier or "
        "later.",
    ]
    for part in document["models"]:
        rows = [
            [row["case"], *(f"{row[key]:.1e}" if key in row else "" for key in COLUMNS)]
            for row in part["rows"]
        ]
        lines += ["", f"## {part['model']}, {part['layers']} layers", ""]
        lines.append(common.table(["case", *COLUMNS], rows))
    where = document["where"]
    lines += ["", ", ".join(f"{key} {value}" for key, value in where.items())]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--venv", type=Path, default=common.ROOT / "build" / "llamacpp-venv")
    parser.add_argument("--model", type=Path, action="append", default=[], help="a Llama's folder")
    parser.add_argument("--results", type=Path, help="also write llamacpp.json and .md here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    python = environment(options.venv)
    models = {"random weights": (random_llama(), 1.0)}
    for path in options.model:
        models[path.name] = (AutoModelForCausalLM.from_pretrained(path).float().eval(), 1.0)
    parts = []
    for name, (model, strength) in models.items():
        with tempfile.TemporaryDirectory() as folder:
            parts.append(compare(name, model, python, Path(folder), strength))
    where = common.provenance() | {"llama-cpp-python": parts[0]["llama_cpp_python"]}
    document = {"where": where, "models": parts}
    print(markdown(document))
    if options.results:
        common.write_json(options.results / "llamacpp.json", document)
        (options.results / "llamacpp.md").write_text(markdown(document))
    rows = [row for part in parts for row in part["rows"]]
    bad = [row["case"] for row in rows if not row["difference"] < BOUND]
    bad += [row["case"] for row in rows if not row.get("one block off", 1) > 100 * BOUND]
    print("differs: " + ", ".join(bad) if bad else f"all within {BOUND:g} of the largest logit")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
