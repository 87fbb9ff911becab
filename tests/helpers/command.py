"""Run the command line as a user does, within the test's process, or Python in one of its own.

Starting one takes seconds.
"""

import io
import os
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace
from unittest import mock

from expertsteer.cli import main
from helpers import ROOT


def run(*arguments, stdin=""):
    """What ``expertsteer ARGUMENTS`` does: ``returncode``, ``stdout`` and ``stderr``.

    An exception that the command line does not turn into a message fails the test.
    """
    out, err = io.StringIO(), io.StringIO()
    argv = ["expertsteer", *map(str, arguments)]
    environment = {"COLUMNS": "200", "NO_COLOR": "1"}
    code = 0
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(sys, "stdin", io.StringIO(stdin)),
        mock.patch.dict("os.environ", environment),
        redirect_stdout(out),
        redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("default")  # users read warnings, they do not end in them
        try:
            main()
        except SystemExit as done:
            code = done.code or 0
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def python(*arguments, **environment):
    """What ``python ARGUMENTS`` prints; it finds what this process finds, and these helpers."""
    paths = [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | environment
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
