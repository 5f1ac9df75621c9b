"""One paper a file, and the table of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

from nas_jax.methods.albef import Albef
from nas_jax.methods.c2lip import C2lip
from nas_jax.methods.ceclip import CeClip
from nas_jax.methods.clip import Align, Clip, Siglip
from nas_jax.methods.fdt import Fdt
from nas_jax.methods.filip import Filip
from nas_jax.methods.gnm import Gnm
from nas_jax.methods.loupe import Loupe
from nas_jax.methods.method import Method, MethodConfig, Setting
from nas_jax.methods.nas import Nas
from nas_jax.methods.negclip import NegClip
from nas_jax.methods.rvlm import Rvlm
from nas_jax.methods.softmask import SoftMask
from nas_jax.methods.svco import Svco
from nas_jax.methods.sycoca import Sycoca
from nas_jax.methods.tcl import Tcl
from nas_jax.methods.vilta import Vilta
from nas_jax.methods.vlmatch import VlMatch
from nas_jax.models.sizes import ModelConfig
from nas_jax.utils.errors import ConfigError
from nas_jax.utils.fields import build

METHODS: dict[str, type[Method]] = {
    "albef": Albef,
    "align": Align,
    "c2lip": C2lip,
    "ceclip": CeClip,
    "clip": Clip,
    "fdt": Fdt,
    "filip": Filip,
    "gnm": Gnm,
    "loupe": Loupe,
    "nas": Nas,
    "negclip": NegClip,
    "rvlm": Rvlm,
    "siglip": Siglip,
    "softmask": SoftMask,
    "svco": Svco,
    "sycoca": Sycoca,
    "tcl": Tcl,
    "vilta": Vilta,
    "vlmatch": VlMatch,
}

TASK_METHODS: dict[str, type[Method]] = {}
"""Methods of downstream tasks by name. nas_jax/tasks, which is right of here, puts them in when it
is imported; a name that is not known yet imports it.
"""

_GONE = ("plain",)  # fields of older configs that are no more
_NOT_ALBEF = ("dictionary", "nva", "nta")  # sections that its older configs had, switched off
_NOT_ALBEFS = {"itm": ("form", "nva_weight", "nta_weight"), "mlm": ("dictionary_from_epoch",)}


def method_class(name: str) -> type[Method]:
    """The method of that name. Raises ConfigError."""
    if name not in METHODS and not TASK_METHODS:
        import_module("nas_jax.tasks")
    found = METHODS.get(name) or TASK_METHODS.get(name)
    if found is None:
        known = ", ".join([*METHODS, *TASK_METHODS])
        raise ConfigError(f"method.name={name!r}", f"one of {known}", "set one of them")
    return found


def method_config(section: Mapping[str, Any]) -> MethodConfig:
    """The config that `section["name"]` asks for; fields that it lacks keep their defaults."""
    section = upgraded(section)
    return build(method_class(section.get("name", "nas")).Config, section, "method")


def upgraded(section: Mapping[str, Any]) -> dict[str, Any]:
    """The method section of a run of an older version, without the fields that are no more."""
    section = {name: value for name, value in section.items() if name not in _GONE}
    if section.get("name", "nas") == "albef":
        section = {name: value for name, value in section.items() if name not in _NOT_ALBEF}
        for part, fields in _NOT_ALBEFS.items():
            kept = {k: v for k, v in section.get(part, {}).items() if k not in fields}
            section |= {part: kept} if part in section else {}
    if "gate_replaced" in section.get("nva", {}):
        nva = dict(section["nva"])
        gated = nva.pop("gate_replaced")
        section["nva"] = {"replace": "gated" if gated else "code"} | nva
    return section


def make_method(config: MethodConfig, model: ModelConfig, setting: Setting) -> Method:
    """The method of a config; the vocabulary says how many words the model has."""
    size = model.vocab_size or setting.vocabulary.size
    return method_class(config.name).build(config, replace(model, vocab_size=size), setting)
