"""The second implementation of the host: every machine of a system as tasks of one trio run, also on a virtual clock.

:class:`~retinue.cp.simulation.nucleus.Nucleus` stands for the processes below a control program, with
:class:`~retinue.cp.simulation.host.SimulatedHost` as the face that one control program has of it. A
:class:`~retinue.cp.simulation.process.Process` is what belongs together and dies together: tasks, sockets, modules.
Nothing here is sealed, and a program that blocks the thread blocks everybody: it is for tests.
"""
