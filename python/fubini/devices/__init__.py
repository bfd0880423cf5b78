"""Circuits on PennyLane devices that cost time or money: shots, noise, hardware.

Every task is a :class:`~fubini.devices.job.Job`: the circuits to run and what becomes of their results. ``job.cost(executor)``
says what it will execute, ``job.run(executor)`` executes it on an :class:`~fubini.devices.executor.Executor`.
"""
