"""The self-test of a running inspector: a device that computes something else is noticed, and nothing passes then."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from edgead.runtime.bundle.writing import replace_manifest
from edgead.runtime.errors import BackendError, BundleError, ConfigError
from edgead.runtime.frame import Decision, Inference
from edgead.runtime.inspection.inspector import Inspector
from tests.runtime.faults.doubles import drifted, fall_ill, recover

pytest.importorskip("onnxruntime")
PART = np.full((31, 45, 3), 100, np.uint8)


def broken(_found: Inference) -> Inference:
    raise BackendError("the device fell off the bus")


def test_a_healthy_device_passes_and_judges_on(make_bundle):
    with Inspector.open(make_bundle(), backend="onnxruntime") as inspect:
        assert inspect.self_test() == []
        assert inspect(PART).decision is Decision.OK


@pytest.mark.parametrize(("spoil", "reason"), [(drifted, "the score differs by"), (broken, "fell off the bus")])
def test_nothing_is_inspected_from_a_failed_self_test_to_one_that_passes(make_bundle, spoil, reason):
    with Inspector.open(make_bundle(), backend="onnxruntime") as inspect:
        fall_ill(inspect, spoil)
        problems = inspect.self_test()
        assert any(reason in problem for problem in problems)
        result = inspect(PART)
        assert result.decision is Decision.NOT_INSPECTED
        assert result.reason.startswith("self-test failed: ")
        assert reason in result.reason
        recover(inspect)
        assert inspect.self_test() == []
        assert inspect(PART).decision is Decision.OK


def test_a_bundle_that_passes_ends_it_too(make_bundle):
    path = make_bundle()
    with Inspector.open(path, backend="onnxruntime") as inspect:
        fall_ill(inspect, drifted)
        assert inspect.self_test()
        inspect.swap(path)
        assert inspect(PART).decision is Decision.OK


def test_a_file_that_was_replaced_proves_nothing_and_changes_nothing(make_bundle):
    path = make_bundle()
    with Inspector.open(path, backend="onnxruntime") as inspect:
        from edgead.runtime.bundle.bundle import Bundle

        with Bundle.open(path) as bundle:
            manifest = bundle.manifest
        replace_manifest(path, path, manifest.model_copy(update={"name": "another"}))
        with pytest.raises(BundleError, match="is not the bundle that was opened"):
            inspect.self_test()
        assert inspect(PART).decision is Decision.OK


def test_frames_are_judged_between_the_references(make_bundle):
    with Inspector.open(make_bundle(), backend="onnxruntime") as inspect:
        turns, gate = [], threading.Event()

        def slow(found):
            turns.append(threading.current_thread().name)
            gate.wait(0.05)
            return found

        fall_ill(inspect, slow)
        tester = threading.Thread(target=inspect.self_test, name="tester")
        tester.start()
        while tester.is_alive():
            assert inspect(PART).decision is Decision.OK
        tester.join()
    assert turns.count("tester") == 3
    first, last = turns.index("tester"), len(turns) - 1 - turns[::-1].index("tester")
    assert len(turns[first : last + 1]) > 3, "no frame got a turn before the self-test was over"


def test_an_inspector_that_is_closed_is_not_a_device_that_fails(make_bundle):
    with Inspector.open(make_bundle(), backend="onnxruntime") as inspect:
        inspect.close()
        with pytest.raises(BackendError, match="is closed"):
            inspect.self_test()


def test_an_inspector_without_a_bundle_has_no_references():
    class Backend:
        def close(self):
            pass

    inspect = Inspector(Backend(), height=8, width=8, threshold=1.0)
    with pytest.raises(ConfigError, match="opened from a bundle"):
        inspect.self_test()
