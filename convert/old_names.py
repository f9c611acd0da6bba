"""The names of `flax_vae.convert` and `flax_vae.train` in a clone, where their folders are: `convert` and `train`."""

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType


def alias(old: str, new: str) -> None:
    """Makes `import old.x` give the module `new.x` itself, so that no class exists twice.

    Args:
      old: Name of a package that is being imported.
      new: Name of the package that takes its place.
    """
    sys.meta_path.insert(0, _Aliases(old, new))
    sys.modules[old] = importlib.import_module(new)


class _Aliases:
    """Finder and loader of the modules below `old`, which are those below `new`."""

    def __init__(self, old: str, new: str):
        self.old, self.new = old, new

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if not name.startswith(f"{self.old}."):
            return None
        known = importlib.util.find_spec(self.new + name.removeprefix(self.old))
        return known and ModuleSpec(name, self, loader_state=known)  # pyright: ignore[reportArgumentType]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return importlib.import_module(spec.loader_state.name)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state  # the import system has just replaced it

    def get_code(self, name: str) -> object:
        """Returns the code for `python -m`."""
        known = importlib.util.find_spec(self.new + name.removeprefix(self.old))
        return known.loader.get_code(known.name)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
