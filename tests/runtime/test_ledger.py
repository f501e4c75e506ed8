"""The frame ledger adds up at every instant, whatever happens to frames."""

from __future__ import annotations

import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgead.runtime.status.frame_ledger import OTHER, Ledger

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["captured", "inspected", "dropped", "failed"]),
        st.sampled_from(["left", "right"]),
        st.sampled_from(["late", "stale", "broken"]),
    ),
    max_size=60,
)


@given(STEPS)
def test_identity_holds_after_every_step(steps):
    ledger = Ledger(["left", "right"])
    expected = {"left": [0, 0, 0, 0], "right": [0, 0, 0, 0]}
    for kind, source, reason in steps:
        captured, inspected, dropped, failed = expected[source]
        if kind != "captured" and captured == inspected + dropped + failed:
            with pytest.raises(RuntimeError, match="settled twice"):
                getattr(ledger, kind)(*((source,) if kind == "inspected" else (source, reason)))
        else:
            getattr(ledger, kind)(*((source, reason) if kind in ("dropped", "failed") else (source,)))
            expected[source][["captured", "inspected", "dropped", "failed"].index(kind)] += 1
        total, by_source = ledger.snapshot()
        for name, counts in by_source.items():
            got = [counts.captured, counts.inspected, sum(counts.dropped.values()), sum(counts.failed.values())]
            assert got == expected[name]
            assert counts.in_flight == got[0] - got[1] - got[2] - got[3] >= 0
        assert total.captured == sum(counts.captured for counts in by_source.values())
        assert total.in_flight == sum(counts.in_flight for counts in by_source.values())
        for reason in ("late", "stale", "broken"):
            parts = [counts.dropped.get(reason, 0) for counts in by_source.values()]
            assert total.dropped.get(reason, 0) == sum(parts)


def test_two_threads_lose_no_frame():
    ledger = Ledger(["a"])

    def work():
        for _ in range(2000):
            ledger.captured("a")
            ledger.inspected("a")

    threads = [threading.Thread(target=work) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            counts = ledger.snapshot()[0]
            assert counts.captured == counts.inspected + counts.in_flight
            assert 0 <= counts.in_flight <= 4
    finally:
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join()
    assert ledger.snapshot()[0].captured == ledger.snapshot()[0].inspected == 8000


def test_months_of_different_messages_stay_bounded():
    ledger = Ledger(["a"])
    for number in range(500):
        ledger.captured("a")
        ledger.failed("a", f"driver error {number}")
    counts = ledger.snapshot()[0]
    assert len(counts.failed) <= 33
    assert sum(counts.failed.values()) == 500
    assert counts.failed[OTHER] > 400


def test_unknown_source_is_an_error():
    with pytest.raises(KeyError):
        Ledger(["a"]).captured("b")


def test_json_form_has_totals_and_reasons():
    ledger = Ledger(["a"])
    for _ in range(4):
        ledger.captured("a")
    ledger.inspected("a")
    ledger.dropped("a", "stale")
    ledger.failed("a", "broken")
    assert ledger.snapshot()[0].to_dict() == {
        "captured": 4,
        "inspected": 1,
        "dropped": 1,
        "failed": 1,
        "in_flight": 1,
        "dropped_reasons": {"stale": 1},
        "failed_reasons": {"broken": 1},
    }
