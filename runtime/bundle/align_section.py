"""How a manifest and a model card say by what the part's pose is found and undone."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from edgead.runtime.bundle.field_types import FramePixels, Offset, Pixels, Section
from edgead.runtime.bundle.layout import TEMPLATE_NAME
from edgead.runtime.imaging.alignment import Alignment, decode_template
from edgead.runtime.imaging.pose import FULL


def _template_member(name: str) -> str:
    if name != TEMPLATE_NAME:
        raise ValueError(f"{name!r} must be {TEMPLATE_NAME}")
    return name


class AlignSection(Section):
    """How the pose of the part is found and undone; sizes in pixels, see `edgead.runtime.imaging.alignment.Alignment`.

    ``minimum`` is the least overlap of a part that is found, in thousandths. ``template`` is the member that is looked
    for: a grey PNG, below each other what the part covers, its grey values, and what is judged of it.
    """

    rule: Literal["pose-overlap/1"] = "pose-overlap/1"
    frame_width: FramePixels
    frame_height: FramePixels
    canvas_width: Pixels
    canvas_height: Pixels
    window_x: Offset
    window_y: Offset
    window_width: Pixels
    window_height: Pixels
    minimum: Annotated[int, Field(ge=1, le=FULL)]
    turns: bool
    template: Annotated[str, AfterValidator(_template_member)] = TEMPLATE_NAME

    @classmethod
    def from_alignment(cls, align: Alignment) -> AlignSection:
        """Return the section of an alignment; its template is the member `TEMPLATE_NAME`."""
        (frame_width, frame_height), (canvas_width, canvas_height) = align.frame_size, align.canvas
        x, y, width, height = align.window
        return cls(
            frame_width=frame_width,
            frame_height=frame_height,
            canvas_width=canvas_width,
            canvas_height=canvas_height,
            window_x=x,
            window_y=y,
            window_width=width,
            window_height=height,
            minimum=align.minimum,
            turns=align.turns,
        )

    def to_alignment(self, png: bytes) -> Alignment:
        """Return the alignment; ``png`` is the content of its template member.

        Raises:
            ConfigError, DataError: sizes that do not belong together, or a template that is none.
        """
        part, grey, judged = decode_template(png, self.template)
        return Alignment(
            (self.frame_width, self.frame_height),
            (self.canvas_width, self.canvas_height),
            (self.window_x, self.window_y, self.window_width, self.window_height),
            part,
            grey,
            judged,
            self.minimum,
            self.turns,
        )
