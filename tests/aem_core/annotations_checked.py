"""A pytest plugin (`-p annotations_checked`): every call into aem_core is checked against its jaxtyping annotations."""

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# PEP 484's numeric tower: where a float is wanted, an int will do.
checker = beartype(conf=BeartypeConf(is_pep484_tower=True))

# As a pytest plugin this runs before any test module, and so before aem_core is imported for the first time.
install_import_hook("aem_core", f"{__name__}.checker")
