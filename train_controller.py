"""Trains a controller over a frozen throttleable network: `python train_controller.py [PRESET]`.

`--set FIELD=VALUE` changes a field of the preset; `flyball presets NAME` lists them. Also what
`ray submit` sends to a cluster, so it stays a script of few lines.
"""

import sys
from pathlib import Path

LAYERS = ("kernels", "datapaths", "envs", "controllers", "platform")

if __name__ == "__main__":
    # With the sources beside it, as `ray job submit --working-dir .` ships them, those are run;
    # alone, as `ray submit` sends it, what is installed.
    folders = [Path(__file__).resolve().parent / layer for layer in LAYERS]
    sys.path[:0] = [str(folder) for folder in folders if (folder / "flyball").is_dir()]
    from flyball.platform.cli import train_controller

    sys.exit(train_controller())
