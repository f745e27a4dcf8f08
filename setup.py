from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent

# brings sb3_contrib, and tqdm and rich for progress bars; Gymnasium draws its tasks with pygame
zoo = ["rl_zoo3[plots]>=2.9.2,<3.0", "requests", "pygame", "tensorboard"]
envs = ["pybullet", "pybullet_envs_gymnasium>=0.6", "gymnasium[mujoco]"]
ray = ["ray"]
plots = ["matplotlib"]
benchmarks = [*zoo, *envs, *plots, "scipy>=1.15", "filelock", "pandas<3"]  # peers' settings, and the robots
docs = ["sphinx", "myst-parser", "furo"]
tools = ["pytest", "pytest-xdist", "hypothesis", "mypy", "ruff", "pillow"]
tests = [*benchmarks, *ray, *docs, *tools]

setup(
    name="sb3-wng",
    version=(root / "sb3_wng" / "version.txt").read_text().strip(),
    description="Wasserstein and Fisher natural gradients for Stable-Baselines3",
    long_description=(root / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="sb3-wng contributors",
    license="MIT",
    license_files=["LICENSE"],
    keywords="reinforcement-learning natural-gradient wasserstein stable-baselines3 pytorch",
    packages=[*find_packages(include=["sb3_wng", "sb3_wng.*"]), "sb3_wng.zoo_hyperparams"],
    package_dir={"sb3_wng.zoo_hyperparams": "zoo_hyperparams"},
    package_data={
        "sb3_wng": ["py.typed", "version.txt", "envs/assets/*.xml"],
        "sb3_wng.zoo_hyperparams": ["*.yml", "published/*.yml"],
    },
    python_requires=">=3.10",
    install_requires=[
        "stable_baselines3>=2.9,<3.0",
        "torch>=2.8,<3.0",
        "gymnasium>=1.1,<2.0",
        "POT>=0.9.5",
        "loky>=3.4",
    ],
    extras_require={
        "zoo": zoo,
        "envs": envs,
        "ray": ray,
        "plots": plots,
        "benchmarks": benchmarks,
        "docs": docs,
        "tests": tests,
        "all": [*benchmarks, *ray],
    },
    entry_points={"console_scripts": ["sb3-wng-zoo = sb3_wng.zoo:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
