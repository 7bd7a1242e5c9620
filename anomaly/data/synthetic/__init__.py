"""Rendered images of parts, and defects with exact masks for rendered and real images."""

from anomaly.data.synthetic.assembly import draw_component_defect
from anomaly.data.synthetic.dataset import PARTS, make_dataset, make_part
from anomaly.data.synthetic.defects import DEFECTS, draw_defect
from anomaly.data.synthetic.foreground import estimate_foreground
from anomaly.data.synthetic.pasted_defects import PASTED, draw_any_defect
from anomaly.data.synthetic.rendered_part import Component, RenderedPart

__all__ = [
    "DEFECTS",
    "PARTS",
    "PASTED",
    "Component",
    "RenderedPart",
    "draw_any_defect",
    "draw_component_defect",
    "draw_defect",
    "estimate_foreground",
    "make_dataset",
    "make_part",
]
