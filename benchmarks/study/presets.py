"""The studies that exist."""

from __future__ import annotations

from benchmarks.study.plan import Choice, Preset

SCENES = "configs/demo.py"
FOILS = {
    "val/foils/itm/macro": "all foils",
    "val/foils/itm/binding": "binding",
    "val/foils/itm/relation": "relation",
    "val/foils/itm/number": "number",
    "val/foils/itm/existence": "existence",
    "val/foils/itm/size": "size",
    "val/quads/itm/group": "quads, group",
    "heldout/foils/itm/macro": "held-out foils",
    "heldout/foils/itm/binding": "held-out binding",
    "val/retrieval/itm/text_to_image_r@1": "text to image R@1",
}
VARIANTS = {
    "albef": Choice("ALBEF: no dictionary, no negatives but the batch's", "variant=albef"),
    "vd": Choice("with the visual dictionary", "variant=vd"),
    "vd_nva": Choice("dictionary and NVA", "variant=vd_nva"),
    "vd_nta": Choice("dictionary and NTA", "variant=vd_nta"),
    "nas": Choice("dictionary, NVA and NTA", "variant=nas"),
    "nas_authors": Choice("`nas` with NVA in the authors' form", "variant=nas,nva=authors"),
}
DEMO = Preset(
    title="ALBEF and NAS on rendered scenes",
    config=SCENES,
    steps=3000,
    batch_size=32,
    settings={"": Choice("", flags={"train.eval_every": "0"})},
    variants={name: VARIANTS[name] for name in ("albef", "nas")},
    metrics=FOILS,
    seeds=1,
    report=True,
)
PRESETS: dict[str, Preset] = {"demo": DEMO}
