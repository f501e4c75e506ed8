"""libedgead under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer: not one finding."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from edgead.runtime.bundle.trust import TrustedKey, add_key
from edgead.runtime.bundle.writing import sign_bundle
from edgead.runtime.signing import Signer, make_key
from tests.runtime.capi.building import build, need, run
from tests.runtime.capi.wrapper import wheel_library

FOLDER = Path(__file__).parent
EARLIER = FOLDER.parent / "earlier"
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    # ONNX Runtime is not built for it: what its threads do with each other cannot be followed.
    "TSAN_OPTIONS": "halt_on_error=1:ignore_noninstrumented_modules=1:report_mutex_bugs=0",
    "LSAN_OPTIONS": f"suppressions={FOLDER / 'leak_sanitizer.txt'}",
}


class Sanitized(NamedTuple):
    """A build with sanitizers, and what drives it."""

    name: str
    program: Path
    libraries: Path

    def run(self, *arguments: object, trust: str = "") -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **OPTIONS, "LD_LIBRARY_PATH": str(self.libraries), "EDGEAD_TRUST": trust}
        command = [str(self.program), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)


@pytest.fixture(scope="module", params=["address,undefined", "thread"])
def sanitized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sanitized:
    need("gcc")
    installed = build(request.param) / "installed"
    program = tmp_path_factory.mktemp("stress") / "stress"
    flags = [f"-fsanitize={request.param}", "-g", "-std=gnu99", "-Wall", "-Wextra", "-Werror"]
    where = [f"-I{installed / 'include'}", f"-L{installed / 'lib'}"]
    run(["gcc", *flags, *where, FOLDER / "stress.c", "-o", program, "-ledgead", "-lpthread"])
    return Sanitized(request.param, program, installed / "lib")


@pytest.mark.parametrize("bundle", ["single", "routed-heads", "routed-one", "precisions"])
def test_threads_that_open_judge_check_and_close(sanitized: Sanitized, bundle: str) -> None:
    done = sanitized.run(EARLIER / f"{bundle}.edgead", wheel_library())
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["done"]), done.stderr[-6000:]


def test_threads_that_open_a_signed_bundle_at_once(sanitized: Sanitized, tmp_path: Path) -> None:
    """The first ones load libcrypto at the same time."""
    pytest.importorskip("cryptography")
    make_key(tmp_path / "release.key")
    signer, trust = Signer(tmp_path / "release.key"), tmp_path / "trust.json"
    add_key(trust, TrustedKey(name="plant 1", public_key=signer.public, valid_until="2090-01-01"))
    bundle = tmp_path / "signed.edgead"
    sign_bundle(EARLIER / "single.edgead", bundle, signer)
    done = sanitized.run(bundle, wheel_library(), trust=str(trust))
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["done"]), done.stderr[-6000:]
    refused = sanitized.run(EARLIER / "single.edgead", wheel_library(), trust=str(trust))
    assert "EDGEAD_BUNDLE_UNTRUSTED" in refused.stderr
    assert "Sanitizer" not in refused.stderr.replace("AddressSanitizer:DEADLYSIGNAL", "")


def test_the_sanitizers_find_what_is_wrong(sanitized: Sanitized, tmp_path: Path) -> None:
    source = tmp_path / "wrong.c"
    wrong = {
        "address,undefined": "int main(int n, char **a) { int *x = new_int(); free(x); return x[n] + !a; }",
        "thread": "int main(void) { pthread_t t; pthread_create(&t, 0, add, 0); add(0); return pthread_join(t, 0); }",
    }[sanitized.name]
    source.write_text(
        "#include <pthread.h>\n#include <stdlib.h>\nstatic int total;\n"
        "__attribute__((unused)) static int *new_int(void) { return malloc(400); }\n"
        "__attribute__((unused)) static void *add(void *p) { for (int i = 0; i < 1000; i++) total++; return p; }\n"
        + wrong
    )
    run(["gcc", f"-fsanitize={sanitized.name}", "-w", "-g", source, "-o", tmp_path / "wrong", "-lpthread"])
    found = sanitized._replace(program=tmp_path / "wrong").run()
    assert found.returncode != 0
    assert "Sanitizer" in found.stderr
