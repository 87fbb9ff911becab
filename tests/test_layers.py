"""Imports point one way: a file imports its own folder and those before it, and no circles stand.

Most files still lie side by side; `HOMES` says which folder each belongs to until it moves there.
What does not hold yet stands in `layers_exceptions.txt`, a line each, which may only grow shorter.
"""

import ast
from pathlib import Path

import expertsteer

PACKAGE = Path(expertsteer.__file__).parent
LISTED = Path(__file__).with_name("layers_exceptions.txt")

# From the ground up. A folder imports only those before it; `support` none.
FOLDERS = (
    "support ops contrast rfm models vectors states folding tasks pairing alignment steering "
    "fitting calibration guidance export serving pipeline evaluation reporting demo cli"
).split()

HOMES = {
    "tasks": "_on_model _scorers _task _task_choice _task_rows _task_text tasks",
    "calibration": "_bracket _neutral calibrate",
    "pipeline": "concepts pipeline spread",
    "evaluation": "_beside _curves _equal_price _live_harness _provenance baselines bench "
    "comparison controls evaluate evaluation lm_eval_tasks statistics",
    "reporting": "heat report summary",
    "cli": "__main__",
}
FOLDER_OF = {f"{file}.py": folder for folder, files in HOMES.items() for file in files.split()}
ABOVE_ALL = ("__init__.py", "sklearn.py")  # the package's own names, and a file of its own


def files() -> list[str]:
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def folder(file: str) -> str:
    first, _, rest = file.partition("/")
    return {"report_page": "reporting"}.get(first, first) if rest else FOLDER_OF[file]


def imported(file: str) -> set[str]:
    """Files of this package that a file imports: anywhere in it, and for types too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / file).read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            here = ["", *file.split("/")[:-1]]
            start = here[1 : len(here) - node.level + 1] + (node.module or "").split(".")
            for name in node.names:
                if name.name == "_C":  # the compiled extension
                    continue
                found.add(_file_of([part for part in (*start, name.name) if part]))
    return found - {file}


def _file_of(parts: list[str]) -> str:
    """Of a dotted path whose last part may be a name in a module."""
    for path in (parts, parts[:-1]):
        for candidate in ("/".join(path) + ".py", "/".join([*path, "__init__.py"])):
            if (PACKAGE / candidate).is_file():
                return candidate
    raise AssertionError(f"no file of the package is {'.'.join(parts)}")


def upwards(edges: dict[str, set[str]]) -> list[str]:
    found = []
    for file, others in edges.items():
        if file in ABOVE_ALL:
            continue
        for other in others:
            above = other in ABOVE_ALL
            if above or FOLDERS.index(folder(other)) > FOLDERS.index(folder(file)):
                found.append(f"{file} imports {other}")
    return sorted(found)


def circles(edges: dict[str, set[str]]) -> list[str]:
    """Sets of files each of which reaches all the others."""
    reach = {file: _reached(file, edges) for file in edges}
    sets = {
        tuple(sorted({other for other in reach[file] if file in reach[other]} | {file}))
        for file in edges
    }
    return sorted("circle: " + " ".join(one) for one in sets if len(one) > 1)


def _reached(file: str, edges: dict[str, set[str]]) -> set[str]:
    seen, waiting = set(), [file]
    while waiting:
        for other in edges[waiting.pop()] - seen:
            seen.add(other)
            waiting.append(other)
    return seen


def test_every_file_has_a_home():
    assert all(folder(f) in FOLDERS for f in files() if f not in ABOVE_ALL)
    assert not set(FOLDER_OF) - set(files())  # those that moved are taken off the list


def test_imports_point_downwards_and_in_no_circle():
    edges = {file: imported(file) for file in files()}
    inside = {file: others for file, others in edges.items() if file not in ABOVE_ALL}
    inside = {file: {o for o in others if o in inside} for file, others in inside.items()}
    found = upwards(edges) + circles(inside)
    listed = LISTED.read_text("utf-8").splitlines()
    assert sorted(set(found) - set(listed)) == [], "imports against the order"
    assert sorted(set(listed) - set(found)) == [], "mended: take these off the list"
