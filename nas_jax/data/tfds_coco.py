"""COCO captions as a TFDS data set, from the official files and without TensorFlow.

    python -m nas_jax.data.tfds_coco --annotations annotations/captions_train2014.json \\
        --images train2014 --data-dir ~/tensorflow_datasets

and then `data.train=("tfds:~/tensorflow_datasets/coco_captions_from_json/1.0.0:train",)`. TFDS's
own coco_captions cannot be constructed without TensorFlow. Nothing is downloaded; the picture files
are stored byte by byte.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from nas_jax.utils.errors import DataError, UserError


class CocoCaptionsFromJson(tfds.core.GeneratorBasedBuilder):
    """A record a picture: `image` (the file), `image/id`, `image/filename`, `captions`.

    The captions are several {text, id}.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    # None: else TFDS looks for checksums of downloads beside this module, with a package that it
    # does not require.
    code_path = None

    def __init__(self, *, annotations: str, images: str, split: str = "train", **kwargs):
        """annotations: official json with `images` and `annotations`; images: folder of files.

        kwargs: those of tfds.core.GeneratorBasedBuilder, data_dir for one. Files are written as
        ArrayRecord.
        """
        self._annotations, self._images, self._split = annotations, images, split
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        # dataset_info_from_configs would look for files beside this module, as packages of TFDS
        # itself have them.
        return tfds.core.DatasetInfo(
            builder=self,
            description="COCO pictures with all their captions, from the official json.",
            homepage="https://cocodataset.org",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(),
                    "image/id": np.int64,
                    "image/filename": tfds.features.Text(),
                    "captions": tfds.features.Sequence(
                        {"text": tfds.features.Text(), "id": np.int64}
                    ),
                }
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        return {self._split: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict]]:
        for image, captions in read_captions(self._annotations):
            yield (
                image["id"],
                {
                    "image": os.path.join(self._images, image["file_name"]),
                    "image/id": image["id"],
                    "image/filename": image["file_name"],
                    "captions": captions,
                },
            )


def read_captions(path: str) -> list[tuple[dict, list[dict]]]:
    """(image, its captions) of an official COCO json: {id, file_name, ...} and [{text, id}, ...].

    Raises DataError where the file is missing or of another form, or a picture has no caption.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}", "COCO's captions_*.json", "check --annotations"
        ) from error
    except ValueError as error:
        raise DataError(
            f"{path}: {error}", "a json file", "copy it again; it may be cut short"
        ) from error
    captions: dict[int, list[dict]] = defaultdict(list)
    try:
        for entry in content["annotations"]:
            captions[entry["image_id"]].append({"text": entry["caption"], "id": entry["id"]})
        images = [
            {"id": image["id"], "file_name": image["file_name"]} for image in content["images"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} without {error}",
            "images [{id, file_name}] and annotations [{image_id, id, caption}]",
            "use COCO's captions_*.json (not instances_*.json)",
        ) from error
    pairs = [(image, captions[image["id"]]) for image in images]
    if bare := [image["file_name"] for image, texts in pairs if not texts]:
        raise DataError(
            f"{len(bare)} pictures without a caption in {path}, like {bare[0]}",
            "captions for each",
            "use the captions_*.json of that split",
        )
    return pairs


def prepare(annotations: str, images: str, data_dir: str, split: str = "train") -> tuple[str, int]:
    """Writes the data set, unless it is there. Returns its folder and the number of pictures.

    Raises DataError where the json or a picture is missing, before anything is written.
    """
    pairs = read_captions(annotations)
    missing = [
        image["file_name"]
        for image, _ in pairs
        if not os.path.isfile(os.path.join(images, image["file_name"]))
    ]
    if missing or not pairs:
        raise DataError(
            f"{len(missing)} of {len(pairs)} pictures of {annotations} not in {images}"
            + (f", like {missing[0]}" if missing else ""),
            "the folder with all pictures",
            "check --images, or unpack the pictures again",
        )
    builder = CocoCaptionsFromJson(
        annotations=annotations, images=images, split=split, data_dir=os.path.expanduser(data_dir)
    )
    builder.download_and_prepare()
    if split not in builder.info.splits:
        raise DataError(
            f"{builder.data_dir} with the splits {', '.join(builder.info.splits)}",
            f"no data set there, or one with {split!r}",
            "use one --data-dir a split",
        )
    return str(builder.data_dir), builder.info.splits[split].num_examples


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m nas_jax.data.tfds_coco",
        description="COCO captions as a TFDS data set (ArrayRecord).",
    )
    parser.add_argument(
        "--annotations", required=True, help="captions_train2014.json or another of COCO"
    )
    parser.add_argument("--images", required=True, help="the folder with the pictures it names")
    parser.add_argument("--data-dir", required=True, help="where TFDS data sets lie")
    parser.add_argument("--split", default="train", help="name of the split (default train)")
    given = parser.parse_args(arguments)
    try:
        folder, count = prepare(given.annotations, given.images, given.data_dir, given.split)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{count} pictures in {folder}\nuse data.train=('tfds:{folder}:{given.split}',)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
