"""Workloads that measure the runtime, and how they are run: the same code for ray_mono and for what it is
compared with.

A *line* is one figure with a name and a unit. A *workload* measures one or several lines with the module that
it is given; it imports neither ray_mono nor Ray. Workloads that may share a cluster form a *group*. A group
runs in a child process (`child`), which tells each result as soon as it has it, under a supervisor, which
bounds every workload in time: one that hangs or crashes costs its own lines and nothing else. `command` is
the command line; `bench/` compares two sides with the same supervisor.

What is here must import nothing but the standard library and numpy: the child may run on an interpreter that
has another runtime and none of our dependencies.
"""
