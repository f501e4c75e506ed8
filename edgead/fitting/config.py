"""What is asked for when a model is fitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from edgead.budget import check_budget
from edgead.detectors import default_size, learns, members, pools_categories
from edgead.evaluation.costs import Costs
from edgead.features.backbones import DEFAULT_BACKBONE
from edgead.model.model_card import check_size
from edgead.runtime.decision.threshold import DEFAULT_FALSE_ALARM_RATE
from edgead.runtime.errors import ConfigError
from edgead.runtime.imaging.decode import require_bits
from edgead.runtime.imaging.roi import Box
from edgead.runtime.imaging.tiling import DEFAULT_OVERLAP
from edgead.runtime.imaging.view import View


class FitOptions(TypedDict, total=False):
    """The fields of `FitConfig`, as keywords."""

    detector: str
    settings: Mapping[str, Any] | None
    backbone: str
    taps: Sequence[int] | None
    size: int | tuple[int, int] | None
    seed: int
    false_alarm_rate: float
    exclude: Sequence[str]
    keep_stray: bool
    defects: str | Path | None
    learn_defects: bool
    costs: Costs | None
    budget_mb: float | None
    budget_ms: float | None
    roi: Box | None
    mask: str | Path | None
    tiles: tuple[int, int] | None
    tile_overlap: int
    align: bool
    view: View | None
    bits: int | None


@dataclass(frozen=True, slots=True)
class FitConfig:
    """How a detector is fitted; shared by the API and the command line.

    Attributes:
        detector, settings: registered name and its settings.
        backbone: ``NAME`` or ``NAME@WEIGHTS``, see `BackboneSpec.parse`.
        taps: where features are taken from the backbone, as strides (input pixels a cell), finest first, or as
            block numbers of a vision transformer; None: 8 and 16, or the last block.
        size: network size in pixels, a side or ``(height, width)``, multiples of 32 and of a vision
            transformer's patch; None: the detector's own.
        seed: decides every random choice.
        false_alarm_rate: share of normal parts that may be rejected.
        exclude: training images to omit, named as `edgead audit` names them.
        keep_stray: learn also from images that show nothing, or whose score is far beyond the others'. Otherwise they
            are omitted, with a warning, and the model's card names them; the threshold never counts them.
        defects: folder of defective images, each folder in it a kind; with those in ``train/<kind>`` of the category
            they say what the threshold lets pass, and teach a closed-form detector what to look for, as far as
            cross-validation shows that it helps.
        learn_defects: False: nothing is learned from defects.
        costs: of mistakes; the threshold is then the one that costs least on normals and defects.
        budget_mb, budget_ms: one of them or both choose the settings that ``settings`` leaves open, see
            `edgead.budget.choose`.
        roi: the part of the images that is judged, in pixels; then all images, and the camera's, have one size.
        mask: image file of their size that is white where nothing is judged.
        tiles: ``(rows, columns)`` into which that part is cut, each resized to ``size``, for small defects in large
            images; for detectors of one category. tile_overlap: cells of the map that neighbours share.
        align: find the part in each image, and undo how it lies and is turned; images then have one size.
        view: what a model that is fitted again sees of an image, in place of ``size``, ``roi``, ``mask`` and ``align``;
            it is then not learned anew, so that the new model can take the old one's place. None: as these say.
        bits: how many bits of the values of 16-bit files carry the picture, 8 to 16; kept by the model. None: 16, and
            a warning (logger ``edgead.fit``) where the training images leave most of them empty.
    """

    detector: str = "patchcore"
    settings: Mapping[str, Any] | None = None
    backbone: str = DEFAULT_BACKBONE
    taps: Sequence[int] | None = None
    size: int | tuple[int, int] | None = None
    seed: int = 0
    false_alarm_rate: float = DEFAULT_FALSE_ALARM_RATE
    exclude: Sequence[str] = ()
    keep_stray: bool = False
    defects: str | Path | None = None
    learn_defects: bool = True
    costs: Costs | None = None
    budget_mb: float | None = None
    budget_ms: float | None = None
    roi: Box | None = None
    mask: str | Path | None = None
    tiles: tuple[int, int] | None = None
    tile_overlap: int = DEFAULT_OVERLAP
    align: bool = False
    view: View | None = None
    bits: int | None = None

    @property
    def budgeted(self) -> bool:
        """Whether settings are chosen by measurement."""
        return self.budget_mb is not None or self.budget_ms is not None

    def network_size(self) -> tuple[int, int]:
        """Return height and width; raises `ConfigError` for a size that no backbone takes."""
        size = default_size(self.detector, self.settings) if self.size is None else self.size
        return check_size(*((size, size) if isinstance(size, int) else size))

    def check(self, categories: int) -> None:
        """Refuse before any work what does not go together, for so many categories; raises `ConfigError`."""
        pooled, trained = pools_categories(self.detector), learns(self.detector)
        if not categories:
            raise ConfigError("there is no category to fit; give its folder")
        if not pooled and categories != 1:
            raise ConfigError(
                f"detector '{self.detector}' takes one category, got {categories}; "
                "fit one model for each, or one for all with --detector dfc"
            )
        if self.bits is not None:
            require_bits(self.bits)
        if not 0.0 < self.false_alarm_rate < 1.0:
            rate = self.false_alarm_rate
            raise ConfigError(f"the false-alarm rate must lie between 0 and 1, got {rate}; 5 % is 0.05")
        if categories != 1 and (self.defects is not None or self.costs is not None):
            raise ConfigError("defects and costs are for a model of one category; fit one for each")
        check_budget(self.budget_mb, self.budget_ms)
        if self.view is not None and (self.roi is not None or self.mask is not None or self.align):
            raise ConfigError("a view says what of an image is judged; omit roi, mask and align")
        drawn = self.roi is not None or self.mask is not None or self.tiles is not None or self.align
        if drawn and self.budgeted:
            raise ConfigError(
                "a budget cannot be combined with --roi, --mask, --tiles or --align yet; choose settings with --set"
            )
        several = len(members(self.detector)) > 1
        if (trained or several) and self.budgeted:
            instead = f"set the profile of '{self.detector}' instead" if trained else "give one detector alone"
            raise ConfigError(f"a budget chooses between closed-form fits; {instead}")
        if self.align and pooled:
            raise ConfigError(f"detector '{self.detector}' judges several kinds of parts; --align finds one, omit it")
        if self.align and (self.tiles is not None or self.mask is not None):
            raise ConfigError("--align turns the image, on which --tiles and --mask lie; omit it or these")
        if self.tiles is not None and (pooled or trained or several):
            raise ConfigError(f"detector '{self.detector}' judges whole images; omit --tiles or choose another")
