"""Writers in a process that may be killed: a program that forks a child for each kill.

Run as ``python -m helpers.killed FOLDER``; prints one json document. A child is ended before the
n-th thing it does to a file system, or in the middle of the write that passes a limit of n bytes,
which the system enforces in libraries that are not Python's as well. With the limit alone that
write fails, as on a full disk.
"""

import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path

import torch

import expertsteer as es
from expertsteer.demo import CHECKPOINTS
from expertsteer.demo.files import FILES, write_files
from expertsteer.export import lm_eval
from expertsteer.export.checkpoint import export_checkpoint
from expertsteer.export.gguf import export_gguf, import_gguf
from expertsteer.export.npz import export_npz, import_npz
from expertsteer.export.sglang import export_sglang
from expertsteer.reporting import page
from expertsteer.states.shards import Shards
from helpers.artefacts import alignment, captured, pairing, states, told, vectors
from helpers.evaluations import an_evaluation
from helpers.families import build

NAMES = (*CHECKPOINTS, *FILES)
EVENTS = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "os.truncate"}
LIMITS = (0, 1, 7, 100, 1000, 3000)
page.can_plot = lambda: False  # pictures take a second each


def put(folder, amount):
    """New shards in place of the old ones, one after the other."""
    if not (folder / "capture.json").exists():
        captured(folder)
    made = Shards.open(folder)
    made.clear_temporary()  # as `capture_to` does first
    for shard in range(3):
        column = torch.arange(made.manifest.count(shard))
        hidden = torch.full((2, len(column), 5), float(amount), dtype=torch.bfloat16)
        made.write(shard, hidden, labels=column % 2, keys=column, pairs=column + 1)


def shards(folder):
    stored = es.HiddenStates.open(folder)
    stored.verify()
    return [told(stored.take([row]).states) for row in (0, 4, 8)]


def texts(folder):
    return [path.read_text("utf-8") for path in sorted(folder.iterdir()) if path.name[0] != "."]


def files(folder):
    """A folder that appears at once: all its files, or nothing."""
    made = folder / "made"
    if not made.exists():
        return None
    return sorted((str(p.relative_to(made)), p.stat().st_size) for p in made.rglob("*"))


def sizes(path):
    if path.is_file():
        return path.read_bytes()
    return sorted((p.name, p.stat().st_size) for p in path.iterdir()) if path.exists() else None


def anew(write):
    def again(folder, amount):
        if amount == 1:  # there is no old one: these are not replaced
            return
        made = (folder / "made").exists()
        try:
            write(folder / "made")
        except ValueError as error:
            if not made or "exists already" not in str(error):
                raise

    return again


def hooks(out):
    export_sglang(vectors(), out)


def checkpoint(out):
    export_checkpoint(out.parent.parent.parent / "model", of_model(1), out)


def of_model(amount):
    return float(amount) * es.SteeringVectors({1: torch.ones(32)})


# name: (write amount 1 or 2 into a folder, read it, whether its parts are old or new one by one)
WRITERS = {
    "vectors": (
        lambda f, a: (float(a) * vectors()).save_pretrained(f),
        lambda f: told(es.SteeringVectors.from_pretrained(f)),
        False,
    ),
    "states": (
        lambda f, a: es.HiddenStates(a * states().states, states().labels).save_pretrained(f),
        lambda f: told(es.HiddenStates.from_pretrained(f)),
        False,
    ),
    "pairing": (
        lambda f, a: es.LayerPairing(pairing().pairs, f"rule {a}", a * pairing().matrix)
        .save_pretrained(f),
        lambda f: told(es.LayerPairing.from_pretrained(f)),
        False,
    ),
    "alignment": (
        lambda f, a: es.Alignment(**vars(alignment()) | {"settings": {"a": a}}).save_pretrained(f),
        lambda f: told(es.Alignment.from_pretrained(f)),
        False,
    ),
    "shards": (put, shards, True),
    "npz": (
        lambda f, a: export_npz(float(a) * vectors(), f / "v.npz"),
        lambda f: told(import_npz(f / "v.npz")),
        False,
    ),
    "gguf": (
        lambda f, a: export_gguf(float(a) * vectors(), f / "v.gguf"),
        lambda f: told(import_gguf(f / "v.gguf")),
        False,
    ),
    "lm-eval": (
        lambda f, a: lm_eval.write(f / "v.pt", of_model(a), build("llama")),
        lambda f: told(lm_eval.read(f / "v.pt")),
        False,
    ),
    "report": (
        lambda f, a: page.write_report(an_evaluation(task=f"task {a}"), f),
        texts,
        True,
    ),
    "sglang": (anew(hooks), files, False),
    "checkpoint": (anew(checkpoint), files, False),
    "demo files": (
        lambda f, a: a == 1 or write_files(f / "made", examples=20),
        lambda f: [sizes(f / "made" / name) for name in NAMES],
        True,
    ),
}  # fmt: skip


