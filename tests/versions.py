"""Run the tests that depend on transformers with several of its releases.

``make test-versions`` runs them with the oldest release that `pyproject.toml` declares (its newest
patch), the one `constraints.txt` pins and the newest one the package index serves. The first
environment is the pinned one. The others are made in ``build/versions`` and borrow torch and
everything else from it that does not depend on the release. Beside a checkout with the shared cases
those run as well, with the newest release alone: they are fifty programs of some seconds each.

Ends with a line for each release, and with 1 where something failed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
CASES = ROOT.parent / "shared" / "cases"
BUILD = ROOT / "build" / "versions"
RELEASES = ("oldest", "pinned", "newest")
# What a release of transformers decides the version of, beside those that depend on it.
TOGETHER = ("transformers", "tokenizers", "huggingface-hub")
PATIENCE = 300  # seconds for a case
# Cases that cannot hold, and whose fault that is; they are run all the same.
NOT_HELD = {
    "01_peft_prompt_tuning.py": "peft 0.21 does not know what transformers 5.24 calls the cache, "
    "and puts its virtual tokens before every pass, unsteered too",
}

# Files inside the package that cases look into, and where they went since.
MOVED = {"expertsteer._tokens": "expertsteer.states.tokens"}


def main() -> int:
    options = parsed()
    wanted = {name: version_of(name) for name in options.releases}
    pinned, newest = version_of("pinned"), version_of("newest")
    rows, failed = [], False
    for name, version in wanted.items():
        same = [other for other in rows if other[1] == version]
        if same:
            rows.append((name, version, f"is the {same[0][0]} one, which was run"))
            continue
        here = version == metadata.version("transformers")
        python = Path(sys.executable) if here else environment(name, version)
        told = []
        if version == pinned and options.skip_pinned:
            told.append("tests not run again")
        else:
            told.append(tests(python, name, options.processes))
        if version == newest and CASES.is_dir():
            told.append(cases(python, options.cases))
        failed |= any("failed" in one and "0 failed" not in one for one in told)
        rows.append((name, version, "; ".join(told)))
    for name, version, told in rows:
        print(f"transformers {version} ({name}): {told}")
    return int(failed)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("releases", nargs="*", type=release, default=RELEASES)
    parser.add_argument("--processes", default="2", help="as pytest-xdist's -n")
    parser.add_argument("--cases", type=int, default=2, help="how many cases run at a time")
    parser.add_argument("--skip-pinned", action="store_true", help="its tests have just been run")
    return parser.parse_args()


def release(name: str) -> str:
    if name not in RELEASES:
        raise argparse.ArgumentTypeError(f"must be one of {RELEASES}, came {name!r}")
    return name


def version_of(name: str) -> str:
    """The release that is meant: declared, pinned or served, so that no number stands here."""
    if name == "pinned":
        lines = (ROOT / "constraints.txt").read_text("utf-8")
        return re.search(r"^transformers==([\w.]+)", lines, re.MULTILINE)[1]
    listed = run(pip(sys.executable, "index", "versions", "transformers")).stdout
    served = [Version(v) for v in re.search(r"Available versions: (.*)", listed)[1].split(", ")]
    if name == "newest":
        return str(max(served))
    oldest = Version(min(lower_bounds(), key=Version))
    return str(max(v for v in served if v.release[:2] == oldest.release[:2] and v >= oldest))


def lower_bounds() -> list[str]:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    declared = re.findall(r'^\s+"(transformers[<>=!~][^"]*)",$', text, re.MULTILINE)
    return [s.version for d in declared for s in Requirement(d).specifier if s.operator == ">="]


def environment(name: str, version: str) -> Path:
    """The interpreter of an environment with that release and the rest of this one."""
    folder = BUILD / name
    python = folder / "bin" / "python"
    if not python.is_file():
        run([sys.executable, "-m", "venv", folder])
    own = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
    # Read after the environment's own packages, which therefore win.
    borrowed = Path(own.stdout.strip()) / "borrowed.pth"
    borrowed.write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
    print(f"installing transformers {version} into {folder.relative_to(ROOT)}", flush=True)
    run(pip(python, "install", "--quiet", f"transformers=={version}", *dependents()))
    return python


def dependents() -> list[str]:
    """Installed packages that other releases of transformers may need in other versions."""
    found = []
    for package in metadata.distributions():
        needed = [Requirement(text).name for text in package.requires or ()]
        if {n.lower().replace("_", "-") for n in needed} & set(TOGETHER):
            found.append(package.name)
    return sorted({name for name in found if name not in (*TOGETHER, "expertsteer")})


def tests(python: Path, name: str, processes: str) -> str:
    BUILD.mkdir(parents=True, exist_ok=True)
    report = BUILD / f"{name}.xml"
    report.unlink(missing_ok=True)
    arguments = ["-m", "pytest", "-q", "-m", "transformers", "-n", processes, "--maxprocesses", "4"]
    arguments += ["--dist", "worksteal", "-p", "no:cacheprovider", f"--junitxml={report}"]
    code = subprocess.run([python, *arguments], cwd=ROOT).returncode
    if code not in (0, 1):
        return f"pytest ended with {code}, failed"
    suite = ElementTree.parse(report).getroot().find("testsuite")
    counts = {key: int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped")}
    failed = counts["failures"] + counts["errors"]
    passed = counts["tests"] - failed - counts["skipped"]
    return f"{passed} passed, {failed} failed, {counts['skipped']} skipped"


def cases(python: Path, together: int) -> str:
    """Each case ends with 0 or says what it saw."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder) / CASES.name
        shutil.copytree(CASES, here)
        for path in here.glob("*.py"):
            text = path.read_text("utf-8")
            for old, new in MOVED.items():
                text = text.replace(old, new)
            path.write_text(text, "utf-8")
        (here.parent / "models").symlink_to(CASES.parent / "models")
        run([python, "-m", "expertsteer", "demo", "--files", here / "try"])
        environment = os.environ | {"TRY_FILES": str(here / "try"), "OMP_NUM_THREADS": "1"}
        environment |= {"HF_HUB_OFFLINE": "1"}

        def one(path: Path) -> bool:
            try:
                ran = run([python, path], check=False, env=environment, timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                print(f"case {path.name} did not end in {PATIENCE} s", flush=True)
                return False
            if ran.returncode and path.name in NOT_HELD:
                print(f"case {path.name} does not hold: {NOT_HELD[path.name]}", flush=True)
            elif ran.returncode:
                print(f"case {path.name} failed:\n{ran.stdout}{ran.stderr[-2000:]}", flush=True)
            return ran.returncode == 0

        paths = sorted(here.glob("*.py"))
        with ThreadPoolExecutor(together) as pool:
            held = dict(zip((path.name for path in paths), pool.map(one, paths)))
    excused = [name for name, good in held.items() if not good and name in NOT_HELD]
    failed = len(held) - sum(held.values()) - len(excused)
    told = f", {len(excused)} not held ({', '.join(excused)})" if excused else ""
    return f"cases: {sum(held.values())} passed, {failed} failed{told}"


def pip(python: str | Path, *arguments: str) -> list[str | Path]:
    return [python, "-m", "pip", "--disable-pip-version-check", *arguments]


def run(command: list, check: bool = True, **options) -> subprocess.CompletedProcess:
    ran = subprocess.run(command, capture_output=True, text=True, **options)
    if check and ran.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{ran.stdout}{ran.stderr}")
    return ran


if __name__ == "__main__":
    sys.exit(main())
