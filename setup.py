"""Packaging.

requirements.txt holds the versions that were tested; here are the ranges that should work.
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "nas_jax/__init__.py").read_text())[1]


class BuildWithConfigs(build_py):
    """Puts main.py and configs/, which lie beside the package, into it: nas_jax train finds them
    there (nas_jax/utils/commands.py).
    """

    def run(self):
        super().run()
        if not self.editable_mode:  # that one uses those of the checkout
            inside = Path(self.build_lib, "nas_jax/checkout")
            shutil.rmtree(inside, ignore_errors=True)  # of a build before
            (inside / "configs").mkdir(parents=True)
            for path in (HERE / "main.py", *sorted(HERE.glob("configs/*.py"))):
                shutil.copyfile(path, inside / path.relative_to(HERE))


setup(
    name="nas_jax",
    version=VERSION,
    description="Fine-grained vision-language pretraining in JAX: ALBEF, NAS and their family",
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=find_packages(include=["nas_jax", "nas_jax.*"]),
    # copied into exports, so they are files and no package
    package_data={"nas_jax.convert": ["hf_files/*.py"]},
    cmdclass={"build_py": BuildWithConfigs},
    entry_points={"console_scripts": ["nas_jax = nas_jax.__main__:main"]},
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.3",
        "array_record>=0.8",
        "flax>=0.12.6",
        "grain>=0.2.16",
        "jax>=0.10,<0.13",
        "matplotlib>=3.9",
        "ml_collections>=1.0",
        "msgpack>=1.1",
        "numpy>=2.0",
        "opencv-python-headless>=4.10",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.12",
        "pillow>=11",
        "simplejpeg>=1.8",
        "tensorboardX>=2.6",
        "tensorflow-datasets>=4.9.9",
        "tokenizers>=0.22",
    ],
    extras_require={
        "gpu": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        "compile": ["libtpu"],
        "gcs": ["gcsfs>=2026.1"],
        "parquet": ["pyarrow>=20"],
        # inputs of nas_jax.data.prepare at hf://, https:// and s3://
        "remote": ["fsspec>=2025.3", "aiohttp", "huggingface_hub", "s3fs"],
        "wandb": ["wandb"],
        "mlflow": ["mlflow-skinny", "sqlalchemy", "alembic"],
        "test": ["pytest>=8", "ruff>=0.9", "mypy>=1.15"],
        "docs": ["mkdocs-material>=9.8", "mkdocstrings-python>=2.0"],
        # beside convert: nas_jax.convert to-hf --also onnx, --also sentence-transformers
        "onnx": ["onnx>=1.18", "onnxruntime>=1.22", "onnxscript>=0.5"],
        "sentence": ["sentence-transformers>=6.0"],
        "convert": ["safetensors>=0.5", "torch>=2.6", "transformers>=5.0"],
    },
)
