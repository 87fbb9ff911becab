"""What ``expertsteer export`` does for each format, and what it says about it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ..support.numbers import setting

Format = Literal["checkpoint", "gguf", "npz", "sglang", "repeng-gguf", "lm-eval"]


@dataclass(frozen=True)
class Written:
    """What is told about an export: the content, the check it passed, and one line to use it."""

    content: str
    checked: str
    use: str


@dataclass(frozen=True)
class Asked:
    """The options that are about the model."""

    model: str | None
    revision: str | None
    decoder_layers: str | None
    check_model: bool
    trust_remote_code: bool

    def required(self, format: Format) -> str:
        if self.model is None:
            raise ValueError(f"model must be given for {format}: --model PATH_OR_HUB_ID")
        return self.model

    def outline(self, vectors) -> Any:
        """The model on the meta device, from its configuration alone, after a look whether the
        vectors fit; ``None`` where no model was named."""
        if self.model is None:
            return None
        from ..export.source import model_of_config
        from ..models.decoder import find_decoder
        from ..steering.checks import checked_experts

        network = model_of_config(self.model, self.model, self.revision, self.trust_remote_code)
        decoder = find_decoder(network, self.decoder_layers)
        checked_experts(network, vectors, decoder, self.check_model, "add", None)
        return network


def _checkpoint(vectors, out: Path, strength: float, asked: Asked) -> Written:
    from ..export.checkpoint import export_checkpoint

    if asked.trust_remote_code:
        raise ValueError(
            "trust_remote_code has no place in checkpoint: what is written loads in plain "
            "transformers, which runs no repository's code; leave --trust-remote-code out"
        )
    made = export_checkpoint(
        asked.required("checkpoint"),
        vectors,
        out,
        strength=strength,
        revision=asked.revision,
        decoder_layers=asked.decoder_layers,
        check_model=asked.check_model,
    )
    form = "as itself" if made.written_as == made.family else f"as {made.written_as}"
    left = f"; left out {', '.join(made.left_out)}" if made.left_out else ""
    return Written(
        f"{made.base_model} ({made.family}, {form}) at strength {setting(strength)}, "
        f"{len(made.changed)} of {made.tensors} tensors new in {len(made.shards)} file(s){left}",
        "every tensor was read back; all others have the bytes of the source",
        f'AutoModelForCausalLM.from_pretrained("{out}"); a server with its own code for the family '
        "may ignore the biases, so compare one completion",
    )


def _gguf(vectors, out: Path, strength: float, asked: Asked, program: str = "llama.cpp") -> Written:
    from ..export.gguf import export_gguf

    network = asked.outline(vectors)
    hint = network.config.model_type if network is not None else None
    export_gguf(vectors, out, strength=strength, model_hint=hint, program=program)
    if program == "repeng":
        layers = list(vectors.layers)
        use = f'ControlModel(model, {layers}).set_control(ControlVector.import_gguf("{out}"))'
    else:
        use = f"llama-server -m MODEL.gguf --control-vector {shlex.quote(str(out))}"
    return Written(
        f"control vector of {len(vectors.layers)} direction(s), {setting(strength)} x scale x "
        "vector",
        f"read back and compared; {program} adds direction.N after block N, counted from 0",
        use,
    )


def _npz(vectors, out: Path, strength: float, asked: Asked) -> Written:
    from ..export.npz import export_npz

    export_npz(vectors, out)
    return Written(
        "arrays layers, vectors, scales and document (metadata)",
        "read back and compared bit for bit",
        f'a = numpy.load("{out}"); at layers[k] add strength * a["scales"][k] * a["vectors"][k]',
    )


def _sglang(vectors, out: Path, strength: float, asked: Asked) -> Written:
    from ..export.sglang import export_sglang, launch_command
    from ..models.decoder import find_decoder

    network = asked.outline(vectors)
    path = asked.decoder_layers or "model.layers"
    if network is not None:
        path = find_decoder(network, asked.decoder_layers).layers_path
    export_sglang(vectors, out, strength=strength, layers_path=path)
    return Written(
        f"hooks for {path}.{{{','.join(map(str, vectors.layers))}}} at strength "
        f"{setting(strength)}",
        "the hooks were made from the folder and add these vectors to the residual stream",
        launch_command(out, asked.model),
    )


def _lm_eval(vectors, out: Path, strength: float, asked: Asked) -> Written:
    name = asked.required("lm-eval")
    from ..export import lm_eval

    network = asked.outline(vectors)
    lm_eval.write(out, vectors, network, strength=strength, decoder_layers=asked.decoder_layers)
    found = len(lm_eval.read(out))
    return Written(
        f"{found} layer(s) at strength {setting(strength)}, every position; torch writes it as "
        "a pickle",
        "read back with weights_only=True",
        f"lm_eval --model steered --model_args pretrained={name},steer_path={out} --tasks ...",
    )


WRITERS = {
    "checkpoint": _checkpoint,
    "gguf": _gguf,
    "npz": _npz,
    "sglang": _sglang,
    "repeng-gguf": partial(_gguf, program="repeng"),
    "lm-eval": _lm_eval,
}
