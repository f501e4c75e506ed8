"""Recognises how the images of a category lie on disk.

- ``mvtec``: ``train/good``, ``test/good``, ``test/<defect>``, and masks in ``ground_truth/<defect>`` named
  ``<stem>_mask.*`` or ``<stem>.*`` (MVTec AD, MPDD, BTAD, ...) or lying in a folder ``<stem>/`` (MVTec LOCO, which
  also has ``validation/good``); defects in ``train/<defect>`` are never trained on;
- ``folder``: images directly inside, all good; or ``good`` and one folder a defect, with ``ground_truth`` as above;
- ``csv``: a list, see `edgead.data.csv_list`.

A good folder may be called good, ok or normal, in any case, and ``ground_truth`` may be in any case too. What is an
image and what is omitted is the rule of `edgead.runtime.imaging.listing`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from edgead.data.category import GOOD, GOOD_NAMES, Category, Layout, Sample, relative_name
from edgead.data.csv_list import read_csv
from edgead.runtime.errors import ConfigError, DataError, suggest
from edgead.runtime.imaging.listing import IMAGE_SUFFIXES, folder_entries
from edgead.runtime.imaging.listing import list_images as list_files

_TRUTH = "ground_truth"


def open_category(path: str | Path, *, train_only: bool = False, need_test: bool = False) -> Category:
    """Find out what a category holds; no image is opened.

    Args:
        path: the folder of the category, or a ``.csv`` list.
        train_only: for fitting: do not look at the test images at all, insist on at least 2 training images.
        need_test: for evaluation: insist on good and defective test images; training images may be absent.

    Raises:
        DataError: the path is missing, no category, empty, or lacks what was insisted on; or some but not all
            defective images have a mask.
        ConfigError: both flags at once.
    """
    if train_only and need_test:
        raise ConfigError("open_category takes train_only or need_test, not both")
    root = Path(path)
    if root.is_file():
        if root.suffix.lower() != ".csv":
            raise DataError(f"{root} is a file; give the folder of a category (with train/good inside) or a .csv list")
        category = read_csv(root)
        if train_only:
            category = replace(category, test=())
    elif root.is_dir():
        is_mvtec = (root / "train").is_dir() or (root / "test").is_dir()
        category = _mvtec(root, train_only) if is_mvtec else _folder(root, train_only)
    else:
        raise DataError(f"{root} does not exist{_similar(root)}")
    _check(category, root, train_only, need_test)
    return category


def list_images(path: str | Path) -> tuple[Sample, ...]:
    """Return every image at or below a path as samples of unknown label, sorted by relative POSIX path.

    Raises:
        DataError: the path is missing or holds no image.
    """
    root = Path(path)
    if root.is_file():
        return (Sample(root, None, False),)
    if not root.is_dir():
        raise DataError(f"{root} does not exist{_similar(root)}")
    found = tuple(Sample(image, None, False) for _, image in _scan(root))
    if not found:
        raise DataError(f"{root} holds no images ({_suffixes()})")
    return found


def list_defects(folder: Path) -> tuple[Sample, ...]:
    """Return defective images: those of a folder, each folder in it being a kind, or of kind ``defect`` directly in it.

    Raises:
        DataError: the folder is missing, or holds no image.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder} of defects; check the path")
    if splits := sorted({inner.name for inner in _folders(folder)} & {"train", "test"}):
        held = ", ".join(splits)
        raise DataError(f"{folder} is a category (it holds {held}), and only defects may be here; name their folder")
    direct = [Sample(image, "defect", True) for _, image in _scan(folder, recursive=False)]
    found = (*direct, *_defects(folder, folder / _TRUTH))
    if not found:
        raise DataError(f"{folder} holds no image of a defect ({_suffixes()})")
    return found


def _mvtec(root: Path, train_only: bool) -> Category:
    train = root / "train"
    good, omitted = _good(train)
    if not good and train.is_dir() and _scan(train, recursive=False):
        raise DataError(f"{train} holds images directly; move the good ones into {train / 'good'}")
    test: list[Sample] = []
    if not train_only and (root / "test").is_dir():
        if _scan(root / "test", recursive=False):
            raise DataError(f"{root / 'test'} holds images directly; sort them into test/good and test/<defect>")
        test = [*_good(root / "test")[0], *_defects(root / "test", _truth(root))]
    category = _category(root, "mvtec", (good, test, _good(root / "validation")[0]), omitted)
    return replace(category, defects=tuple(_defects(train, root / _TRUTH / "train")))


def _folder(root: Path, train_only: bool) -> Category:
    listed = list_files(root, recursive=False)
    direct = [Sample(image, GOOD, False) for image in listed.paths]
    good, omitted = _good(root)
    if direct and good:
        raise DataError(f"{root} holds images directly and in a good folder; move all good ones into {root / 'good'}")
    if not direct and not good:
        inner = [folder.name for folder in _folders(root) if (folder / "train").is_dir()]
        if inner:
            raise DataError(f"{root} is no category but holds some: {', '.join(inner[:6])}; name one of them")
        raise DataError(f"{root} holds no images and no train/good folder; put images of normal parts into {root}")
    defects = [] if train_only or direct else _defects(root, _truth(root))
    if direct:
        omitted = Counter(listed.unexpected)
        omitted["in folders below"] = len(list_files(root).files) - len(direct)
    return _category(root, "folder", (direct or good, defects, []), +Counter(omitted))


