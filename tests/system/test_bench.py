"""The benchmark's own arithmetic, its reading of a console, and one row measured for real."""
import json
import subprocess
import sys

import pytest

from conftest import guest
from vm import PROGRAM, TOP

sys.path.insert(0, str(TOP / "bench"))
from benchlib import goals, machines, rows, table  # noqa: E402 pylint: disable=wrong-import-position

pytestmark = pytest.mark.quick

GROUPS = {"lua": "integer", "sort": "integer", "aes": "vector", "one-thread": "parallel",
          "two-threads": "parallel", "login-memory": "memory"}


def verdicts(medians):
    """{title: Verdict}"""
    return {verdict.title: verdict for verdict in goals.judge(medians, GROUPS)}


def test_geometric_mean():
    """Of ratios, so that twice as fast and half as fast cancel out."""
    assert goals.geometric_mean([2, 0.5]) == pytest.approx(1)
    assert goals.geometric_mean([1, 10, 100]) == pytest.approx(10)


def test_faster_than_qemu():
    """The slowest row and the mean are judged apart."""
    found = verdicts({"parat": {"lua": 10, "sort": 10}, "qemu": {"lua": 14, "sort": 200}})
    least, mean = found["integer programs: the least, lua"], found["integer programs: geometric mean of 2"]
    assert (least.value, least.meets) == (pytest.approx(1.4), False)
    assert (mean.value, mean.meets) == (pytest.approx(28 ** 0.5), True)


def test_rows_without_a_peer():
    """What only one program has measured is in no ratio."""
    assert goals.ratios({"parat": {"lua": 1, "sort": 2}, "qemu": {"lua": 3}}, "qemu", "parat",
                        ["lua", "sort"]) == {"lua": 3}
    assert verdicts({"parat": {"lua": 10}}) == {}


def test_two_processors():
    """Two threads in the time of one are a gain of 2; the native gain is what counts."""
    found = verdicts({"parat": {"one-thread": 100, "two-threads": 125},
                      "native": {"one-thread": 10, "two-threads": 10}})
    (verdict,) = found.values()
    assert (verdict.value, verdict.meets) == (pytest.approx(0.8), False)


def test_limits_from_above():
    """Times native, and memory: less is better."""
    found = verdicts({"parat": {"lua": 20, "aes": 44, "login-memory": 64},
                      "native": {"lua": 10, "aes": 10}})
    native = found["user-mode compute, times native: geometric mean of 2"]
    assert (native.value, native.meets) == (pytest.approx(8.8 ** 0.5), True)
    assert found["private memory beyond guest RAM at the login prompt"].meets


def test_times_in_words():
    """Three digits and a unit."""
    assert [table.time_text(ns) for ns in (0.5, 123.4, 5e3, 2.5e8, 1.5e9)] == \
        ["0.50 ns", "123 ns", "5 us", "250 ms", "1.5 s"]


def scripted(script):
    """A start() for rows.run: a shell script as the machine."""
    return lambda names: machines.Running(["sh", "-c", script, "sh", *names])


def test_rows_are_read():
    """Results by name, whatever else is on the console."""
    script = ("echo booting; for row; do echo parat-bench: begin $row;"
              "echo parat-bench: end $row ns=${#row}000000000 processor=5 sum=0f; done; echo parat-bench: done")
    found = dict(rows.run(scripted(script), ["ab", "abcdef"], 10, 10))
    assert [(result.ns, result.checksum) for result in found.values()] == [(2e9, "0f"), (6e9, "0f")]
    assert found["abcdef"].clock_is_wrong()


def test_clocks():
    """A tenth is too much, unless it is a moment."""
    assert rows.Result(ns=1.2e9, host_ns=1e9).clock_is_wrong()
    assert not rows.Result(ns=1.05e9, host_ns=1e9).clock_is_wrong()
    assert not rows.Result(ns=1e6, host_ns=40e6).clock_is_wrong()


@pytest.mark.parametrize("death", ["exit 1", "kill -KILL $$", "sleep 100",
                                   "echo parat-bench: failed $row signal 11; continue"])
def test_a_row_that_fails(death):
    """It is told, and another machine measures the rest."""
    script = (f"for row; do echo parat-bench: begin $row; [ $row != bad ] || {{ {death}; }};"
              "echo parat-bench: end $row ns=1 processor=1 sum=0; done; echo parat-bench: done")
    found = dict(rows.run(scripted(script), ["first", "bad", "last"], 10, 1))
    assert found["bad"].failure
    assert found["first"].ns == found["last"].ns == 1


def test_one_row(tmp_path):
    """A row of the real thing: the guest and the host do the same work with the same result."""
    guest("bench")
    record = tmp_path / "record.json"
    done = subprocess.run([TOP / "bench" / "run", "soft", "--program", PROGRAM, "--runs", "1", "--no-qemu",
                           "--only", "fork", "--json", record], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=120, check=False)
    result = json.loads(record.read_text())
    mistakes = [problem for problem in result["problems"] if "its clock" not in problem]
    assert not mistakes, done.stdout
    assert result["samples"]["parat"]["fork"][0] > result["samples"]["native"]["fork"][0], done.stdout
