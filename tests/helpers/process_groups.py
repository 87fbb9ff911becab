"""Several processes on one task, as torchrun starts them, without a start-up of seconds for each.

A server imports everything once and every rank is forked from it: a process of its own, which
may be killed like any other.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import traceback
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "helpers.process_groups",
        "helpers.tiny_tokenizer",
        "expertsteer.pipeline.concepts",
        "transformers.models.llama.modeling_llama",
    ]
)


def start(size, function, *arguments):
    """``size`` processes that call ``function(*arguments)``, and where they leave what it gave."""
    folder = Path(tempfile.mkdtemp(prefix="ranks-"))
    options = [(rank, size, folder, function, arguments) for rank in range(size)]
    processes = [_CONTEXT.Process(target=_one, args=of) for of in options]
    for process in processes:
        process.start()
    return processes, folder


def run(size, function, *arguments):
    """What ``function(*arguments)`` gives on each of ``size`` ranks, exceptions included."""
    processes, folder = start(size, function, *arguments)
    for process in processes:
        process.join(60)
    return [torch.load(folder / str(rank), weights_only=False) for rank in range(size)]


def kill(processes):
    """At once and without a word."""
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    for process in processes:
        process.join(30)


def _one(rank, size, folder, function, arguments):
    torch.set_num_threads(1)
    if size > 1:
        # As torchrun sets them; releases of transformers before 5 read them.
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        store = distributed.FileStore(str(folder / "store"), size)
        patience = timedelta(seconds=40)
        distributed.init_process_group(
            "gloo", store=store, rank=rank, world_size=size, timeout=patience
        )
    try:
        result = function(*arguments)
    except Exception as error:
        result = error
        traceback.print_exc()
    torch.save(result, folder / str(rank))
    if size > 1:
        distributed.destroy_process_group()
