"""A pytest plugin that tells the process outside what became of each test; it runs among the tests and the product.

These files are sent into the sandbox as they are (`supervisor.py` puts them there under a random name; `plugin.py` is
the plugin) and know nothing of this package: the standard library and pytest alone, Python 3.8 and later.

The product's code shares this process, so nothing that it can print or return is believed. What is sent:

* a status for each test, out of the exception that it raised, signed with a key that only these files' functions hold
  (`channel.py`, `statuses.py`);
* what the patch did that no fix needs to do ("deceit"): it replaced parts of pytest, unittest or the tests
  (`replaced.py`, `own_tests.py`), read the frames of its callers, the garbage collector or the tests' files
  (`audit.py`), used a test runner (`uses.py`), or made values that equal everything (`values.py`). Only code that the
  patch itself has brought is blamed (`blame.py`): the lines that it added, and code made of text. An audit hook
  (PEP 578), which nothing can take away, sees most of these;
* what became of two tests of our own under random names, before and after all others: one must fail, one must pass
  (`statuses.py`).

Each part is a function that returns the functions of the next parts. There are no classes and no state at module level:
`object.__subclasses__()` hands every class of the process to the product, and `sys.modules` every module; what a
function closes over is reached only in ways that the audit hook sees.
"""
