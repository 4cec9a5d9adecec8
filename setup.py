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
    packages=packages(),
    package_dir={f"anyv2v.{top}": top for top in TOP},
    package_data={
        "anyv2v": ["py.typed"],
        "anyv2v.kernels": ["registers.md"],
        "anyv2v.weights.demo": ["files/*", "files/tokenizer/*", "*.md"],
        "anyv2v.weights.flow": ["files/*", "files/tokenizer/*", "*.md"],
        "anyv2v.convert": ["merges/*"],
    },
)
