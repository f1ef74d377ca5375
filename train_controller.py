"""Trains a controller over a frozen throttleable network: `python train_controller.py [PRESET]`.

`--set FIELD=VALUE` changes a field of the preset; `flyball presets NAME` lists them. Also what
`ray submit` sends to a cluster, so it stays a script of few lines.
"""

import sys

from flyball.platform.cli import train_controller

if __name__ == "__main__":
    sys.exit(train_controller())