def in_a_child(work, *, moment=None, limit=None, killed=True):
    """Exit code (negative: the signal) and what the child told."""
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        seen = [0]

        def count(event, arguments):
            if event in EVENTS and not str(arguments[0]).startswith(("/proc", "/dev")):
                seen[0] += 1
                if seen[0] == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        fsync = os.fsync
        os.fsync = lambda descriptor: (count("open", ("fsync",)), fsync(descriptor))
        sys.addaudithook(count)
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if killed else signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            work()
            found = None
        except BaseException as error:
            found = f"{type(error).__name__}: {error}", isinstance(error, ValueError)
        moment = None
        os.write(write, json.dumps([seen[0], found]).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        text = stream.read()
    status = os.waitpid(process, 0)[1]
    return os.waitstatus_to_exitcode(status), json.loads(text) if text else None


def main(name, root):
    write, read, by_part = WRITERS[name]
    old_folder, new_folder = root / "old", root / "new"
    for folder, amount in ((old_folder, 1), (new_folder, 2)):
        folder.mkdir()
        write(folder, amount)
    old, new = read(old_folder), read(new_folder)
    problems, ends = [], {"killed": 0, "refused": 0, "done": 0}

    def check(where, folder):
        try:
            found = read(folder)
        except Exception as error:
            problems.append(f"{where}: cannot be read: {error!r}")
            return
        parts = zip(found, old, new) if by_part else [(found, old, new)]
        if not all(part in (before, after) for part, before, after in parts):
            problems.append(f"{where}: neither the old nor the new content")

    folder = root / "work"

    def tried(where, **how):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(old_folder, folder)
        code, result = in_a_child(lambda: write(folder, 2), **how)
        check(where, folder)
        if code == -signal.SIGKILL or code == -signal.SIGXFSZ:
            ends["killed"] += 1
            if name != "demo files":
                write(folder, 2)  # the next run finishes, and clears up
                check(f"{where}, and again", folder)
                if read(folder) != new:
                    problems.append(f"{where}: the next run gave another content")
        elif result[1] is None:
            ends["done"] += 1
        else:
            ends["refused"] += 1
            message, ours = result[1]
            if not ours or str(folder) not in message:
                problems.append(f"{where}: {message}")
        left = [str(p) for p in folder.rglob(".*") if p.name.endswith(".tmp")]
        if left and name != "demo files":
            problems.append(f"{where}: left {left}")
        return result

    events = tried("whole")[0]
    step = max(1, events // 20)
    for moment in range(1, events + 1, step):
        tried(f"killed before event {moment}", moment=moment)
    for limit in LIMITS:
        tried(f"killed at byte {limit}", limit=limit)
        tried(f"full at byte {limit}", limit=limit, killed=False)
    return {"problems": problems, "events": events} | ends


if __name__ == "__main__":
    root = Path(sys.argv[1])
    build("llama").save_pretrained(root / "model")
    results = {}
    for name in WRITERS:
        (root / name).mkdir()
        results[name] = main(name, root / name)
    print(json.dumps(results))
