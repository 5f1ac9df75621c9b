"""The ablation of the NAS paper: its rows as configs."""

from __future__ import annotations

from dataclasses import replace

from nas_jax.methods.albef import AlbefConfig
from nas_jax.methods.nas import NasConfig
from nas_jax.negatives.nva import NvaConfig
from nas_jax.utils.errors import ConfigError
from nas_jax.utils.fields import narrowed

VARIANTS: dict[str, dict[str, bool]] = {
    "albef": {"dictionary": False, "nva": False, "nta": False},
    "vd": {"dictionary": True, "nva": False, "nta": False},
    "vd_nva": {"dictionary": True, "nva": True, "nta": False},
    "vd_nta": {"dictionary": True, "nva": False, "nta": True},
    "nas": {"dictionary": True, "nva": True, "nta": True},
}
"""The ablation of the paper: what each variant switches on."""


def with_variant(config: NasConfig, variant: str) -> AlbefConfig:
    """The config with the parts that a row of the ablation switches on, and no others.

    The row "albef" is ALBEF itself. Raises ConfigError on an unknown row.
    """
    if variant not in VARIANTS:
        known = ", ".join(VARIANTS)
        raise ConfigError(f"variant={variant!r}", f"one of {known}", "name one of them")
    if variant == "albef":
        return replace(narrowed(config, AlbefConfig), name="albef")
    parts = VARIANTS[variant].items()
    return replace(
        config, **{name: replace(getattr(config, name), enabled=on) for name, on in parts}
    )


NVA_FORMS = ("whole", "authors")
RANKS = 12 / 128  # of the codes: the nearest ones, which often stand for the same thing again


def nva_form(form: str, codes: int) -> NvaConfig:
    """NVA as the authors' code has it, or so that most of its pictures contradict their caption.

    "whole": the object is the image encoder's longest token, the new code stands in for the whole
    patch, and the nearest codes are passed over (docs/method.md, "NVA"). codes: of the dictionary.
    Raises ConfigError on another form.
    """
    if form not in NVA_FORMS:
        raise ConfigError(f"nva={form!r}", f"one of {', '.join(NVA_FORMS)}", "name one of them")
    if form == "authors":
        return NvaConfig()
    ranks = max(1, round(RANKS * codes))
    return NvaConfig(
        similarity="norm",
        object_candidates=1,
        replace="whole",
        neighbour_from=ranks,
        neighbours=ranks,
    )
