"""Other people's benchmarks as `envs.world.World`; what they need is an extra (``suites``).

A file per suite. It is imported only when one of its names is asked for, and its ``TASKS`` says
which there are: the suite's own name of a task -> `envs.Task`.
"""
