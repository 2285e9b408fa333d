"""`python -m ray_mono.scripts` is `ray-mono`."""

from ray_mono.scripts.scripts import main

if __name__ == "__main__":
    main()
