"""Seeded damage to files: bytes flipped, lost, moved and made up, values of json exchanged."""

import json
import random
import resource
import signal
from contextlib import contextmanager

ODD = (None, True, -1, 0, 2**63, 10**12, 1.5, 1e308, "", "x", "../x", "\x1b[2J", [], [None], {},
       {"x": 1}, [[1, 2], 3])  # fmt: skip


def damaged(data, generator):
    """``data`` with one or a few places changed; seldom the same."""
    data, size = bytearray(data), len(data)
    kind = generator.choice(["bit", "bit", "byte", "word", "cut", "insert", "delete", "copy"])
    # Half of all damage goes where the structure is.
    low = generator.random() < 0.5
    place = generator.randrange(min(size, 400) if low else size)
    length = generator.randint(1, 16)
    if kind == "bit":
        data[place] ^= 1 << generator.randrange(8)
    elif kind == "byte":
        data[place] = generator.randrange(256)
    elif kind == "word":
        data[place : place + 8] = generator.choice([b"\x00", b"\xff", b"\x7f"]) * 8
    elif kind == "cut":
        del data[place:]
    elif kind == "insert":
        data[place:place] = generator.randbytes(length)
    elif kind == "delete":
        del data[place : place + length]
    else:
        other = generator.randrange(size)
        data[place : place + length] = data[other : other + length]
    return bytes(data)


def odd_json(text, generator):
    """A json text with one value, at any depth, exchanged for an odd one or left out."""
    document = json.loads(text)
    places = list(_places(document))
    holder, key = generator.choice(places)
    if generator.random() < 0.2:
        del holder[key]
    else:
        holder[key] = generator.choice(ODD)
    return json.dumps(document, ensure_ascii=False)


def _places(value):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        yield value, key
        if isinstance(inner, (dict, list)):
            yield from _places(inner)


class TooLong(BaseException):
    """Not an error that a reader could take for one of the file."""


@contextmanager
def bounded(seconds=20, megabytes=400):
    """Fail if what is inside hangs, or takes memory that no file of a few kilobytes can need."""

    def stop(*_):
        raise TooLong(f"a reader took more than {seconds} s")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < megabytes, f"a reader took {grown:.0f} MiB"


def seeded(name):
    return random.Random(name)
