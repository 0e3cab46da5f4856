"""The order of the packages: imports point down, never up, and no import inside a function hides a circle."""

import ast
from pathlib import Path

import diffuseg

ROOT = Path(diffuseg.__file__).parent
ORDER = (  # from the ground up; what stands in one line does not import one another
    {"errors", "py"},
    {"text", "config", "atomic_io", "types", "scratch", "blocks", "timing", "pulse", "loopback"},
    {"device", "diffusion", "networks", "evaluation", "drawing"},
    {"data"},
    {"methods"},
    {"checkpoint"},
    {"inference"},
    {"reports"},
    {"train"},
    {"studies"},
    {"viewer"},
    {"api"},
    {"cli"},
    {"__main__"},
)
WITHIN = {"text", "config", "atomic_io", "types", "scratch", "blocks", "timing", "pulse"}  # may import each other
FLOOR = {package: height for height, packages in enumerate(ORDER) for package in packages}


def module_of(path: Path) -> str:
    return ".".join(("diffuseg", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


def imports_of(path: Path) -> list[tuple[int, str]]:
    """Line and module of every import of diffuseg in a file, those inside functions and those for types alone included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "diffuseg":
            found += [(node.lineno, name) for name in submodules(node)]
        elif isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "diffuseg"]
    return found


def submodules(node: ast.ImportFrom) -> list[str]:
    """The modules that `from package import names` means: the package, or modules in it of these names."""
    place = ROOT.joinpath(*str(node.module).split(".")[1:])
    inner = [a.name for a in node.names if place.joinpath(f"{a.name}.py").exists() or place.joinpath(a.name).is_dir()]
    return [f"{node.module}.{name}" for name in inner] or [str(node.module)]


def sources() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def package_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def upward(path: Path) -> list[str]:
    own = package_of(module_of(path))
    wrong = []
    for line, module in imports_of(path):
        other = package_of(module)
        if own is None or other is None or own == other or {own, other} <= WITHIN:
            continue
        if FLOOR[other] >= FLOOR[own]:
            wrong.append(f"{path.relative_to(ROOT)}:{line}: {own} imports {other}")
    return wrong


def test_every_package_has_its_place():
    packages = {package_of(module_of(path)) for path in sources()} - {None}
    assert packages <= set(FLOOR), f"name their place in ORDER: {sorted(packages - set(FLOOR))}"


def test_imports_point_down():
    wrong = [text for path in sources() for text in upward(path)]
    assert not wrong, "\n".join(wrong)


def test_no_two_files_import_each_other_even_through_others():
    graph = {module_of(path): {module for _, module in imports_of(path)} for path in sources()}
    state: dict[str, int] = {}

    def visit(module: str, way: tuple[str, ...]) -> None:
        if state.get(module) == 2:
            return
        assert state.get(module) != 1, "circle: " + " -> ".join((*way[way.index(module) :], module))
        state[module] = 1
        for other in sorted(graph.get(module, ())):
            visit(other, (*way, module))
        state[module] = 2

    for module in graph:
        visit(module, ())


def test_an_arrow_that_points_up_is_seen(tmp_path, monkeypatch):
    """The check itself: a file in data that imports methods inside a function is refused."""
    (tmp_path / "data").mkdir()
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods/base.py").write_text("")
    (tmp_path / "data/x.py").write_text("def f():\n    from diffuseg.methods import base\n")
    monkeypatch.setattr("tests.test_architecture.ROOT", tmp_path)
    assert upward(tmp_path / "data/x.py") == ["data/x.py:2: data imports methods"]


def test_evaluation_needs_nothing_but_arrays():
    """evaluation/ is arrays in, numbers out: numpy, scipy, monai (and torch for it), and errors."""
    allowed = {"numpy", "scipy", "monai", "torch", "jaxtyping", "diffuseg"}
    for path in sorted((ROOT / "evaluation").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                top = str(name).split(".")[0]
                assert top in allowed or top in __import__("sys").stdlib_module_names, f"{path.name} imports {name}"


def lines(node: ast.AST) -> int:
    return (node.end_lineno or 0) - node.lineno + 1  # type: ignore[attr-defined]


def test_functions_fit_a_screen():
    long = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and lines(node) > 60:
                long.append(f"{path.relative_to(ROOT)}: {node.name} has {lines(node)} lines")
    assert not long, "\n".join(long)


def test_files_are_short():
    """At most one file of a package is over 330 lines."""
    for package in sorted({path.parent for path in sources()}):
        over = [p.name for p in sorted(package.glob("*.py")) if len(p.read_text(encoding="utf-8").splitlines()) > 330]
        assert len(over) <= 1, f"{package.relative_to(ROOT)}: {', '.join(over)}"
