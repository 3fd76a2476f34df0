"""WebShop as a native text environment: the benchmark's goals, pages, search and rewards, in one process.

The pages, the search ranking and the reward follow WebShop (Yao et al., 2022, https://github.com/princeton-nlp/WebShop,
MIT licence) as recorded episodes of it show them; the code is this project's own.

Example:
    >>> from agent_loops.webshop import WebShop
    >>> shop = WebShop("data/webshop")                              # doctest: +SKIP
    >>> environment = shop.make()                                   # doctest: +SKIP
    >>> observation = environment.reset(shop.task_set.tasks("train")[0])   # doctest: +SKIP
    >>> environment.step("search[slim oak lamp]").observation.text  # doctest: +SKIP
"""

from agent_loops.webshop.benchmark import WebShop, load_catalogue
from agent_loops.webshop.catalogue import Catalogue
from agent_loops.webshop.environment import WebShopEnvironment
from agent_loops.webshop.oracle import Oracle
from agent_loops.webshop.prepared import open_prepared, prepare
from agent_loops.webshop.records import CatalogueError, Goal, Product
from agent_loops.webshop.tasks import WebShopTasks

__all__ = [
    "Catalogue",
    "CatalogueError",
    "Goal",
    "Oracle",
    "Product",
    "WebShop",
    "WebShopEnvironment",
    "WebShopTasks",
    "load_catalogue",
    "open_prepared",
    "prepare",
]