def _category(
    root: Path, layout: Layout, splits: tuple[list[Sample], list[Sample], list[Sample]], omitted: Mapping[str, int]
) -> Category:
    train, test, validation = (
        tuple(sorted(samples, key=lambda sample: relative_name(sample.path, root))) for samples in splits
    )
    return Category(root.resolve().name, root, layout, train, test, validation, omitted=omitted)


def _check(category: Category, given: Path, train_only: bool, need_test: bool) -> None:
    where = given / "train" / "good" if category.layout == "mvtec" else given
    if train_only and len(category.train) < 2:
        count = "no images" if not category.train else "one image"
        raise DataError(
            f"{where} holds {count} to train on ({_suffixes()}); fitting needs at least 2 images of normal parts"
        )
    defects = [sample for sample in category.test if sample.anomalous]
    if need_test:
        place = given / "test" if category.layout == "mvtec" else given
        if not defects:
            raise DataError(
                f"{place} has no defective test images; metrics need good and defective ones "
                "(decisions alone: edgead run NAME.edgead --source FOLDER)"
            )
        if len(defects) == len(category.test):
            hint = "" if category.layout == "csv" else f"; put some that were not trained on into {given / 'test/good'}"
            raise DataError(f"{place} has no good test images; metrics need good and defective ones{hint}")
    bare = [sample for sample in defects if not sample.masks]
    if bare and (len(bare) < len(defects) or (category.layout != "csv" and _has_images(_truth(given)))):
        first = category.relative(bare[0])
        hint = "" if category.layout == "csv" else f" (as {_expected_mask(category, bare[0])})"
        raise DataError(
            f"{len(bare)} of {len(defects)} defective test images of {given} have no mask, first {first}; "
            f"add the missing ones{hint} or take all masks away"
        )
    if not category.train and not category.test:
        raise DataError(f"{given} holds no images ({_suffixes()})")


def _expected_mask(category: Category, sample: Sample) -> str:
    inside = PurePosixPath(category.relative(sample))
    inside = inside.relative_to("test") if category.layout == "mvtec" else inside
    return f"{_TRUTH}/{inside.with_name(inside.stem + '_mask.png')}"


def _has_images(folder: Path) -> bool:
    return folder.is_dir() and bool(_scan(folder))


def _truth(root: Path) -> Path:
    """Return the folder of masks, whatever its case."""
    return next((inner for inner in _folders(root) if inner.name.lower() == _TRUTH), root / _TRUTH)


def _good(folder: Path) -> tuple[list[Sample], Mapping[str, int]]:
    """Return the good images of a split, and what else lies in its good folders."""
    samples: list[Sample] = []
    omitted: Counter[str] = Counter()
    for inner in _folders(folder):
        if inner.name.lower() in GOOD_NAMES:
            listed = list_files(inner)
            samples += [Sample(image, GOOD, False) for image in listed.paths]
            omitted.update(listed.unexpected)
    return samples, omitted


def _defects(folder: Path, truth: Path) -> list[Sample]:
    samples = []
    for inner in _folders(folder):
        if inner.name.lower() in GOOD_NAMES or inner.name.lower() == _TRUTH:
            continue
        masks = _masks(truth / inner.name)
        for name, image in _scan(inner):
            stem = str(PurePosixPath(name).with_suffix(""))
            found = masks.get(f"{stem}/") or masks.get(f"{stem}_mask") or masks.get(stem) or []
            samples.append(Sample(image, inner.name, True, tuple(found)))
    return samples


def _masks(truth: Path) -> dict[str, list[Path]]:
    """Return the masks of one defect by stem, and by ``folder/`` for images with several."""
    found: dict[str, list[Path]] = defaultdict(list)
    for name, path in _scan(truth) if truth.is_dir() else ():
        found[str(PurePosixPath(name).with_suffix(""))].append(path)
        found[f"{PurePosixPath(name).parent}/"].append(path)
    return found


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for _, path, is_folder in folder_entries(folder) if is_folder]


def _scan(folder: Path, *, recursive: bool = True) -> tuple[tuple[str, Path], ...]:
    """Return ``(relative POSIX path in NFC, path)`` of the images in a folder, sorted."""
    return list_files(folder, recursive=recursive).files


def _similar(path: Path) -> str:
    siblings = [folder.name for folder in _folders(path.parent)]
    return f".{suggest(path.name, siblings)}" if 0 < len(siblings) <= 20 else "; give the folder of a category"


def _suffixes() -> str:
    return " ".join(sorted(IMAGE_SUFFIXES))
