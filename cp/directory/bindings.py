"""Which names a module's source binds, found without running it."""

import ast
import warnings

from attrs import frozen


@frozen
class Bindings:
    """The names that a module binds at its top level.

    ``names`` are all that can be seen. ``plain`` are those bound by nothing but an undecorated ``def``, which
    therefore certainly are functions that are not asynchronous. If ``certain`` is false the module may bind names
    in ways that cannot be seen (``from x import *``, a module ``__getattr__``, ``globals()``, ``exec``).
    """

    names: frozenset[str]
    plain: frozenset[str]
    certain: bool


def bindings(source: bytes, name: str) -> Bindings:
    """Read the source of a module. Raises SyntaxError if it is not Python; ``name`` is for that error only."""
    with warnings.catch_warnings():
        # What Python thinks of the program's style is told when the program runs.
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(source, name)
        except (ValueError, RecursionError, MemoryError) as error:
            # NUL bytes, and expressions nested beyond what the parser can hold.
            raise SyntaxError(str(error) or type(error).__name__) from error
    visitor = _Visitor()
    visitor.visit(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Global(names=names):
                visitor.others.update(names)
            case ast.Name(id="globals" | "exec" | "vars" | "locals"):
                visitor.certain = False
    return Bindings(
        names=frozenset(visitor.others | visitor.plain),
        plain=frozenset(visitor.plain - visitor.others),
        certain=visitor.certain and "__getattr__" not in visitor.plain | visitor.others,
    )


class _Visitor(ast.NodeVisitor):
    """Visits what runs in the module's own scope, and so nothing inside functions and classes."""

    def __init__(self) -> None:
        self.plain: set[str] = set()
        self.others: set[str] = set()
        self.certain = True

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        # A decorator may make anything of it.
        (self.others if node.decorator_list else self.plain).add(node.name)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.others.add(node.name)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.others.add(node.name)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        pass

    def _comprehension(self, node: ast.AST) -> None:
        # Its variables are its own; only := reaches the module.
        for inner in ast.walk(node):
            if isinstance(inner, ast.NamedExpr):
                self.visit(inner.target)

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        # "app: App" alone is a note, not a binding.
        if node.value is not None:
            self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self.others.add(node.id)

    def visit_Import(self, node: ast.Import) -> None:
        self.others.update(alias.asname or alias.name.partition(".")[0] for alias in node.names)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        names = {alias.asname or alias.name for alias in node.names}
        if "*" in names:
            self.certain = False
        self.others.update(names - {"*"})

    def visit_MatchAs(self, node: ast.MatchAs) -> None:
        self.others.update({node.name} if node.name else ())
        self.generic_visit(node)

    def visit_MatchStar(self, node: ast.MatchStar) -> None:
        self.others.update({node.name} if node.name else ())

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        self.others.update({node.rest} if node.rest else ())
        self.generic_visit(node)
