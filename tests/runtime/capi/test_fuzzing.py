"""libFuzzer on what is read of a bundle: a run of some ten seconds finds nothing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.bundle.layout import MANIFEST_NAME
from edgead.runtime.bundle.signature import add_signature
from edgead.runtime.bundle.trust import TrustedKey, add_key
from edgead.runtime.bundle.writing import sign_bundle
from edgead.runtime.signing import Signer, make_key
from tests.cache import kept
from tests.runtime.capi.building import JSON, NATIVE, SOURCES, need, need_compilers, run, state
from tests.runtime.capi.test_sanitizers import EARLIER

# What needs a backend is not fuzzed: it takes what these have checked.
BACKEND = (
    "api",
    "ort_session",
    "ov_session",
    "session",
    "network",
    "graph",
    "native",
    "gaussians",
    "knn_bank",
    "linear",
    "workers",
    "inspector",
)
FLAGS = ["-std=c++17", "-g", "-O1", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
FLAGS += ["-DFUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION", "-ffp-contract=off"]


@pytest.fixture(scope="module")
def fuzzer() -> Path:
    """The fuzzer of runtime/capi/fuzz."""
    need_compilers()
    need("clang++")
    if not list(Path("/usr/lib").glob("llvm-*/lib/clang/*/lib/linux/libclang_rt.fuzzer-*.a")):
        pytest.skip("libFuzzer is missing; on Debian: apt-get install libclang-rt-dev")
    files = [file for file in sorted((SOURCES / "src").glob("*.cpp")) if file.stem not in (*BACKEND, "decision")]
    include = [f"-I{folder}" for folder in (SOURCES / "include", SOURCES / "src", NATIVE, JSON.parents[1])]

    def make(folder: Path) -> None:
        run(["clang++", *FLAGS, *include, SOURCES / "fuzz" / "fuzz_bundle.cpp", *files, "-o", folder / "fuzzer"])

    return kept(f"capi-fuzzer-{state()}", make) / "fuzzer"


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    """What is fuzzed from: the bundles of earlier versions, and their parts."""
    folder = tmp_path / "seeds"
    folder.mkdir()
    for path in sorted(EARLIER.glob("*.edgead")):
        (folder / f"0-{path.name}").write_bytes(b"\0" + path.read_bytes())
        with Bundle.open(path) as bundle:
            manifest = bundle._read_unlisted(MANIFEST_NAME, 1 << 20)
            (folder / f"1-{path.name}").write_bytes(b"\1" + manifest)
            for name in bundle.manifest.members:
                kind = {".png": b"\2", ".npz": b"\3"}.get(Path(name).suffix)
                if kind:
                    (folder / f"{path.stem}-{Path(name).name}").write_bytes(kind + bundle.read(name))
    _signed(folder)
    return folder


def _signed(folder: Path) -> None:
    """Add a signed bundle, its signature and a trust file that knows the key, apart and together."""
    make_key(folder.parent / "release.key")
    signer, trust = Signer(folder.parent / "release.key"), folder.parent / "trust.json"
    add_key(
        trust, TrustedKey(name="plant 1", public_key=signer.public, valid_from="2026-01-31", valid_until="2090-01-01")
    )
    path = folder.parent / "signed.edgead"
    sign_bundle(EARLIER / "single.edgead", path, signer)
    # The fuzzer's own manifest is {}: this signature gets as far as the key's validity.
    signature, text = add_signature(signer, b"{}", None).to_json(), trust.read_bytes()
    (folder / "0-signed").write_bytes(b"\0" + path.read_bytes())
    for kind, data in ((b"\5", signature), (b"\6", text), (b"\7", text + b"\0" + signature)):
        (folder / f"{kind[0]}-trust").write_bytes(kind + data)


def fuzz(fuzzer: Path, seeds: Path, runs: int) -> subprocess.CompletedProcess[str]:
    corpus = seeds.parent / "corpus"
    corpus.mkdir()
    # What is freed stays in AddressSanitizer's quarantine for a while, and is no memory that the reader needs: that is
    # bounded by the limit on a single allocation.
    limits = [f"-runs={runs}", "-max_len=60000", "-timeout=30", "-malloc_limit_mb=600", "-rss_limit_mb=8000"]
    command = [str(fuzzer), str(corpus), str(seeds), *limits, f"-artifact_prefix={seeds.parent}/found-"]
    environment = {**os.environ, "ASAN_OPTIONS": "quarantine_size_mb=16:allocator_release_to_os_interval_ms=200"}
    return subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False, env=environment)


@pytest.mark.parametrize("runs", [20_000, pytest.param(150_000, marks=pytest.mark.slow)])
def test_nothing_is_found(fuzzer: Path, seeds: Path, runs: int) -> None:
    done = fuzz(fuzzer, seeds, runs)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "INITED" in done.stderr
    assert not list(seeds.parent.glob("found-*"))
    # It got by the first checks: more than the seeds is worth keeping.
    assert len(list((seeds.parent / "corpus").iterdir())) > 20
