"""A pytest plugin that reports each test's status to the process outside; it runs among the tests and the product.

These files are sent into the sandbox unchanged (`supervisor.py` puts them there under a random name; `plugin.py` is the
plugin). They do not depend on this package, only on the standard library and pytest, and run on Python 3.8 and later.

The product's code shares this process, so nothing that it can print or return is trusted. The plugin sends:

* a status for each test, derived from the exception that it raised, signed with a key that only these files' functions
  hold (`channel.py`, `statuses.py`);
* actions of the patch that no fix needs ("deceit"): it replaced parts of pytest, unittest or the tests (`replaced.py`,
  `own_tests.py`), read the frames of its callers, the garbage collector or the tests' files (`audit.py`), used a test
  runner (`uses.py`), or made values that equal everything (`values.py`). Only code from the patch itself is blamed
  (`blame.py`): the lines that it added, and code made from text. An audit hook (PEP 578), which nothing can remove,
  sees most of these;
* the results of two tests of our own under random names, run before and after all others: one must fail, one must pass
  (`statuses.py`).

Each part is a function that returns the functions of the next parts. There are no classes and no state at module level:
`object.__subclasses__()` gives the product every class of the process, and `sys.modules` every module; variables in a
function's closure can be reached only in ways that the audit hook sees.
"""
