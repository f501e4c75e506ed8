"""Which parts of a record a model may learn from: those that bundles of the same product judged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgead.model.model_card import ModelCard
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.bundle.manifest import Manifest
from edgead.runtime.errors import ConfigError, DataError, EdgeadError
from edgead.runtime.journal.reader import JournalReader
from edgead.runtime.journal.rows import Row

PROVENANCE_KEY = "teaching"


class Lineage:
    """The bundles of one model in a record.

    Args:
        record: open.
        card: of the model.
        model: its directory, for messages.
        bundle: the one that is to be replaced; None: the newest of the record that was exported from the model.

    Attributes:
        old: the bundle that is to be replaced; sha256: its digest.

    Raises:
        ConfigError: there is none, or the one that was given was exported from another model.
    """

    def __init__(self, record: JournalReader, card: ModelCard, model: Path, bundle: Path | None = None) -> None:
        self._record, self._card = record, card
        self._known: dict[str, bool] = {}
        self._manifests: dict[str, Manifest | None] = {}
        self._refused: list[str] = []  # why bundles of the record cannot be opened
        self._setups: dict[str, dict[str, Any]] = {}
        self._products = {_product_of(card.fingerprint)}
        if bundle is not None:
            with Bundle.open(bundle) as opened:
                manifest, self.sha256 = opened.manifest, opened.sha256
            if not self._ours(manifest):
                raise ConfigError(f"{bundle} was not exported from {model}; give the model directory that it came from")
            self.old = bundle
        else:
            self.sha256 = self._newest(model)
            self.old = record.bundle(self.sha256)
        self._ancestors(manifest if bundle is not None else self._manifest(self.sha256))

    def judged(self, row: Row) -> bool:
        """Whether a bundle of a model of the same images judged a part, or one that such a model was taught from."""
        if row.body.get("setup") is None:
            return False
        digest = str(self._setup(row).get("bundle"))
        if digest not in self._known:
            manifest = self._manifest(digest)
            same = manifest is not None and _product_of(manifest.provenance.get("data_fingerprint")) in self._products
            self._known[digest] = digest == self.sha256 or same
        return self._known[digest]

    def precision(self) -> str | None:
        """Return the precision in which the old bundle judged last; None where the record does not say."""
        for row in reversed(list(self._record.rows("bundle"))):
            if row.body.get("sha256") == self.sha256 and row.body.get("setup") is not None:
                opened = self._setup(row).get("opened")
                return str(opened["precision"]) if isinstance(opened, Mapping) and opened.get("precision") else None
        return None

    def _newest(self, model: Path) -> str:
        told = [str(row.body.get("sha256")) for row in self._record.rows("bundle")]
        for digest in reversed(list(dict.fromkeys(told))):
            manifest = self._manifest(digest)
            if manifest is not None and self._ours(manifest):
                return digest
        if self._refused:
            raise ConfigError(f"no bundle of the record {self._record.folder} can be used: {self._refused[0]}")
        raise ConfigError(
            f"no bundle of the record {self._record.folder} was exported from {model}; give it with --bundle"
        )

    def _ancestors(self, manifest: Manifest | None) -> None:
        while manifest is not None:
            self._products.add(_product_of(manifest.provenance.get("data_fingerprint")))
            taught = manifest.provenance.get(PROVENANCE_KEY)
            digest = str(taught.get("old_bundle")) if isinstance(taught, Mapping) else ""
            if not digest or self._known.get(digest):
                return
            self._known[digest] = True
            manifest = self._manifest(digest)

    def _ours(self, manifest: Manifest) -> bool:
        return _model_of(manifest) == _model_of(self._card)

    def _manifest(self, digest: str) -> Manifest | None:
        if digest not in self._manifests:
            try:
                with Bundle.open(self._record.bundle(digest)) as bundle:
                    self._manifests[digest] = bundle.manifest
            except EdgeadError as error:
                self._manifests[digest] = None
                self._refused.append(str(error))
        return self._manifests[digest]

    def _setup(self, row: Row) -> dict[str, Any]:
        name = str(row.body["setup"])
        if name not in self._setups:
            try:
                self._setups[name] = self._record.setup(row)
            except DataError:
                self._setups[name] = {}
        return self._setups[name]


def _product_of(fingerprint: object) -> str:
    return json.dumps(fingerprint, sort_keys=True)


def _model_of(of: ModelCard | Manifest) -> str:
    """Return what tells a model from another: its images, its detector with all settings, its network size."""
    if isinstance(of, Manifest):
        found = (of.provenance.get("data_fingerprint"), of.detector.name, of.detector.settings)
        return json.dumps([*found, of.input.height, of.input.width], sort_keys=True)
    return json.dumps([of.fingerprint, of.detector, of.settings, of.height, of.width], sort_keys=True)
