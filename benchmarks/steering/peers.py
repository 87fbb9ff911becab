"""Other tools that steer, each in an environment of its own, on the same models and vectors.

    python -m benchmarks.steering.peers install [--folder F] [--only NAME ...]
    python -m benchmarks.steering.peers run NAME [--folder F]     # what it measures, as JSON

Their pins clash with one another, so each gets a virtual environment outside the repository, with
the torch of this project. A worker checks its tool against a plain hook before it is timed, beside
the unsteered model and that hook, in rounds, in the same process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks import timing
from benchmarks.steering import cases
from benchmarks.steering.gates_peers import PEER

TORCH = "torch==2.13.0"
PEERS = ("repeng", "steering-vectors", "nnsight", "pyvene")
FOLDER = Path(os.environ.get("EXPERTSTEER_PEERS", Path(tempfile.gettempdir()) / "steering-peers"))


@contextmanager
def repeng(model, deltas):
    from repeng import ControlModel, ControlVector

    control = ControlModel(model, list(deltas))
    directions = {i: delta.numpy() for i, delta in deltas.items()}
    control.set_control(ControlVector(model.config.model_type, directions))
    yield control.generate


@contextmanager
def steering_vectors(model, deltas):
    from steering_vectors import SteeringVector

    with SteeringVector(deltas).apply(model):
        yield model.generate


@contextmanager
def nnsight(model, deltas):
    from nnsight.modeling.transformers import TransformersModel
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {str(i): i for i in range(model.config.vocab_size)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words)), pad_token="0")
    wrapped = TransformersModel(model, task="text-generation", tokenizer=tokenizer)

    def generate(ids, **settings):
        with wrapped.generate(ids, **settings) as tracer:
            for _ in tracer.iter[: settings["max_new_tokens"]]:
                for i, delta in deltas.items():
                    layer = wrapped.model.layers[i]
                    layer.output = layer.output + delta
            result = tracer.result.save()
        return result

    yield generate


@contextmanager
def pyvene(model, deltas):
    import pyvene as tool

    config = tool.IntervenableConfig(
        [
            {
                "layer": i,
                "component": "block_output",
                "intervention_type": tool.AdditionIntervention,
                "source_representation": delta,
            }
            for i, delta in deltas.items()
        ]
    )
    wrapped = tool.IntervenableModel(config, model=model)

    def generate(ids, attention_mask, **settings):
        base = {"input_ids": ids, "attention_mask": attention_mask}
        return wrapped.generate(base, unit_locations=None, intervene_on_prompt=True, **settings)[1]

    yield generate


def measure(name, widths, batches, budget):
    """One row per case: paired ratios to the unsteered model, or the reason why not."""
    rows = []
    tool = globals()[name.replace("-", "_")]
    for width in widths:
        for batch in batches:
            for layers in ("1", "all 16"):
                case = {"tool": name, "hidden": width, "batch": batch, "layers": layers}
                try:
                    rows.append(case | row(tool, width, batch, layers, budget))
                except Exception as error:  # a peer that fails is a row of the table
                    reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                    rows.append(case | {"failed": reason})
    return rows


def row(tool, width, batch, layers, budget):
    new = cases.NEW_TOKENS[width, batch]
    steered = len(cases.LAYERS[layers])
    size = {"width": width, "batch": batch, "layers": layers, "new": new}
    with PEER.checked(tool=tool, **size) as case:
        taken = timing.interleave(case.works, budget)
    base = taken["unsteered"]
    return {
        "error": case.errors["peer"],
        "unsteered_tokens_per_s": batch * new / timing.middle(base)["median"],
        "hook_ratio": timing.ratio(taken["python hook"], base),
        "ratio": timing.ratio(taken["peer"], base),
        "added_us": timing.added(taken["peer"], base, new * steered),
        "layers_and_steps": new * cases.DEPTH,
    }


def install(names, folder):
    """A virtual environment per peer; the log of a failure stays beside it."""
    for name in names:
        place, log = folder / name, folder / f"{name}.log"
        folder.mkdir(parents=True, exist_ok=True)
        with log.open("w") as file:
            for command in (
                [sys.executable, "-m", "venv", str(place)],
                [str(place / "bin" / "pip"), "install", TORCH, name],
            ):
                done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT)
                if done.returncode:
                    break
        print(f"{name}: {'installed' if done.returncode == 0 else f'failed, see {log}'}")


def run(name, folder=FOLDER, threads=1, budget=3.0, widths=(256, 1024), timeout=600):
    """The rows of one peer's worker; one row with the reason where it cannot run."""
    python = folder / name / "bin" / "python"
    if not python.exists():
        return {"tool": name, "failed": "not installed"}
    command = [str(python), "-m", "benchmarks.steering.peers", "work", name]
    command += ["--threads", str(threads)]
    command += ["--widths", *map(str, widths)]
    try:
        done = subprocess.run(
            [*command, "--budget", str(budget)],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=Path(__file__).parents[2],
        )
    except subprocess.TimeoutExpired:
        return {"tool": name, "failed": f"did not end within {timeout} s"}
    if done.returncode:
        return {"tool": name, "failed": (done.stderr.strip() or "no message").splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def work(given):
    """Runs in the peer's environment; the last line printed is the result."""
    torch.set_num_threads(given.threads)
    found = measure(given.name, given.widths, cases.BATCHES, given.budget)
    versions = {p: version(p) for p in (given.name, "torch", "transformers")}
    print(json.dumps({"tool": given.name, "versions": versions, "rows": found}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("install", "run", "work"))
    parser.add_argument("name", nargs="?", choices=PEERS)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--only", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", type=float, default=3.0)
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 1024])
    given = parser.parse_args()
    if given.what == "install":
        install(given.only, given.folder)
    elif given.what == "work":
        work(given)
    else:
        print(json.dumps(run(given.name, given.folder, given.threads, given.budget), indent=1))


if __name__ == "__main__":
    main()
