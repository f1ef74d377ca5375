"""Dynamic convolution networks: residual blocks that run on the pixels of a learned mask."""
