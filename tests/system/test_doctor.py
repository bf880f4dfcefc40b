"""`parat doctor`: what it says, and that `--engine auto` takes what it says."""
import json

import pytest

from vm import parat

pytestmark = pytest.mark.quick


def test_json_names_every_engine_with_its_verdict():
    """Engine soft is usable everywhere, so there is always one for auto."""
    done = parat("doctor", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    engines = {engine["name"]: engine for engine in report["engines"]}
    assert set(engines) == {"kvm", "soft"}
    assert engines["soft"]["verdict"] == "usable"
    assert engines["soft"]["kernel_ns"] > 0
    assert [name for name, engine in engines.items() if engine["auto"]] == [report["auto"]]
    for engine in engines.values():
        assert engine["verdict"] in ("usable", "slow", "unusable")
        assert (engine["verdict"] == "usable") == (engine["reason"] == "")


def test_what_auto_takes_is_usable():
    """Never one that was measured to be slow."""
    report = json.loads(parat("doctor", "--json").stdout)
    (chosen,) = [engine for engine in report["engines"] if engine["auto"]]
    assert chosen["verdict"] == "usable"


def test_table_says_why_and_what_to_do():
    """A no without a remedy helps nobody."""
    done = parat("doctor")
    assert done.returncode == 0, done.stderr
    assert "engine  verdict" in done.stdout
    assert "--engine auto takes" in done.stdout
    if "unusable" in done.stdout or "slow" in done.stdout:
        assert "because" in done.stdout and "What to do:" in done.stdout


def test_wrong_use():
    """One sentence, status 2."""
    done = parat("doctor", "--jsn")
    assert done.returncode == 2
    assert done.stderr == "parat: doctor: --jsn: there is no such option\n"


def test_help():
    """Standard output, status 0."""
    done = parat("doctor", "--help")
    assert done.returncode == 0 and "usage: parat doctor" in done.stdout


def test_an_unusable_kvm_is_refused_with_its_reason(boot):
    """Asked for by name it says why; where it is usable, or slow, it runs."""
    report = json.loads(parat("doctor", "--json").stdout)
    (kvm,) = [engine for engine in report["engines"] if engine["name"] == "kvm"]
    if kvm["verdict"] != "unusable":
        pytest.skip("KVM is not unusable here")
    with boot("poweroff", "--engine", "kvm") as machine:
        machine.wait(1)
        assert kvm["reason"] in machine.errors
