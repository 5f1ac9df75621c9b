"""What prepare prints of a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nas_jax.utils.logging import Console


def loss_table(lost: dict[str, dict[str, Any]], images_in: int) -> str:
    """One line a reason, the most frequent first."""
    if not lost:
        return "nothing lost"
    width = max(len(reason) for reason in lost)
    lines = [f"  {'lost':<{width}} {'images':>9} {'share':>7}  example"]
    for reason, entry in sorted(lost.items(), key=lambda item: -item[1]["count"]):
        share = 100 * entry["count"] / max(1, images_in)
        example = entry["examples"][0]
        lines.append(f"  {reason:<{width}} {entry['count']:>9,} {share:>6.2f}%  {example[:160]}")
    return "\n".join(lines)


def say_summary(manifest: dict[str, Any], out: Path, console: Console) -> None:
    """Prints what came in, what was lost and what is there now."""
    counts, captions, images = manifest["counts"], manifest["captions"], manifest["images"]
    words, formats = (
        captions["words"],
        ", ".join(f"{count:,} {name}" for name, count in images["formats"].items()),
    )
    side = {
        name: f"{images[name]['min']}/{images[name]['median']}/{images[name]['max']}"
        for name in ("width", "height")
    }
    console.say(f"images in     {counts['images_in']:,}")
    console.say(f"images out    {counts['images_out']:,} ({formats}), {size_text(images['bytes'])}")
    console.say(loss_table(manifest["lost"], counts["images_in"]))
    console.say(
        f"captions      {counts['captions_in']:,} in, {counts['captions_out']:,} out, "
        f"{captions['mended']:,} mended, "
        f"{captions['per_image']:.2f} an image"
    )
    console.say(
        f"words         mean {words['mean']}, median {words['p50']}, 95 % {words['p95']}, 99 % "
        f"{words['p99']}, "
        f"max {words['max']} ({captions['longest']['text'][:60]!r})"
    )
    if found := manifest.get("negatives"):
        console.say(
            f"negatives     {found['captions']:,} captions of {found['captioned']:,} pictures, "
            f"{found['images']:,} pictures of {found['pictured']:,} ("
            f"{size_text(found.get('bytes', 0))}; {found['lost']:,} more are missing or damaged), "
            f"{found['grouped']:,} pictures in groups"
        )
    if found := manifest.get("regions"):
        console.say(_region_text(found))
    console.say(f"pixels        width {side['width']}, height {side['height']} (min/median/max)")
    if images["repeated_keys"]:
        console.say(
            f"repeated keys {images['repeated_keys']:,} records, "
            f"{images['keys_in_several_shards']:,} keys in several "
            "shards: they count as the same picture"
        )
    console.say(f"id            {manifest['id']} in {out} ({len(manifest['shards'])} shards)")
    console.say(f"in a config   data.train = ({str(out)!r},)")


def _region_text(found: dict[str, Any]) -> str:
    boxes, phrases, pictures = (found.get(name, 0) for name in ("boxes", "phrases", "pictures"))
    text = f"regions       {boxes:,} boxes and {phrases:,} phrases of {pictures:,} pictures"
    if not found["lost"]:
        return text
    return (
        f"{text}; {found['lost']:,} left out (like {found['lost_like'][0]}); expected [x, y, "
        "width, height] in pixels, to which corners and shares of a picture are to be converted"
    )


def size_text(count: float) -> str:
    """Bytes in three digits, as 1.91 KB."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
