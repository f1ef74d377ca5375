"""Gymnasium finds the environments without an import in the caller's code, and cheaply."""

import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium

from flyball.datapaths.atlas import OutcomeAtlas
from flyball.envs import ENVIRONMENT_IDS, register


def run(code: str) -> str:
    """What a new interpreter prints; warnings are errors there too."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_make_needs_no_import_of_flyball(hand_atlas: OutcomeAtlas, tmp_path: Path) -> None:
    hand_atlas.save(tmp_path)
    printed = run(
        "import gymnasium\n"
        "name = 'flyball.envs:flyball/ThrottleBandit-v0'\n"
        f"one = gymnasium.make(name, atlas={str(tmp_path)!r})\n"
        f"many = gymnasium.make_vec(name, num_envs=3, atlas={str(tmp_path)!r})\n"
        "print(one.spec.id, type(one.unwrapped).__name__, type(many).__name__)\n"
        "print(one.reset(seed=0)[1], many.reset(seed=0)[0].shape)\n"
    )
    names, drawn = printed.splitlines()
    assert names == "flyball/ThrottleBandit-v0 ThrottleBandit ThrottleBanditVector"
    assert drawn.endswith("(3, 2)")


def test_registration_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'torchvision', 'ray', 'mlflow', 'sklearn', 'matplotlib'}"
    assert run(f"import sys, gymnasium; print({heavy} & set(sys.modules))") == "set()"
    assert run(f"import sys, flyball.envs; print({heavy} & set(sys.modules))") == "set()"


def test_registering_twice_changes_nothing() -> None:
    before = {name: gymnasium.registry[name] for name in ENVIRONMENT_IDS}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register()
    assert {name: gymnasium.registry[name] for name in ENVIRONMENT_IDS} == before


def test_every_id_names_a_single_and_a_vector_environment() -> None:
    for name in ENVIRONMENT_IDS:
        spec = gymnasium.spec(name)
        assert isinstance(spec.entry_point, str)
        assert isinstance(spec.vector_entry_point, str)
        assert spec.max_episode_steps is None
