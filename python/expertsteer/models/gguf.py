"""Models and tokenizers from GGUF files, as ordinary ones of transformers."""

from __future__ import annotations

import os
from importlib import util
from pathlib import Path
from typing import Any

from torch import nn

_NEEDED = {"gguf": "pip install 'expertsteer[export]'", "accelerate": "pip install accelerate"}


def is_gguf(name: Any) -> bool:
    """Whether a name is that of a GGUF file, there or not; a folder may be called what it likes."""
    named = isinstance(name, (str, os.PathLike)) and Path(name).suffix.lower() == ".gguf"
    return named and not Path(name).expanduser().is_dir()


def require_gguf_libraries() -> None:
    """Raise ``ValueError`` where what reads GGUF files is missing, with how to install it."""
    for name, way in _NEEDED.items():
        if util.find_spec(name) is None:
            raise ValueError(
                f"loading a GGUF file needs the library {name}, which is not installed: {way}"
            )


def require_gguf_file(path: str | os.PathLike, kind: str) -> Path:
    """A file that is there, with the libraries that read it.

    Raises:
        ValueError: no such file, a missing library.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(
            f"{kind} {str(path)!r} cannot be loaded: there is no file of that name; check the path "
            "(a GGUF file on the Hub has to be downloaded first)"
        )
    require_gguf_libraries()
    return file


def gguf_options(file: Path, of_model: bool) -> dict[str, Any]:
    """What transformers' ``from_pretrained`` is given beside the file's folder.

    Weights are turned into plain numbers: some releases could leave them in their few bits, which
    neither take a bias nor can be saved.
    """
    import transformers

    options: dict[str, Any] = {"gguf_file": file.name}
    if of_model and hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    return options


def as_ordinary(model: nn.Module, file: Path) -> nn.Module:
    """Forget the file's quantisation, since the weights are plain numbers by now, and a folder
    saved with it could not be loaded; and remember the file as the model's name."""
    for owner, name in ((model, "hf_quantizer"), (model.config, "quantization_config")):
        if hasattr(owner, name):
            delattr(owner, name)
    model.is_quantized = False
    model.config._name_or_path = str(file)
    return model
