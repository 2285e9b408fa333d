"""Measures one side, line by line.

    python bench/microbenchmark.py --module ray_mono|ray [--only PATTERN] [--quick] [--json FILE] [--duration-s S]

`ray` is measured on an interpreter that has it, with --python; bench/compare.py measures both sides in turn.
"""
