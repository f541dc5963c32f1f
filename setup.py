"""Map the top-level folders into the `gnomon` namespace (see CONTRIBUTING.md, "Where things live")."""

from setuptools import find_namespace_packages, setup

FOLDERS = ("cli", "configs", "data", "eval", "kernels", "train", "vlm")

packages, package_dir = [], {}
for folder in FOLDERS:
    package_dir[f"gnomon.{folder}"] = folder
    packages += [f"gnomon.{folder}", *(f"gnomon.{folder}.{name}" for name in find_namespace_packages(folder))]

setup(
    packages=packages,
    package_dir=package_dir,
    package_data={"gnomon.configs": ["**/*.yaml", "**/*.json", "**/*.safetensors", "**/*.jinja"]},
)
