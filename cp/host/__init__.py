"""The only code that touches Linux mechanisms: nucleus, saved systems, seal.

Three kinds of process run code from here. The nucleus imports nothing but the standard library, so this package, and
every module that :mod:`retinue.cp.host.nucleus` names, must do the same. The saved systems may import anything once
they stand in their namespaces. The CP uses :mod:`~retinue.cp.host.linux` (and the interface it implements), the
command line :mod:`~retinue.cp.host.launch`.
"""
