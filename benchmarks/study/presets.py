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
    "albef": Choice("ALBEF: no dictionary, no negatives but the batch's", {"variant": "albef"}),
    "vd": Choice("with the visual dictionary", {"variant": "vd"}),
    "vd_nva": Choice("dictionary and NVA", {"variant": "vd_nva"}),
    "vd_nta": Choice("dictionary and NTA", {"variant": "vd_nta"}),
    "nas": Choice("dictionary, NVA and NTA", {"variant": "nas"}),
    "nas_authors": Choice(
        "`nas` with NVA in the authors' form", {"variant": "nas", "nva": "authors"}
    ),
}
# as many more steps as a step of nas takes longer: 225 and 320 pairs/s on one core of an AMD EPYC
LONG = {"variant": "albef", "steps": "4260"}
MORE = {
    "albef_long": Choice("ALBEF for as much time as `nas`", LONG),
    "nas_weighted": Choice(
        "`nas` with NVA and NTA beside ITM, a third each, not in one mean with it",
        {"variant": "nas"},
        {"method.itm.form": "weighted"},
    ),
    "nas_follows": Choice(
        "the same with a dictionary that follows its patches to the end, also under NVA",
        {"variant": "nas"},
        {
            "method.itm.form": "weighted",
            "method.dictionary.freeze_with_nva": "False",
            "method.dictionary.decay": "constant",
            "method.dictionary.decay_min": "0.9",
        },
    ),
    "nas_objects": Choice(
        "`nas` with NVA that replaces whole objects, in all their codes",
        {"variant": "nas"},
        {"method.nva.object_codes": "12"},
    ),
    "nas_early": Choice(
        "`nas` with its negatives from the first step, not in the last third",
        {"variant": "nas"},
        {"method.nva.start_epoch": "0.0", "method.nta.start_epoch": "0.0"},
    ),
}
AT_THE_END = {"train.eval_every": "0"}  # evaluations
LARGER_SETS = AT_THE_END | {"data.scene_foils": "400"}  # in which one run's luck is small
DEMO = Preset(
    title="ALBEF and NAS on rendered scenes",
    config=SCENES,
    steps=3000,
    batch_size=32,
    settings={"": Choice("", flags=AT_THE_END)},
    variants={name: VARIANTS[name] for name in ("albef", "nas")},
    metrics=FOILS,
    seeds=1,
    numbered=False,
    report=True,
)
STUDY = Preset(
    title="What each part of NAS gains on rendered scenes",
    config=SCENES,
    steps=3000,
    batch_size=32,
    settings={
        "large": Choice(
            "The large world: 10 shapes, 10 colours, 3 fills; 12,000 training pictures.",
            {"world": "large"},
            LARGER_SETS,
        ),
        "small": Choice(
            "The small world: 5 shapes, 6 colours; 12,000 training pictures.", {}, LARGER_SETS
        ),
        "few": Choice(
            "The large world with 1,500 training pictures.",
            {"world": "large", "pictures": "1500"},
            LARGER_SETS,
        ),
    },
    variants=VARIANTS | MORE,
    metrics=FOILS,
    only={"few": ("albef", "nas")},
)
EMOJI = Preset(
    title="ALBEF and NAS on drawings of emoji",
    config="configs/emoji.py",
    steps=3000,
    batch_size=32,
    settings={
        "": Choice(
            "Asked about 788 drawings of 394 emoji that no run has seen: 14 to 82 questions a "
            "category. The shards must lie in data/emoji (docs/data.md says how to make them).",
            flags=AT_THE_END,
        )
    },
    variants={
        "albef": VARIANTS["albef"],
        "nas": Choice("dictionary, NVA and NTA", {"variant": "nas"}),
    },
    metrics={
        "val/foils/itm/macro": "all foils",
        "val/foils/itm/colour": "colour",
        "val/foils/itm/tone": "tone",
        "val/foils/itm/gender": "gender",
        "val/foils/itm/number": "number",
        "val/foils/itm/noun-verb-other": "noun, verb, other",
        "val/foils/itc/number": "ITC, number",
        "val/quads/itm/group": "quads, group",
        "val/retrieval/itc/text_to_image_r@1": "ITC, text to image R@1",
        "val/retrieval/itm/text_to_image_r@1": "ITM, text to image R@1",
    },
)
METHODS = Preset(
    title="All methods on rendered scenes at one budget",
    config=SCENES,
    steps=3000,
    batch_size=32,
    settings={"": Choice("", flags=LARGER_SETS)},
    losses=True,
    # a new method is one line: what it is and, with arguments if it takes some, its config
    variants={
        "albef": Choice("ALBEF", {"variant": "albef"}),
        "nas": Choice("NAS: dictionary, NVA and NTA", {"variant": "nas"}),
        "tcl": Choice("TCL: contrast inside each modality too", config="configs/tcl.py"),
        "softmask": Choice("SoftMask++: softened pictures", config="configs/softmask.py"),
        "sycoca": Choice("SyCoCa: patches restored from captions", config="configs/sycoca.py"),
        "rvlm": Choice("RVLM: captions with a sister term", config="configs/rvlm.py"),
        "vlmatch": Choice("VL-Match: replaced words found", config="configs/vlmatch.py"),
        "vilta": Choice("ViLTA: words with softer labels", config="configs/vilta.py"),
        "svco": Choice("S-VCO: margins on minimal pairs", config="configs/svco.py"),
        "clip": Choice("CLIP: two encoders, as all below", config="configs/clip.py"),
        "align": Choice("ALIGN: smoothed labels", {"method": "align"}, config="configs/clip.py"),
        "siglip": Choice(
            "SigLIP: a sigmoid a pair", {"method": "siglip"}, config="configs/clip.py"
        ),
        "filip": Choice("FILIP: tokens with tokens", config="configs/filip.py"),
        "fdt": Choice("FDT: shared tokens", config="configs/fdt.py"),
        "c2lip": Choice("C2LIP: noun phrases", config="configs/c2lip.py"),
        "loupe": Choice("LOUPE-style: Shapley interactions", config="configs/loupe.py"),
        "negclip": Choice("NegCLIP: changed captions as keys", config="configs/negclip.py"),
        "ceclip": Choice("CE-CLIP: their ranks too", config="configs/ceclip.py"),
        "gnm": Choice("GNM: variations in one batch", config="configs/gnm.py"),
    },
    # ITC is of all methods; those of two encoders have no ITM, and a dash there
    metrics={
        "val/foils/itc/macro": "ITC, all foils",
        "val/foils/itc/binding": "ITC, binding",
        "heldout/foils/itc/macro": "ITC, held-out foils",
        "val/quads/itc/group": "ITC, quads",
        "val/retrieval/itc/text_to_image_r@1": "ITC, text to image R@1",
        "val/foils/late/macro": "FILIP's score, all foils",
        "val/foils/itm/macro": "ITM, all foils",
        "val/foils/itm/binding": "ITM, binding",
        "heldout/foils/itm/macro": "ITM, held-out foils",
        "val/quads/itm/group": "ITM, quads",
        "val/retrieval/itm/text_to_image_r@1": "ITM, text to image R@1",
    },
    seeds=1,
    page="methods_on_scenes",  # beside the page of their costs (benchmarks/methods.py)
)
PRESETS: dict[str, Preset] = {"demo": DEMO, "scenes": STUDY, "emoji": EMOJI, "methods": METHODS}
