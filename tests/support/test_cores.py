"""Cores that may be used: affinity, and the quotas of both kinds of control groups."""

import os
import warnings

import pytest
import torch

from expertsteer.support import cores
from expertsteer.support.cores import tell_threads, usable_cores


def group(tmp_path, line, **files):
    (tmp_path / "process").write_text(line + "\n")
    for name, text in files.items():
        path = tmp_path / "groups" / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return usable_cores(tmp_path / "groups", tmp_path / "process")


@pytest.fixture
def eight(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def test_without_a_quota_affinity_decides(tmp_path, eight):
    assert usable_cores(tmp_path / "none", tmp_path / "none") == 8
    assert group(tmp_path, "0::/a", a__cpu_DOT_max="max 100000") == 8
    assert group(tmp_path, "0::/a", a__cpu_DOT_max="nonsense") == 8


def test_a_quota_of_version_2_counts_at_every_level(tmp_path, eight):
    assert group(tmp_path, "0::/a/b", a__b__cpu_DOT_max="250000 100000") == 2.5
    assert group(tmp_path, "0::/a/b", a__cpu_DOT_max="150000 100000") == 1.5
    assert group(tmp_path, "0::/a/b", a__b__cpu_DOT_max="6400000 100000") == 1.5


def test_a_quota_of_version_1(tmp_path, eight):
    files = {"cpu__x__cpu_DOT_cfs_quota_us": "300000", "cpu__x__cpu_DOT_cfs_period_us": "100000"}
    assert group(tmp_path, "4:cpu,cpuacct:/x", **files) == 3
    assert group(tmp_path, "4:cpu,cpuacct:/x/y", **files) == 3  # of the group above
    files["cpu__x__cpu_DOT_cfs_quota_us"] = "-1"
    assert group(tmp_path, "4:cpu,cpuacct:/x\n5:memory:/x", **files) == 8


@pytest.mark.parametrize(("usable", "told"), [(4.0, False), (3.5, False), (1.5, True)])
def test_more_threads_than_cores_are_told_once_with_both_figures(monkeypatch, usable, told):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(cores, "usable_cores", lambda: usable)
    tell_threads.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tell_threads()
        tell_threads()
    tell_threads.cache_clear()
    assert len(caught) == told
    if told:
        message = str(caught[0].message)
        assert "4 threads" in message and "1.5 cores" in message and "OMP_NUM_THREADS=1" in message
