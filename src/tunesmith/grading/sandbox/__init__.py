"""Running model-written programs: two confined processes, and a verdict that neither can forge.

The *solver* holds the program, the *tester* holds the tests. They share no memory, no user, no
view of each other and nothing to write to but two pipes, over which the tester sends the arguments
of a call and gets plain data back (``wire``). Expected values never reach the solver, values are
compared between built-in types in the tester, and the verdict leaves over a pipe that the solver
does not have. A program that exits, prints, patches or lies can therefore fail a test only.

``run`` is the front; ``launch``, ``kernel``, ``solver``, ``tester`` and ``wire`` run inside, in an
interpreter of their own that imports the standard library alone.

What it does not do: bound the sum of the memory of a program's processes (each has its own limit,
and there are few); hide the processor, the clock or the kernel's faults; compare objects of the
program's own classes, which the tests see as opaque; show the tests what a program changed in a
list that it was given.
"""
