"""Imports point one way: a file imports its own folder and those before it, and no circles stand.

Those inside of functions and for types count too.
"""

import ast
from pathlib import Path

import expertsteer

PACKAGE = Path(expertsteer.__file__).parent

# From the ground up. A folder imports only those before it; `support` none.
FOLDERS = (
    "support ops contrast rfm models vectors states folding tasks pairing alignment steering "
    "fitting calibration guidance export serving pipeline evaluation reporting demo cli"
).split()

# The package's own names, its command, and a file of its own.
ABOVE_ALL = ("__init__.py", "__main__.py", "sklearn.py")


def files() -> list[str]:
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def folder(file: str) -> str:
    return file.partition("/")[0]


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


def test_imports_point_downwards_and_in_no_circle():
    edges = {file: imported(file) for file in files()}
    inside = {file: others for file, others in edges.items() if file not in ABOVE_ALL}
    inside = {file: {o for o in others if o in inside} for file, others in inside.items()}
    assert upwards(edges) == []
    assert circles(inside) == []


def test_nothing_of_the_package_is_imported_inside_a_function():
    late = []
    for file in files():
        if folder(file) == "cli" or file == "__init__.py":  # `--help`, and names, are quick
            continue
        tree = ast.parse((PACKAGE / file).read_text("utf-8"))
        late += [
            f"{file}:{node.lineno}"
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef)
            for node in ast.walk(function)
            if isinstance(node, ast.ImportFrom) and node.level
        ]
    assert late == []


def test_an_underscore_means_this_file_only():
    shared = []
    for file in files():
        assert "_" not in {part[0] for part in file.split("/")} or file.endswith(
            ("__init__.py", "__main__.py")
        )
        for node in ast.walk(ast.parse((PACKAGE / file).read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                names = [n.name for n in node.names if n.name.startswith("_") and n.name != "_C"]
                shared += [f"{file}:{node.lineno} {name}" for name in names]
    assert shared == []


def test_files_stay_small():
    long = {f: len((PACKAGE / f).read_text("utf-8").splitlines()) for f in files()}
    assert {f: lines for f, lines in long.items() if lines > 300} == {}
