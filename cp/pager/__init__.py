"""The pager: what of the storage of machines stays in real storage, decided by the control program.

:mod:`~retinue.cp.pager.policy` and :mod:`~retinue.cp.pager.overcommit` decide and do nothing;
:mod:`~retinue.cp.pager.census` knows what each machine has and since when it has not run;
:mod:`~retinue.cp.pager.pager` is the task that looks, takes pages, asks machines to shrink and ends them.
"""
