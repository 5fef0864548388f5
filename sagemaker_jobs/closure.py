"""Which files of our packages a program needs: what its modules import, read from the source, nothing executed."""

import ast
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

OUR_PACKAGES = ("dogbreed_ml", "sagemaker_jobs")


def source_files(
    modules: Sequence[str], *, packages: Sequence[str] = OUR_PACKAGES, without: Sequence[str] = ()
) -> dict[str, Path]:
    """The files of `packages` that the entry modules reach, by their place in an archive: dogbreed_ml/serve.py.

    Imports inside functions count, those under `if TYPE_CHECKING:` do not; the __init__.py of each package on the way
    comes along. `without` names modules, or packages with all below them, that are left out; whoever names one knows
    that it is not imported where the archive is used. Not seen are imports by computed name (importlib) and programs
    started by name (`python -m`): name those as entry modules. Raises ModuleNotFoundError for an entry module that is
    none of `packages`'.
    """
    roots = {package: _package_dir(package) for package in packages}
    files: dict[str, Path] = {}
    pending = list(modules)
    for module in modules:
        if _find(module, roots) is None:
            raise ModuleNotFoundError(f"An entry module must be one of {', '.join(packages)}; got {module!r}.")
    seen: set[str] = set()
    while pending:
        module = pending.pop()
        if module in seen or any(module == each or module.startswith(f"{each}.") for each in without):
            continue
        seen.add(module)
        path = _find(module, roots)
        if path is None:
            continue
        is_package = path.name == "__init__.py"
        files["/".join(module.split(".")) + ("/__init__.py" if is_package else ".py")] = path
        parent = module.rpartition(".")[0]
        pending += [parent] if parent else []
        pending += _imported(path, module if is_package else parent)
    return dict(sorted(files.items()))


def _package_dir(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} must be a package that can be imported here.")
    return Path(spec.origin).parent


def _find(module: str, roots: dict[str, Path]) -> Path | None:
    """The module's file; None for a stranger's module, and for what is a name inside a module."""
    package, *parts = module.split(".")
    if package not in roots:
        return None
    path = roots[package].joinpath(*parts)
    candidates = [path / "__init__.py", *([path.with_name(f"{path.name}.py")] if parts else [])]
    return next((each for each in candidates if each.is_file()), None)


def _imported(path: Path, package: str) -> Iterator[str]:
    """Absolute names that a file imports; `from a import b` gives a and a.b, because b may be a module."""
    for node in _executed(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                ancestors = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*ancestors, *([base] if base else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below one, but for the bodies of `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and _is_type_checking(child.test):
            for other in child.orelse:
                yield other
                yield from _executed(other)
        else:
            yield child
            yield from _executed(child)


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )
