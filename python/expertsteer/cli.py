"""The command line: the Python calls, with readable errors (exit code 2) instead of tracebacks."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Steer one language model with what another one knows.",
)

Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of every random choice.")]
Json = Annotated[bool, typer.Option("--json", help="Print one json document instead of text.")]


class Positions(str, Enum):
    all = "all"
    prompt = "prompt"
    generated = "generated"
    last = "last"


class Rule(str, Enum):
    lowest = "lowest"
    highest = "highest"
    random = "random"


class Align(str, Enum):
    autoencoder = "autoencoder"
    ridge = "ridge"
    identity = "identity"


class Estimator(str, Enum):
    gaussian = "gaussian"
    ksg = "ksg"
    renyi2 = "renyi2"


class Solver(str, Enum):
    closed_form = "closed_form"
    adam = "adam"


class Rotation(str, Enum):
    procrustes = "procrustes"
    none = "none"


class Direction(str, Enum):
    rfm = "rfm"
    mean_difference = "mean_difference"
    pca = "pca"
    logistic = "logistic"


def main() -> None:
    """Entry point of ``expertsteer``; bad input ends in one line on stderr and exit code 2."""
    try:
        app()
    except (ValueError, OSError) as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False)
        sys.exit(2)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where vectors, figures and pictures go.")] = Path(
        "demo-output"
    ),
    seed: Seed = 0,
    controls: Annotated[
        bool, typer.Option("--controls", help="Every method and control at one price instead.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Steer a small bundled target with a small bundled expert, beside its controls."""
    from .demo.controls import run_controls
    from .demo.run import run_demo

    result = (run_controls if controls else run_demo)(out, seed=seed, quiet=as_json)
    if as_json:
        _print_json(result.to_dict())


@app.command()
def fit(
    expert: Annotated[str, typer.Option(help="Path or Hub id of the model that knows.")],
    target: Annotated[str, typer.Option(help="Path or Hub id of the model to steer.")],
    contrast: Annotated[Path, typer.Option(help="jsonl contrast set.")],
    out: Annotated[Path, typer.Option(help="Folder for the steering vectors.")],
    pairs: Annotated[int | None, typer.Option(help="Layer pairs; by default up to 4.")] = None,
    rule: Annotated[Rule, typer.Option(help="Which pairs, by mutual information.")] = Rule.lowest,
    align: Annotated[Align, typer.Option(help="Alignment method.")] = Align.autoencoder,
    solver: Annotated[Solver, typer.Option(help="Auto-encoder solver.")] = Solver.closed_form,
    rotation: Annotated[Rotation, typer.Option(help="Basis of the code.")] = Rotation.procrustes,
    estimator: Annotated[
        Estimator, typer.Option(help="How mutual information is estimated.")
    ] = Estimator.gaussian,
    components: Annotated[
        int | None, typer.Option(help="Principal components for the information.")
    ] = None,
    null: Annotated[int, typer.Option(help="Permutations for the floor; 0 for none.")] = 20,
    direction: Annotated[
        Direction, typer.Option(help="How directions are fitted.")
    ] = Direction.rfm,
    bandwidth: Annotated[float, typer.Option(help="RFM bandwidth, x median distance.")] = 3.0,
    reg: Annotated[float, typer.Option(help="RFM ridge.")] = 0.1,
    iters: Annotated[int, typer.Option(help="RFM iterations.")] = 3,
    validation: Annotated[float, typer.Option(help="Share held out by the RFM.")] = 0.2,
    position: Annotated[str, typer.Option(help="last, mean, or a token index.")] = "last",
    batch_size: Annotated[int, typer.Option(help="Examples per forward pass.")] = 16,
    max_length: Annotated[int | None, typer.Option(help="Truncate longer examples.")] = None,
    neutral: Annotated[
        Path | None, typer.Option(help="Neutral texts, one a line: calibrate the strength.")
    ] = None,
    budget: Annotated[
        float, typer.Option(help="With --neutral: KL from unsteered, nats per token.")
    ] = 0.1,
    device: Annotated[str | None, typer.Option(help="For example cuda.")] = None,
    dtype: Annotated[str | None, typer.Option(help="For example bfloat16.")] = None,
    expert_revision: Annotated[str | None, typer.Option(help="Hub branch, tag or commit.")] = None,
    target_revision: Annotated[str | None, typer.Option(help="Hub branch, tag or commit.")] = None,
    expert_layers: Annotated[
        str | None, typer.Option(help="Path of the layer list, if it is not found by itself.")
    ] = None,
    target_layers: Annotated[
        str | None, typer.Option(help="Path of the layer list, if it is not found by itself.")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Fit steering vectors for TARGET from what EXPERT knows, over a contrast set."""
    from .contrast import ContrastSet
    from .pipeline import ExpertSteer
    from .rfm import RFM

    pipeline = ExpertSteer(
        pairs=pairs,
        rule=rule.value,
        method=align.value,
        solver=solver.value,
        rotation=rotation.value,
        estimator=estimator.value,
        components=components,
        null=null or None,
        direction=direction.value,
        rfm=RFM(bandwidth=bandwidth, reg=reg, iters=iters),
        validation=validation,
        position=position if position in ("last", "mean") else _integer("position", position),
        batch_size=batch_size,
        max_length=max_length,
        neutral=None if neutral is None else _lines(neutral),
        budget=budget,
        seed=seed,
        progress=not as_json,
    )
    examples = ContrastSet.from_jsonl(contrast)
    dtype = _torch_dtype(dtype)
    out.mkdir(parents=True, exist_ok=True)  # now, not after the whole fit
    vectors = pipeline.fit(
        expert,
        target,
        examples,
        expert_options={"revision": expert_revision, "decoder_layers": expert_layers},
        target_options={"revision": target_revision, "decoder_layers": target_layers},
        device=device,
        dtype=dtype,
    )
    vectors.save_pretrained(out)
    pipeline.pairing_.save_pretrained(out)
    _show(vectors, out, as_json)


@app.command()
def generate(
    model: Annotated[str, typer.Option(help="Path or Hub id of the model to steer.")],
    vectors: Annotated[str, typer.Option(help="Folder or Hub id of steering vectors.")],
    prompt: Annotated[str, typer.Option(help="Text to continue; - reads standard input.")] = "-",
    strength: Annotated[
        str, typer.Option(help="In median norms of the states, or auto: as calibrated.")
    ] = "0.5",
    positions: Annotated[Positions, typer.Option(help="Which tokens.")] = Positions.all,
    layers: Annotated[str | None, typer.Option(help="Only these, for example 3,5,8.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="How many tokens to add.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 decodes greedily.")] = 0.0,
    seed: Seed = 0,
    revision: Annotated[str | None, typer.Option(help="Hub branch, tag or commit.")] = None,
    decoder_layers: Annotated[
        str | None, typer.Option(help="Path of the layer list, if it is not found by itself.")
    ] = None,
    check_model: Annotated[bool, typer.Option(help="Refuse vectors of another model.")] = True,
    unsteered: Annotated[bool, typer.Option(help="Also without steering, to compare.")] = True,
    device: Annotated[str | None, typer.Option(help="For example cuda.")] = None,
    dtype: Annotated[str | None, typer.Option(help="For example bfloat16.")] = None,
    as_json: Json = False,
) -> None:
    """Continue a prompt with and without steering."""
    from .models import load
    from .vectors import SteeringVectors

    loaded = SteeringVectors.from_pretrained(vectors)
    if layers is not None:
        loaded = loaded.select([_integer("layers", part) for part in layers.split(",")])
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, came {max_new_tokens}")
    if temperature != 0 and not 1e-3 <= temperature <= 1e3:
        raise ValueError(f"temperature must be 0 or lie in 0.001..1000, came {temperature}")
    text = sys.stdin.read().rstrip("\n") if prompt == "-" else prompt
    dtype, amount = _torch_dtype(dtype), _strength(strength, loaded)
    network, tokenizer = load(model, device=device, dtype=dtype, revision=revision)
    sampling: dict[str, Any] = {"do_sample": temperature > 0, "max_new_tokens": max_new_tokens}
    if temperature > 0:
        sampling["temperature"] = temperature
    options = {
        "positions": positions.value,
        "decoder_layers": decoder_layers,
        "check_model": check_model,
    }
    texts = _continue(network, tokenizer, text, loaded, amount, options, sampling, seed)
    if not unsteered:
        texts.pop("unsteered")
    if as_json:
        _print_json({"prompt": text, "strength": amount, "positions": positions.value} | texts)
        return
    console = Console(soft_wrap=True)
    for name, continuation in texts.items():
        console.print(name, style="bold")
        console.print(text + continuation, markup=False, highlight=False)


@app.command()
def inspect(
    folder: Annotated[str, typer.Argument(help="Folder or Hub id of steering vectors.")],
    plot: Annotated[
        Path | None, typer.Option(help="Also draw the layer pairs into this PNG (plot extra).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a folder holds: steering vectors, where they came from, and the layer pairs."""
    from .vectors import SteeringVectors

    pairing = _pairing_in(folder)
    if plot is not None:
        _plot_pairs(pairing, folder, plot)
    if pairing is not None and not as_json:
        from .heat import heat_map_text

        if pairing.matrix is not None:
            Console().print(heat_map_text(pairing), "")
        if not Path(folder, "steering_vectors.json").is_file():
            return
    _show(SteeringVectors.from_pretrained(folder), folder, as_json)


def _pairing_in(folder: str):
    from .pairing import LayerPairing

    if not Path(folder, "layer_pairing.json").is_file():
        return None
    return LayerPairing.from_pretrained(folder)


def _plot_pairs(pairing, folder: str, path: Path) -> None:
    from .report import can_plot, heat_map

    if pairing is None or pairing.matrix is None:
        raise ValueError(f"folder {folder!r} holds no matrix of layer pairs to plot")
    if not can_plot():
        raise ValueError("--plot needs matplotlib: pip install 'expertsteer[plot]'")
    heat_map(path, pairing.matrix, pairing, pairing.expert_axis, pairing.target_axis)


def _continue(network, tokenizer, text, vectors, strength, options, sampling, seed):
    import torch

    from .steer import attach

    inputs = tokenizer(text, return_tensors="pt").to(network.device)
    if inputs["input_ids"].shape[1] == 0:
        raise ValueError("prompt must hold at least one token, came an empty text")
    inputs = {k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask")}
    texts = {}
    with attach(network, vectors, **options) as steering:
        for name, value in (("unsteered", 0.0), ("steered", strength)):
            steering.set(strength=value)
            torch.manual_seed(seed)
            tokens = network.generate(**inputs, **sampling)
            new = tokens[0, inputs["input_ids"].shape[1] :]
            texts[name] = tokenizer.decode(new, skip_special_tokens=True)
    return texts


def _show(vectors, folder: Path | str, as_json: bool) -> None:
    from .summary import describe_vectors, vectors_table

    if as_json:
        _print_json({"folder": str(folder)} | describe_vectors(vectors))
    else:
        Console().print(vectors_table(vectors, str(folder)))


def _print_json(document: dict[str, Any]) -> None:
    from ._files import to_json

    typer.echo(to_json(document))


def _integer(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name} must be whole numbers, came {text!r}") from None


def _strength(text: str, vectors) -> float:
    from ._attaching import resolved_strength

    try:
        value: Any = float(text)
    except ValueError:
        value = text
    return resolved_strength(value, {0: vectors}, "add")


def _lines(path: Path) -> list[str]:
    lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"neutral: {path} holds no text; give one text a line")
    return lines


def _torch_dtype(name: str | None):
    import torch

    if name is None:
        return None
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype must be a torch dtype such as bfloat16 or float32, came {name!r}")
    return dtype


if __name__ == "__main__":
    main()
