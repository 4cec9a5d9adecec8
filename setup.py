from pathlib import Path

from setuptools import find_namespace_packages, setup

HERE = Path(__file__).parent

# three folders at the top of the checkout are installed as parts of the package: as packages of
# their own they would take the name "kernels" from the Hugging Face package that transformers and
# diffusers look for. the links anyv2v/kernels, anyv2v/weights and anyv2v/convert serve those who
# run the checkout in place; an installation does not need them
TOP = ("kernels", "weights", "convert")


def packages() -> list[str]:
    links = [f"{top}*" for top in TOP]
    found = ["anyv2v", *(f"anyv2v.{name}" for name in parts("anyv2v", links))]
    for top in TOP:
        found += [f"anyv2v.{top}", *(f"anyv2v.{top}.{name}" for name in parts(top, []))]
    return found


def parts(folder: str, besides: list[str]) -> list[str]:
    besides = [*besides, "*__pycache__*"]
    return find_namespace_packages(str(HERE / folder), exclude=besides)


setup(
    name="anyv2v",
    version="0.1.0",
    description="Training-free video editing: AnyV2V with its backbones, from scratch in PyTorch",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=packages(),
    package_dir={f"anyv2v.{top}": top for top in TOP},
    package_data={
        "anyv2v": ["py.typed"],
        "anyv2v.kernels": ["registers.md"],
        "anyv2v.weights.demo": ["files/*", "files/tokenizer/*", "*.md"],
        "anyv2v.convert": ["merges/*"],
    },
    install_requires=[
        "torch>=2.11",
        "triton; platform_system == 'Linux' and platform_machine == 'x86_64'",
        "einops",
        "safetensors>=0.4",
        "numpy>=1.26",
        # regions of masks and the few colors of `posterise`
        "scipy>=1.15",
        # so that runs that write into one folder leave each other's unfinished files alone
        "filelock>=3.30",
        "av>=17.1",
        "pillow>=10",
        "tokenizers>=0.20",
        "regex",
        "tqdm",
        "pyyaml>=6",
    ],
    extras_require={
        # for `anyv2v weights fetch`
        "fetch": ["huggingface_hub>=0.23"],
        # for inputs and outputs of `anyv2v batch` that are URLs, beside s3fs, gcsfs and the like
        "urls": ["fsspec>=2024.2"],
        # for `anyv2v batch --engine ray`
        "ray": ["ray>=2.40"],
        # for the edges that a T2I-Adapter may be shown
        "canny": ["opencv-python-headless>=4.8"],
        # for the metrics of `anyv2v evaluate` that take optical flow, and for LPIPS
        "evaluate": ["opencv-python-headless>=4.8"],
        "lpips": ["torchmetrics>=1.4", "torchvision"],
        # for the optical flow of two baselines of `python -m bench.edit_quality`
        "bench": ["opencv-python-headless>=4.8"],
        # the last two are the oracles that the tests compare with; the package never imports them
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff",
            "pyright[nodejs]>=1.1.400",
            "opencv-python-headless>=4.8",
            "diffusers>=0.35",
            "transformers>=5",
        ],
    },
    entry_points={"console_scripts": ["anyv2v = anyv2v.__main__:command"]},
)
