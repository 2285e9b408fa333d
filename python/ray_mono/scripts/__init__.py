"""The command line: `ray-mono`, or `python -m ray_mono.scripts`."""
