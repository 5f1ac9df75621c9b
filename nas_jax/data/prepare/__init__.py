"""Turns pictures with captions into a prepared folder, and says what was lost.

The folder is described in nas_jax/data/prepared.py.

    python -m nas_jax.data.prepare 'cc3m/*.tar' --out data/cc3m --licence "see the data set's page"
    python -m nas_jax.data.prepare dataset_coco.json --image-root coco \\
        --split train,restval --out data/coco
    python -m nas_jax.data.prepare --out data/cc3m --against data/coco_test --leave-out
    python -m nas_jax.data.prepare --out data/cc3m --verify

The story of a picture: `inputs` cuts what it is given into units (a tar, or some thousand entries
of a list) and reads them with `tars` and `lists`, which mend captions and give each picture as an
InputPair or a Loss (`items`). `units` decodes and hashes it and writes unit k as shard k; `workers`
does many units at once. `build` decides which units are left to do, as an interrupted run goes on
at the first that is not finished and none is done twice. `manifest` adds all up and writes, last of
all, the file that makes the folder a data set; `folder` keeps what stands in it whole. `against`
takes pictures of evaluation sets out again.
"""

from nas_jax.data.prepare.against import check_overlap
from nas_jax.data.prepare.build import prepare
from nas_jax.data.prepare.manifest import Labels, verify
from nas_jax.data.prepare.units import Options

__all__ = ["Labels", "Options", "check_overlap", "prepare", "verify"]
