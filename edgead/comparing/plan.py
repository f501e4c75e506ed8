"""What is to be measured: which variants of detectors, on which categories, with which seeds, and under which key."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgead.data import Category, open_category
from edgead.detectors import create_detector, default_size, pools_categories
from edgead.features.backbones import BackboneSpec, build_backbone, describe_backbone
from edgead.model.model_card import check_size
from edgead.runtime.errors import ConfigError, suggest
from edgead.runtime.version import __version__

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,39}")


@dataclass(frozen=True, slots=True)
class Variant:
    """A detector with all its settings, under the name it has in the table."""

    label: str
    detector: str
    settings: Mapping[str, Any]

    @property
    def pools(self) -> bool:
        """Whether one model serves all categories."""
        return pools_categories(self.detector)


@dataclass(frozen=True, slots=True)
class Subject:
    """A category to measure on, with the digests of its training and test images."""

    path: Path
    category: Category
    train_sha256: str
    test_sha256: str

    @property
    def name(self) -> str:
        return self.category.name


@dataclass(frozen=True, slots=True)
class Job:
    """One fit, and the row it gives for each of its subjects: several where the detector pools categories.

    Attributes:
        backbone, taps: as they were asked for; ``backbone_name`` is for reports and holds no folder of this machine.
        keys: what a row's key must be for it to hold the outcome of this fit, one a subject.
        setup: the same without the seed, one a subject: rows to be averaged.
    """

    variant: Variant
    subjects: tuple[Subject, ...]
    seed: int
    size: tuple[int, int]
    backbone: str
    taps: tuple[int, ...]
    backbone_name: str
    keys: tuple[str, ...]
    setups: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{' + '.join(subject.name for subject in self.subjects)} {self.variant.label} seed {self.seed}"

    @property
    def pooled(self) -> tuple[str, ...] | None:
        """The categories that share the model, None where it has one of its own."""
        return tuple(subject.name for subject in self.subjects) if self.variant.pools else None


def parse_variants(detectors: str, settings: Sequence[str] = ()) -> tuple[Variant, ...]:
    """Return the variants of ``--detectors patchcore,big=patchcore`` with their ``--set`` options.

    Args:
        detectors: comma-separated ``NAME`` or ``LABEL=NAME``.
        settings: ``KEY=VALUE`` for every detector that knows the key, ``LABEL:KEY=VALUE`` for one, which goes first.

    Raises:
        ConfigError: an unknown detector, label or setting, one given twice, or a value out of range.
    """
    names: dict[str, str] = {}
    for item in detectors.split(","):
        label, equals, detector = (part.strip() for part in item.partition("="))
        detector = detector if equals else label
        create_detector(detector)  # refuses what there is not
        if not _LABEL.fullmatch(label):
            raise ConfigError(f"'{label}' is no label; use up to 40 letters, digits and ._+- as in big=patchcore")
        if label in names:
            raise ConfigError(f"--detectors names '{label}' twice; give one a label, such as big={detector}")
        names[label] = detector
    own, common = _split_settings(settings, names)
    variants = []
    used: set[str] = set()
    for label, detector in names.items():
        known = create_detector(detector).settings.model_dump()
        # "head.bank_size" is a setting of whatever "head" names.
        chosen = {key: value for key, value in common.items() if key in known or key.partition(".")[0] in known}
        used |= chosen.keys()
        chosen |= own[label]
        variants.append(Variant(label, detector, create_detector(detector, chosen).settings.model_dump(mode="json")))
    for key in common:
        if key not in used:
            every = {name for variant in variants for name in variant.settings}
            raise ConfigError(f"none of these detectors has a setting '{key}'.{suggest(key, every)}")
    return tuple(variants)


def _split_settings(
    settings: Sequence[str], labels: Mapping[str, str]
) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    own: dict[str, dict[str, str]] = {label: {} for label in labels}
    common: dict[str, str] = {}
    for pair in settings:
        name, equals, value = (part.strip() for part in pair.partition("="))
        label, colon, key = (part.strip() for part in name.rpartition(":"))
        if not (equals and key and value) or bool(colon) != bool(label):
            raise ConfigError(f"--set takes key=value or label:key=value, such as padim:dimensions=64, not '{pair}'")
        if colon and label not in own:
            raise ConfigError(f"--set {pair}: no detector is called '{label}' here.{suggest(label, own)}")
        target = own[label] if colon else common
        if key in target:
            raise ConfigError(f"--set {name}=… is given twice; keep one")
        target[key] = value
    return own, common


def open_subjects(paths: Sequence[Path]) -> tuple[Subject, ...]:
    """Open the categories and digest their images.

    Raises:
        ConfigError: no category.
        DataError: a category that lacks what a comparison needs, or two of one name.
    """
    if not paths:
        raise ConfigError("give at least one category folder (or --no-fit for what was measured before)")
    opened = [open_category(path, need_test=True) for path in paths]
    names = [category.name for category in opened]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two categories are called '{name}'; compare them in two runs or rename a folder")
    return tuple(
        Subject(path, category, category.fingerprint("train"), category.fingerprint("test"))
        for path, category in zip(paths, opened, strict=True)
    )


def make_jobs(
    subjects: Sequence[Subject],
    variants: Sequence[Variant],
    seeds: Sequence[int],
    *,
    size: tuple[int, int] | None,
    backbone: str,
    taps: Sequence[int] | None = None,
) -> list[Job]:
    """Return every fit in the order of work: one seed of everything first, so that an early stop leaves a whole table.

    Without a size every detector gets its own (`edgead.detectors.default_size`).

    Raises:
        ConfigError: a size or backbone that cannot be used, or a seed given twice.
    """
    sizes = {one.label: check_size(*(size or default_size(one.detector, one.settings))) for one in variants}
    if len(set(seeds)) != len(seeds) or not seeds or min(seeds) < 0:
        raise ConfigError(
            f"seeds must be different whole numbers from 0 up, got {', '.join(map(str, seeds)) or 'none'}"
        )
    spec = BackboneSpec.parse(backbone, taps)
    info = describe_backbone(spec, build_backbone(spec, max(sizes.values())))
    name = f"{info.name}@{info.weights}, taps {' '.join(map(str, spec.strides))}"
    jobs = []
    for seed in seeds:
        groups = [(subject, variant) for subject in subjects for variant in variants]
        done: set[str] = set()
        for subject, variant in groups:
            if variant.label in done:
                continue
            members = tuple(subjects) if variant.pools else (subject,)
            if variant.pools:
                done.add(variant.label)
            setup: dict[str, Any] = {
                "edgead": __version__,
                "detector": variant.detector,
                "settings": dict(variant.settings),
                "size": sizes[variant.label],
                "backbone": [info.name, info.weights_sha256],
                "taps": list(spec.strides),
                "train": {member.name: member.train_sha256 for member in members},
            }
            setups = tuple(_digest({**setup, "test": member.test_sha256}) for member in members)
            keys = tuple(_digest([setup_key, seed]) for setup_key in setups)
            jobs.append(Job(variant, members, seed, sizes[variant.label], backbone, spec.strides, name, keys, setups))
    return jobs


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
